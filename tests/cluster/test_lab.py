"""Real jobs on a SLURM of our own: several nodes, a sweep that is preempted and stopped, chains that end or break."""

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
from omegaconf import OmegaConf

from src.build import build
from src.cluster.batch import Batch, client
from src.cluster.batch import test_only as tried
from src.cluster.chain import Submission, known_jobs, planned, submitted
from src.cluster.manifest import combinations, trainings
from src.cluster.options import Options
from src.cluster.states import JobState, of_job
from src.config import composed
from src.errors import UserError
from src.training.rundir import read_status
from tests.cluster.lab import ended, submit, wait_until
from tests.entry import call
from tests.support import SMALL_RUN, metrics

RUN = (
    *SMALL_RUN, "training.global_batch_size=4", "training.micro_batch_size=1", "training.max_steps=12",
    "evaluation.every_steps=6", "evaluation.max_pairs=4", "checkpoint.every_steps=0", "logging=none",
)  # fmt: skip
SWEEP = ("method=simpo", "method.beta=1,2,3", "seed=range(0,4)")
SEVERAL = ("method=simpo", "method.beta=2", "engine=ddp", "engine.timeout_s=120", "checkpoint.every_steps=2")
SHORT = ("benchmark=toy", "judge=oracle", "max_items=4", "decoding.max_new_tokens=4")
ALPACA = f"alpaca_eval {' '.join(SHORT)}"
PREEMPTED = "SIGTERM: checkpoint written after step "
TIMED_OUT = "STOP file: checkpoint written after step "
MINUTE = 60


@dataclass(frozen=True)
class Done:
    """What was submitted, and how it ended. ``took``: seconds from the death of a rank to the end of its job."""

    root: Path
    states: dict[str, JobState]
    jobs: dict[str, dict[str, str]]
    twice: str
    shown: str
    throttle: str
    took: float

    def of(self, submission: str, link: str) -> list[JobState]:
        """The states of a link's job."""
        return of_job(self.states, self.jobs[submission][link])

    def said(self, submission: str) -> str:
        """All that the jobs of a submission said."""
        return said(self.root / submission)


@pytest.fixture(scope="module")
def done(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Five submissions side by side. Task 0 of the sweep is preempted in its first start and meets its time limit in
    its second; one rank of a training on two nodes is killed, and its job queued again."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_EXEC", str(python))  # what torchrun starts ranks by
        own = [f"cluster.python={python}", "cluster.time='1:00:00'"]
        sweep = [*RUN, *SWEEP, *places(root, "sweep")]
        asked = [*own, "cluster.signal_seconds=59", "cluster.partition=low", "cluster.throttle=3"]
        patch.setenv("WARM_PAUSES", json.dumps({"0": [2, 9], "": [0.2]}))
        first = submit(asked, sweep)
        assert first.code == 0, first.err
        array = jobs_of(root, "sweep")["train"]
        throttle = client(["scontrol", "show", "job", array], 60).stdout
        preempt(root / "sweep")
        assert client(["scontrol", "update", f"JobId={array}_0", "TimeLimit=2"], 60).returncode == 0
        patch.setenv("WARM_PIDS", str(tmp_path_factory.mktemp("pids")))
        nodes = [*own, "cluster.nodes=2", "cluster.ranks_per_node=2"]
        for name, pauses in (("killed", [2]), ("several", [0])):
            patch.setenv("WARM_PAUSES", json.dumps({"": pauses}))
            assert submit(nodes, [*RUN, *SEVERAL, *places(root, name)]).code == 0
        evaluations = [f"records_root={root}/records", f"evaluations_root={root}/kept", f"report={root}/report"]
        chain = [*RUN, "method=dpo", *places(root, "chain")]
        whole = submit([*own, *evaluations, "chain=true", f"evaluations=[ranking,'{ALPACA}']"], chain)
        assert whole.code == 0, whole.err
        submitted(broken(root, [*own, *evaluations, "chain=true"]))
        again = [*RUN, *SEVERAL, *places(root, "killed")]
        twice, shown = submit(nodes, again).err, submit([*nodes, "action=status"], again).out
        took = kill_a_rank(root / "killed", jobs_of(root, "killed")["train"], Path(os.environ["WARM_PIDS"]))
    jobs = {name: jobs_of(root, name) for name in ("sweep", "several", "killed", "chain", "broken")}
    found = ended([job for links in jobs.values() for job in links.values()])
    return Done(root, found, jobs, twice, shown, throttle, took)


def preempt(folder: Path) -> None:
    """Once task 0 trains: a job that takes all nodes, until the task was told so."""
    wait_until(lambda: any(step_of(log.parents[1]) >= 1 for log in folder.glob("*/slurm/train-*_0.out")))
    everything = ["sbatch", "--partition=gpu", "--nodes=8", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert client(everything, 60).returncode == 0
    wait_until(lambda: any(PREEMPTED in log.read_text() for log in folder.glob("*/slurm/train-*_0.out")))


def kill_a_rank(folder: Path, job: str, pids: Path) -> float:
    """SIGKILL for rank 1 after the first checkpoint; once the job has ended, queue it again. Seconds to its end."""
    wait_until(lambda: any(step_of(run) >= 3 for run in folder.glob("simpo*")))
    os.kill(int((pids / f"{job}-0-1").read_text()), signal.SIGKILL)
    since = time.monotonic()
    ((state,),) = [of_job(ended([job]), job)]
    took = time.monotonic() - since
    assert state.state == "FAILED", state
    assert client(["scontrol", "requeue", job], 60).returncode == 0
    return took


def step_of(run: Path) -> int:
    """Steps that a run has made in this start."""
    status = read_status(run)
    return int(status.get("step", 0)) if status.get("state") == "running" else 0


def said(folder: Path) -> str:
    """All that jobs of the runs in a folder said."""
    return "".join(path.read_text() for path in sorted(folder.glob("*/slurm/*.out")))


def places(root: Path, name: str) -> list[str]:
    return [f"output_root={root / name}", f"cache_root={root / 'cache'}"]


def jobs_of(root: Path, name: str) -> dict[str, str]:
    (folder,) = (root / name / ".submitted").iterdir()
    return known_jobs(folder)


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
    """The same trainings by ``src.train`` in this process."""
    for line in combinations([*RUN, *given, f"output_root={root / 'local'}", f"cache_root={root / 'cache'}"]):
        outcome = call("src.train", *line)
        assert outcome.code == 0, outcome.err
    return sorted(path for path in (root / "local").iterdir() if read_status(path).get("state") == "finished")


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: metrics, and the last and the best weights."""
    assert one.name == other.name
    weights = [f"checkpoints/{which}/model/model.safetensors" for which in ("last", "best")]
    for file in ("metrics.jsonl", *weights):
        assert (one / file).read_bytes() == (other / file).read_bytes(), (one.name, file)


def test_a_sweep_ends_complete_and_as_local_runs(done: Done, tmp_path: Path) -> None:
    assert [one.state for one in done.of("sweep", "train")] == ["COMPLETED"] * 12
    runs = sorted((done.root / "sweep").glob("simpo*"))
    assert [read_status(run)["state"] for run in runs] == ["finished"] * 12
    for mine, alone in zip(runs, local(tmp_path, *SWEEP), strict=True):
        same_run(mine, alone)


def test_a_task_goes_on_after_preemption_and_after_its_time_limit(done: Done) -> None:
    array = done.jobs["sweep"]["train"]
    (log,) = [path.read_text() for path in (done.root / "sweep").glob(f"*/slurm/train-{array}_0.out")]
    starts = re.split(r"(?=slurm: .* start \d)", log)[1:]
    assert len(starts) >= 3, log
    assert all("queued again" in start for start in starts[:-1]), log
    (preempted, *_), (timed_out, *_) = ([start for start in starts if word in start] for word in (PREEMPTED, TIMED_OUT))
    assert preempted != timed_out
    assert "asked to stop" in timed_out, log
    first, stopped = (datetime.fromisoformat(time) for time in re.findall(r"slurm: (\d\S+ \S+)", timed_out)[:2])
    assert (stopped - first).total_seconds() > 25, "the limit is two minutes, the signal a minute or more before"
    assert "Traceback" not in done.said("sweep")
    assert "ArrayTaskThrottle=3" in done.throttle


def swept(run: Path) -> tuple[float, int]:
    """beta and seed of a run."""
    config = OmegaConf.load(run / "config.yaml")
    return config.method.beta, config.seed


def losses(run: Path) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in metrics(run, "train")]


def test_what_is_under_way_is_not_submitted_again(done: Done) -> None:
    job = done.jobs["killed"]["train"]
    assert f"this is submitted already, as job {job}; see how far it is with --status" in done.twice
    assert done.shown.startswith(f"train: job {job}: ")


def test_two_nodes_of_two_ranks(done: Done) -> None:
    ((state,), log) = done.of("several", "train"), done.said("several")
    (run,) = (done.root / "several").glob("simpo*")
    assert (state.state, read_status(run).get("state")) == ("COMPLETED", "finished"), log
    (other,) = (path for path in (done.root / "sweep").glob("simpo*s0*") if swept(path) == (2.0, 0))
    for mine, alone in zip(losses(run), losses(other), strict=True):
        assert mine == pytest.approx(alone, abs=1e-5)


def test_a_killed_rank_ends_the_job_and_the_next_start_gives_the_uninterrupted_run(done: Done) -> None:
    ((state,), log) = done.of("killed", "train"), done.said("killed")
    assert done.took < MINUTE
    assert state.state == "COMPLETED", log
    assert "start 2" in log
    assert " step 1/12 " not in log.rpartition("start 2")[2], "it goes on from its checkpoint"
    (run,), (other,) = ((done.root / name).glob("simpo*") for name in ("killed", "several"))
    same_run(run, other)


def test_a_chain_ends_in_a_report(done: Done, tmp_path: Path) -> None:
    links = ["prepare", "reference", "train", "evaluate_ranking", "evaluate_alpaca_eval", "judge_alpaca_eval", "report"]
    assert list(done.jobs["chain"]) == links
    assert {name: done.of("chain", name)[0].state for name in links} == dict.fromkeys(links, "COMPLETED")
    (run,) = (done.root / "chain").glob("dpo*")
    assert "reference log-probs: computing" not in done.said("chain"), "the link before it computed them"
    kept = ["checkpoint=" + str(run), f"records_root={tmp_path}/records", f"output_root={tmp_path}/kept"]
    for program, given in (("ranking", ()), ("alpaca_eval", SHORT)):
        assert call(f"src.evaluation.{program}", *kept, *given).code == 0
    mine, alone = (
        {path.name: path for path in (folder / "records").glob("*.json")} for folder in (done.root, tmp_path)
    )
    assert len(mine) == 2
    assert mine.keys() == alone.keys()
    for name, path in mine.items():
        one, other = json.loads(path.read_text()), json.loads(alone[name].read_text())
        assert one["run"]["directory"] == str(run)
        assert one["metrics"] == other["metrics"]
    text = (done.root / "report" / "report.html").read_text()
    assert run.name in text
    assert "alpaca_eval" in text
    assert list((done.root / "report" / "tables").iterdir())


def test_a_broken_link_cancels_those_that_need_it(done: Done) -> None:
    found = {name: done.of("broken", name)[0].state for name in done.jobs["broken"]}
    after = {"train": "FAILED", "evaluate_ranking": "CANCELLED", "report": "CANCELLED"}
    assert found == {"prepare": "COMPLETED"} | after
    (log,) = (done.root / "broken").rglob("train-*.out")
    assert "it has changed since. Submit again" in log.read_text()


PAPERS = ("amapo", "gamma_simpo", "gappo", "gapo", "dpo", "simpo")


@pytest.mark.parametrize("method", PAPERS)
def test_slurm_would_take_the_papers_sizes(python: Path, tmp_path: Path, method: str) -> None:
    size = ["cluster.nodes=8", "cluster.gpus_per_node=8", "cluster.gpu_type=a100", "cluster.time='20:00:00'"]
    given = [
        f"method={method}",
        "model=mistral_7b_instruct",
        "dataset=toy",
        f"engine={'ddp' if method == 'gapo' else 'fsdp2'}",
        *places(tmp_path, "runs"),
    ]
    batch = ["training.micro_batch_size=1", "training.global_batch_size=128"]
    outcome = submit([*size, "chain=true", "action=test_only"], [*given, *batch])
    assert outcome.code == 0, outcome.err
    train = next(line for line in outcome.out.splitlines() if line.startswith("train: "))
    assert re.search(r"to start at .* on nodes node\[1-8\]", train), outcome.out


def test_what_the_cluster_does_not_have_is_named(python: Path, tmp_path: Path) -> None:
    def refusal(**changes: object) -> str:
        options = replace(Options(time="1:00:00"), **changes)  # type: ignore[arg-type]
        batch = Batch("marginalia-train", "train.sbatch", ("m", "0"), tmp_path, tmp_path / "%j.out", options)
        with pytest.raises(UserError) as caught:
            tried(batch)
        return str(caught.value)

    offered = "cluster.partition=gpu: 8 nodes, each gpu:a100:8, 16 CPUs"
    for changes, words in (
        ({"nodes": 9}, "no partition can ever give this: cluster.nodes=9 with cluster.gpus_per_node=1"),
        ({"gpu_type": "h100"}, "cluster.gpus_per_node=1 cluster.gpu_type=h100"),
        ({"gpus_per_node": 9}, "cluster.gpus_per_node=9"),
        ({"partition": "fast"}, "cluster.partition=fast does not exist"),
        ({"time": "3-00:00:00"}, "cluster.time=3-00:00:00 is more than the partition allows"),
    ):
        found = refusal(**changes)
        assert words in found, found
        assert offered in found, found


def test_without_a_controller_the_wait_is_short(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nNodeName=n\nPartitionName=p Nodes=n\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(UserError, match=r"squeue (did not answer within 2 s|finds no cluster)"):
        client(["squeue"], 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no SLURM here: the command sbatch is not found"):
        client(["sbatch"], 2)
