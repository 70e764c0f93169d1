"""Real jobs on a SLURM of our own: several nodes, a sweep that is preempted and stopped, chains that end or break."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from omegaconf import OmegaConf

from src.cluster.batch import Batch, client
from src.cluster.batch import test_only as tried
from src.cluster.options import Options
from src.errors import UserError
from src.training.rundir import read_status
from tests.cluster.events import JUDGED, Done, everything, places
from tests.cluster.lab import running, submit, warm_python
from tests.entry import call
from tests.support import metrics

MINUTE = 60


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """An 8-node × 8-GPU cluster, and the interpreter of its jobs."""
    with ExitStack() as until_the_end:
        # the lab's name is its own on this machine, and paths of sockets are short
        folder = Path(until_the_end.enter_context(TemporaryDirectory(prefix="lab-", dir="/tmp")))
        until_the_end.enter_context(running(folder / folder.name, nodes=8, gpus=8))
        yield until_the_end.enter_context(warm_python(folder))


@pytest.fixture(scope="module")
def done(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All that these tests look at, submitted at once and awaited together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_EXEC", str(python))  # what torchrun starts ranks by
        return everything(python, tmp_path_factory.mktemp("runs"))


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: metrics, and the last and the best weights."""
    assert one.name == other.name
    weights = [f"checkpoints/{which}/model/model.safetensors" for which in ("last", "best")]
    for file in ("metrics.jsonl", *weights):
        assert (one / file).read_bytes() == (other / file).read_bytes(), (one.name, file)


def test_a_sweep_ends_complete_and_as_local_runs(done: Done) -> None:
    assert [one.state for one in done.of("sweep", "train")] == ["COMPLETED"] * 12, done.said("sweep")
    assert "ArrayTaskThrottle=4" in done.throttle
    runs = sorted(path.parent for path in (done.root / "sweep").glob("*/slurm"))
    assert len(runs) == 12
    for mine, alone in zip(runs, done.alone, strict=True):
        assert read_status(mine)["state"] == "finished"
        same_run(mine, alone)
    assert "Traceback" not in done.said("sweep"), done.said("sweep")


def test_a_task_goes_on_after_preemption_and_after_its_time_limit(done: Done) -> None:
    log = done.said("sweep", f"{done.jobs['sweep']['train']}_0")
    preempted, timed_out, *_, last = re.split(r"(?=slurm: .* start \d)", log)[1:]
    assert "SIGTERM: checkpoint written after step 2;" in preempted, log
    assert "STOP file: checkpoint written after step 4;" in timed_out, log
    assert "asked to stop" in timed_out, log
    assert "queued again" in preempted, log
    assert "queued again" in timed_out, log
    assert " step 4/12 " not in last, "it goes on from its checkpoint"
    assert "finished: " in last, log
    first, asked = (datetime.fromisoformat(time) for time in re.findall(r"slurm: (\d\S+ \S+)", timed_out)[:2])
    assert 30 <= (asked - first).total_seconds() < 2 * MINUTE, log


def test_a_killed_rank_ends_the_job_and_the_next_start_gives_the_uninterrupted_run(done: Done) -> None:
    ((state,), log) = done.of("killed", "train"), done.said("killed")
    assert 0 <= round(done.took) < MINUTE, log
    assert state.state == "COMPLETED", log
    killed, again = re.split(r"(?=slurm: .* start \d)", log)[1:]
    assert "ended with exit code" in killed, log
    assert "finished: " in again, log
    assert " step 2/12 " not in again, "it goes on from its checkpoint"
    same_run(done.run("killed"), done.run("several"))


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
    assert done.shown.startswith(f"train: job {array}: "), done.shown
    assert "running at step " in done.shown or "stopped at step " in done.shown, done.shown


def test_two_nodes_of_two_ranks(done: Done) -> None:
    ((state,), log) = done.of("several", "train"), done.said("several")
    run = done.run("several")
    assert (state.state, read_status(run).get("state")) == ("COMPLETED", "finished"), log
    (other,) = (path for path in done.alone if swept(path) == (2.0, 0))
    for mine, alone in zip(losses(run), losses(other), strict=True):
        assert mine == pytest.approx(alone, abs=1e-5)


def test_a_chain_ends_in_a_judged_table(done: Done, tmp_path: Path) -> None:
    links = ["prepare", "reference", "train", "evaluate_ranking", "evaluate_alpaca_eval", "judge_alpaca_eval", "report"]
    assert list(done.jobs["chain"]) == links
    found = {name: done.of("chain", name)[0].state for name in links}
    assert found == dict.fromkeys(links, "COMPLETED"), done.said("chain")
    assert "reference log-probs: computing" not in done.said("chain"), "the link before it computed them"
    run = done.run("chain")
    kept = [f"checkpoint={run}", f"records_root={tmp_path}/records", f"output_root={tmp_path}/kept"]
    for program, given in (("ranking", ()), ("alpaca_eval", JUDGED)):
        outcome = call(f"src.evaluation.{program}", *kept, *given)
        assert outcome.code == 0, outcome.err
    mine, alone = ({path.name: path for path in (root / "records").glob("*.json")} for root in (done.root, tmp_path))
    assert len(mine) == 2
    assert mine.keys() == alone.keys()
    for name, path in mine.items():
        one, other = json.loads(path.read_text()), json.loads(alone[name].read_text())
        assert one["run"]["directory"] == str(run)
        assert one["metrics"] == other["metrics"]
    rate = next(json.loads(path.read_text()) for name, path in mine.items() if "alpaca" in name)["metrics"]["win_rate"]
    with (done.root / "report" / "tables" / "results.csv").open() as table:
        (row,) = (row for row in csv.DictReader(table) if (row["metric"], row["method"]) == ("win_rate", "dpo"))
    assert row["benchmark"] == "alpaca_eval"
    assert float(row["value"]) == rate["value"]
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
