"""Real jobs on a SLURM of our own: several nodes, a sweep that is preempted and stopped, chains that end or break."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.build import build
from src.cluster.batch import Batch, client
from src.cluster.batch import test_only as tried
from src.cluster.chain import Submission, known_jobs, planned, submitted
from src.cluster.manifest import trainings
from src.cluster.options import Options
from src.cluster.states import JobState, of_job, states
from src.config import composed
from src.errors import UserError
from src.training.rundir import read_status
from tests.cluster.lab import ended, running, submit, wait_until, warm_python
from tests.entry import call
from tests.support import SMALL_RUN, metrics

STEPS = 40
RUN = (
    *SMALL_RUN, "training.global_batch_size=4", "training.micro_batch_size=1", f"training.max_steps={STEPS}",
    "evaluation.every_steps=20", "checkpoint.every_steps=0", "logging=none",
)  # fmt: skip
SWEEP = ("method=simpo", "method.beta=1,2,3", "seed=range(0,4)")


@dataclass(frozen=True)
class Done:
    """What was submitted, and how it ended."""

    root: Path
    states: dict[str, JobState]
    jobs: dict[str, dict[str, str]]
    twice: str
    shown: str

    def of(self, submission: str, link: str) -> list[JobState]:
        """The states of a link's job."""
        return of_job(self.states, self.jobs[submission][link])


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An 8-node × 8-GPU cluster, and the interpreter of its jobs."""
    with ExitStack() as until_the_end:
        lab = tmp_path_factory.mktemp("lab")
        until_the_end.enter_context(running(lab / "slurm", nodes=8, gpus=8))
        yield until_the_end.enter_context(warm_python(lab))


@pytest.fixture(scope="module")
def done(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Four submissions at once; the sweep is preempted while it runs, and one of its tasks told that time is up."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_EXEC", str(python))  # what torchrun starts ranks by
        own = [f"cluster.python={python}", "cluster.time='1:00:00'"]
        sweep = [*RUN, *SWEEP, *places(root, "sweep")]
        asked = [*own, "cluster.partition=low", "cluster.throttle=3"]
        first = submit(asked, sweep)
        assert first.code == 0, first.err
        array = job_of(root, "sweep", "train")
        interrupt(root, array)
        twice = submit(asked, sweep).err
        shown = submit([*asked, "action=status"], sweep).out
        several = [*RUN, "method=simpo", "method.beta=2", "engine=ddp", *places(root, "several")]
        assert submit([*own, "cluster.nodes=2", "cluster.ranks_per_node=2"], several).code == 0
        evaluations = [f"records_root={root}/records", f"evaluations_root={root}/kept", f"report={root}/report"]
        chain = [*RUN, "method=dpo", *places(root, "chain")]
        assert submit([*own, *evaluations, "chain=true", "evaluations=[ranking]"], chain).code == 0
        submitted(broken(root, [*own, *evaluations, "chain=true"]))
    jobs = {name: jobs_of(root, name) for name in ("sweep", "several", "chain", "broken")}
    found = ended([job for links in jobs.values() for job in links.values()])
    return Done(root, found, jobs, twice, shown)


def places(root: Path, name: str) -> list[str]:
    return [f"output_root={root / name}", f"cache_root={root / 'cache'}"]


def jobs_of(root: Path, name: str) -> dict[str, str]:
    (folder,) = (root / name / ".submitted").iterdir()
    return known_jobs(folder)


def job_of(root: Path, name: str, link: str) -> str:
    return jobs_of(root, name)[link]


def interrupt(root: Path, array: str) -> None:
    """Once the first tasks train: a job that takes all nodes; then USR1 to one that goes on, as before a time limit."""
    wait_until(lambda: any(read_status(run).get("state") == "running" for run in (root / "sweep").glob("simpo*")))
    everything = ["sbatch", "--partition=gpu", "--nodes=8", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert client(everything, 60).returncode == 0
    wait_until(lambda: said(root, "queued again") >= 1)
    wait_until(lambda: bool(at_work(root, array)))
    # it tries for a minute with tasks of an array, whether or not they have it
    with subprocess.Popen(["scancel", "--batch", "--signal=USR1", at_work(root, array)[0]]) as signaller:
        wait_until(lambda: said(root, "asked to stop") > 0)
        signaller.kill()


def at_work(root: Path, array: str) -> list[str]:
    """Tasks that run, and have not been told to stop."""
    found = [one.id for one in states([array]).values() if one.state == "RUNNING"]
    logs = {
        one: "".join(path.read_text() for path in (root / "sweep").glob(f"*/slurm/train-{one}.out")) for one in found
    }
    return [one for one, text in logs.items() if "run directory" in text.rpartition("slurm: ")[2]]


def said(root: Path, words: str) -> int:
    """How often the sweep's jobs said it."""
    return sum(path.read_text().count(words) for path in (root / "sweep").glob("*/slurm/*.out"))


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


def local(root: Path, *given: str) -> Path:
    """The same training by ``src.train`` in this process."""
    outcome = call("src.train", *RUN, *given, f"output_root={root / 'local'}", f"cache_root={root / 'cache'}")
    assert outcome.code == 0, outcome.err
    (run,) = (path for path in (root / "local").iterdir() if read_status(path).get("state") == "finished")
    return run


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: metrics, and the last weights."""
    assert one.name == other.name
    for file in (
        "metrics.jsonl",
        "checkpoints/last/model/model.safetensors",
        "checkpoints/best/model/model.safetensors",
    ):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_sweep_ends_complete_and_as_a_local_run(done: Done, tmp_path: Path) -> None:
    found = done.of("sweep", "train")
    assert [one.state for one in found] == ["COMPLETED"] * 12
    runs = sorted((done.root / "sweep").glob("simpo*"))
    assert [read_status(run)["state"] for run in runs] == ["finished"] * 12
    logs = {run: "".join(path.read_text() for path in (run / "slurm").glob("*.out")) for run in runs}
    stopped = [run for run, text in logs.items() if "queued again" in text]
    assert stopped
    assert all("start 2" in logs[run] for run in stopped)
    assert any("asked to stop" in text for text in logs.values())
    assert [text for text in logs.values() if "Traceback" in text] == []
    beta, seed = swept(stopped[0])
    same_run(local(tmp_path, "method=simpo", f"method.beta={beta:g}", f"seed={seed}"), stopped[0])


def swept(run: Path) -> tuple[float, int]:
    """beta and seed of a run."""
    config = OmegaConf.load(run / "config.yaml")
    return config.method.beta, config.seed


def losses(run: Path) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in metrics(run, "train")]


def test_what_is_under_way_is_not_submitted_again(done: Done) -> None:
    array = done.jobs["sweep"]["train"]
    assert f"this is submitted already, as job {array}; see how far it is with --status" in done.twice
    assert done.shown.startswith(f"train: job {array}: ")
    assert "running at step " in done.shown or "stopped at step " in done.shown


def test_two_nodes_of_two_ranks(done: Done) -> None:
    (state,) = done.of("several", "train")
    (run,) = (done.root / "several").glob("simpo*")
    log = "".join(path.read_text() for path in (run / "slurm").glob("*.out"))
    assert (state.state, read_status(run).get("state")) == ("COMPLETED", "finished"), log
    (other,) = (path for path in (done.root / "sweep").glob("simpo*s0*") if swept(path) == (2.0, 0))
    for mine, alone in zip(losses(run), losses(other), strict=True):
        assert mine == pytest.approx(alone, abs=1e-5)


def test_a_chain_ends_in_a_report(done: Done) -> None:
    assert set(done.jobs["chain"]) == {"prepare", "reference", "train", "evaluate_ranking", "report"}
    assert {name: done.of("chain", name)[0].state for name in done.jobs["chain"]} == dict.fromkeys(
        done.jobs["chain"], "COMPLETED"
    )
    (run,) = (done.root / "chain").glob("dpo*")
    log = "".join(path.read_text() for path in (run / "slurm").glob("*.out"))
    assert "reference log-probs: computing" not in log, "the link before it computed them"
    (record,) = (done.root / "records").glob("*.json")
    assert json.loads(record.read_text())["run"]["directory"] == str(run)
    assert run.name in (done.root / "report" / "report.html").read_text()


def test_a_broken_link_cancels_those_that_need_it(done: Done) -> None:
    found = {name: done.of("broken", name)[0].state for name in done.jobs["broken"]}
    after = {"train": "FAILED", "evaluate_ranking": "CANCELLED", "report": "CANCELLED"}
    assert found == {"prepare": "COMPLETED"} | after
    (log,) = (done.root / "broken").rglob("train-*.out")
    assert "it has changed since. Submit again" in log.read_text()


PAPERS = (("amapo", "fsdp2"), ("gamma_simpo", "fsdp2"), ("gapo", "ddp"), ("gappo", "fsdp2"))


@pytest.mark.parametrize(("method", "engine"), PAPERS)
def test_slurm_would_take_the_papers_sizes(python: Path, tmp_path: Path, method: str, engine: str) -> None:
    size = ["cluster.nodes=8", "cluster.gpus_per_node=8", "cluster.gpu_type=a100", "cluster.time='20:00:00'"]
    given = [
        f"method={method}",
        "model=mistral_7b_instruct",
        "dataset=toy",
        f"engine={engine}",
        *places(tmp_path, "runs"),
    ]
    batch = ["training.micro_batch_size=1", "training.global_batch_size=128"]
    outcome = submit([*size, "chain=true", "action=test_only"], [*given, *batch])
    assert outcome.code == 0, outcome.err
    assert "using 128 processors on nodes" in outcome.out or "to start at" in outcome.out


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
        ({"gpu_type": "h100"}, "cluster.gpus_per_node=1, cluster.gpu_type=h100"),
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
