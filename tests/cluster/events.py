"""What is submitted to the lab, and what happens to it there: preemption, a time limit, a rank that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from src.build import build
from src.cluster.batch import client
from src.cluster.chain import Submission, known_jobs, planned, submitted
from src.cluster.manifest import combinations, trainings
from src.cluster.options import Options
from src.cluster.states import JobState, of_job
from src.config import composed
from tests.cluster.lab import ended, submit, wait_until
from tests.cluster.warm import HELD
from tests.entry import call
from tests.support import SMALL_RUN

RUN = (
    *SMALL_RUN, "training.global_batch_size=4", "training.micro_batch_size=1", "training.max_steps=12",
    "evaluation.every_steps=6", "evaluation.max_pairs=4", "checkpoint.every_steps=0", "logging=none",
)  # fmt: skip
SWEEP = ("method=simpo", "method.beta=1,2,3", "seed=range(0,4)")
SEVERAL = ("method=simpo", "method.beta=2", "engine=ddp", "checkpoint.every_steps=2")
JUDGED = ("benchmark=toy", "judge=oracle", "max_items=4", "decoding.max_new_tokens=4")
SHORT = ("cluster.time='0:02:00'", "cluster.signal_seconds=59")
"""Asked to stop after half a minute at the least, and a minute at the most: SLURM looks every 30 s, and is early rather
than late. Limits are whole minutes, and one minute would leave no time to work."""


@dataclass(frozen=True)
class Done:
    """What was submitted, and how it ended.

    ``throttle``: what SLURM says of the sweep; ``twice``, ``shown``: what submitting it again, and ``--status``, said;
    ``took``: seconds from the death of a rank to the end of its job; ``alone``: the runs of the sweep without SLURM.
    """

    root: Path
    states: dict[str, JobState]
    jobs: dict[str, dict[str, str]]
    throttle: str
    twice: str
    shown: str
    took: float
    alone: list[Path]

    def of(self, submission: str, link: str) -> list[JobState]:
        """The states of a link's job."""
        return of_job(self.states, self.jobs[submission][link])

    def run(self, submission: str) -> Path:
        """The only run of a submission."""
        (found,) = (path.parent for path in (self.root / submission).glob("*/slurm"))
        return found

    def said(self, submission: str, job: str = "*") -> str:
        """What the jobs of a submission, or one, said."""
        return said(self.root / submission, job)


def everything(python: Path, root: Path) -> Done:
    """Five submissions. Task 0 of the sweep is preempted in its first start, and its second meets the time limit; a
    rank of a training on two nodes is killed, and its job queued again."""
    own = [f"cluster.python={python}", "cluster.time='1:00:00'"]
    sweep = [*RUN, *SWEEP, *places(root, "sweep")]
    low = [own[0], *SHORT, "cluster.partition=low", "cluster.throttle=4"]
    submit_held(low, sweep, {"task 0, start 1": 4, "task 0, start 2": 3})
    array = jobs_of(root, "sweep")["train"]
    throttle = client(["scontrol", "show", "job", array], 60).stdout
    preempt(root / "sweep", f"{array}_0")
    twice, shown = submit(low, sweep).err, submit([*low, "action=status"], sweep).out
    nodes = [*own, "cluster.nodes=2", "cluster.ranks_per_node=2"]
    submit_held(nodes, [*RUN, *SEVERAL, *places(root, "killed")], {"rank 1, start 1": 5})
    submit_held(nodes, [*RUN, *SEVERAL, *places(root, "several")], {})
    evaluations = [f"records_root={root}/records", f"evaluations_root={root}/kept", f"report={root}/report"]
    judged = f"alpaca_eval {' '.join(JUDGED)}"
    chain = [*own, *evaluations, "chain=true", f"evaluations=[ranking,'{judged}']"]
    submit_held(chain, [*RUN, "method=dpo", *places(root, "chain")], {})
    submitted(broken(root, [*own, *evaluations, "chain=true"]))
    killed = kill_a_rank(root / "killed", jobs_of(root, "killed")["train"])
    alone = local(root, *SWEEP)
    took = requeued(root / "killed", jobs_of(root, "killed")["train"]) - killed
    jobs = {name: jobs_of(root, name) for name in ("sweep", "several", "killed", "chain", "broken")}
    found = ended([job for links in jobs.values() for job in links.values()])
    return Done(root, found, jobs, throttle, twice, shown, took, alone)


def submit_held(own: list[str], given: list[str], held: dict[str, int]) -> None:
    """Submit; ``held`` as tests/cluster/warm.py says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARM_HOLD", json.dumps(held))
        outcome = submit(own, given)
    assert outcome.code == 0, outcome.err


def preempt(folder: Path, task: str) -> None:
    """Once a task is held: a job that takes all nodes, until the task has given way."""
    wait_until(f"the training of task {task}", lambda: HELD in said(folder, task))
    all_nodes = ["sbatch", "--partition=gpu", "--nodes=8", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert client(all_nodes, 60).returncode == 0
    wait_until(f"the preemption of task {task}", lambda: "queued again" in said(folder, task))


def kill_a_rank(folder: Path, job: str) -> float:
    """SIGKILL for rank 1 between two steps; when that was."""
    wait_until("the training on two nodes", lambda: HELD in said(folder, job))
    (rank,) = processes(SLURM_JOB_ID=job, RANK="1")
    os.kill(rank, signal.SIGKILL)
    return time.time()


def requeued(folder: Path, job: str) -> float:
    """Queue a job again once it has failed; when it had ended."""
    (state,) = of_job(ended([job]), job)
    assert state.state == "FAILED", said(folder, job)
    found = re.search(r"EndTime=(\S+)", client(["scontrol", "show", "job", job], 60).stdout)
    assert found
    assert client(["scontrol", "requeue", job], 60).returncode == 0
    return datetime.fromisoformat(found.group(1)).timestamp()


def processes(**environment: str) -> list[int]:
    """Processes that were started with these variables."""
    wanted, found = {f"{name}={value}".encode() for name, value in environment.items()}, []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            given = set(path.read_bytes().split(b"\0"))
        except OSError:  # it has ended
            continue
        if wanted <= given:
            found.append(int(path.parent.name))
    return found


def broken(root: Path, own: list[str]) -> Submission:
    """A chain whose training is refused: it was submitted for another directory than its values mean."""
    config = composed("submit", own)
    given = [*RUN, "method=simpo", *places(root, "broken")]
    options: Options = build(config.cluster, "cluster")
    whole = planned(trainings(given), config, options)  # type: ignore[arg-type]
    links = [
        replace(link, tasks=tuple(replace(task, run=f"{task.run}-other") for task in link.tasks))
        if link.name == "train"
        else link
        for link in whole.links
    ]
    return replace(whole, links=tuple(links))


def local(root: Path, *given: str) -> list[Path]:
    """The same trainings by ``src.train`` in this process, from data of their own; their directories."""
    for line in combinations([*RUN, *given, f"output_root={root / 'local'}", f"cache_root={root / 'local-cache'}"]):
        outcome = call("src.train", *line)
        assert outcome.code == 0, outcome.err
    return sorted(path.parent for path in (root / "local").glob("*/status.json"))


def said(folder: Path, job: str = "*") -> str:
    """What the jobs of the runs in a folder, or one of them, said."""
    return "".join(path.read_text() for path in sorted(folder.glob(f"*/slurm/*-{job}.out")))


def places(root: Path, name: str) -> list[str]:
    return [f"output_root={root / name}", f"cache_root={root / 'cache'}"]


def jobs_of(root: Path, name: str) -> dict[str, str]:
    (folder,) = (root / name / ".submitted").iterdir()
    return known_jobs(folder)
