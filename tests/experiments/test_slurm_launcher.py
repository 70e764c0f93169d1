"""Tables through SLURM: what is submitted, what the queue's words mean, waiting, and commands that come twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.cluster.states import JobState
from src.config import composed
from src.errors import Problems, UserError
from src.experiments.experiment import find, load
from src.experiments.jobs import Job, Resources, State
from src.experiments.plan import plan_of
from src.experiments.progress import Progress
from src.experiments.scale import read_scale
from src.experiments.slurm import Slurm, SlurmLauncher, fate_of
from tests.entry import assert_says, call, refused
from tests.experiments.fake_slurm import FakeSlurm, slurm
from tests.experiments.small import here, overrides, places
from tests.experiments.test_launcher import Watch

__all__ = ["here", "slurm"]


def settings(**more: Any) -> Slurm:
    """What conf/ says, with other values here and there."""
    node = composed("reproduce", ["launcher=slurm", "paper=amapo", "table=2", "cluster.gpu_type=a100"]).launcher
    given = {str(key): node[key] for key in node if key != "_target_"}
    return Slurm(**given | {"cluster": dict(node.cluster), "poll": 0.02} | more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept from test to test, so that few configurations are composed."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def jobs(here: Path, cache: Path) -> list[Job]:
    """SFT, then MT-Bench of it, then DPO and MT-Bench of it; as at a scale with GPUs."""
    where = dataclasses.replace(places(here), cache_root=str(cache))
    plan = plan_of(load(find("amapo", "small")), read_scale("laptop"), (0,), where)
    gpus = {"train": Resources(2, 8), "mt_bench": Resources(1, 1)}
    found = [dataclasses.replace(job, resources=gpus[job.kind]) for job in plan.jobs.values()]
    assert [job.kind for job in found] == ["train", "mt_bench"] * 2
    return found


def launcher(here: Path, done: set[str] | None = None, **more: Any) -> SlurmLauncher:
    return SlurmLauncher(here / "runs" / ".jobs", lambda job: job.id in (done or set()), settings(**more))


def test_every_job_is_submitted_once_after_what_it_needs(here: Path, jobs: list[Job], slurm: FakeSlurm) -> None:
    said = launcher(here, train_time="24:00:00").submit(jobs, ())
    assert said == ["submitted 4 jobs as 6 arrays of SLURM; 0 were there already", "cancel: scancel 1 2 3 4 5 6"]
    names = [slurm.option(number, "job-name") for number in range(1, 7)]
    kinds = ("train", "train", "mt_bench-evaluate", "mt_bench-evaluate", "mt_bench-judge", "mt_bench-judge")
    assert names == [f"marginalia-{kind}" for kind in kinds]
    waits = [slurm.option(number, "dependency") for number in range(1, 7)]
    assert waits == ["", "afterok:1_0", "aftercorr:1", "aftercorr:2", "aftercorr:3", "aftercorr:4"]
    asked = [(slurm.option(number, "nodes"), slurm.option(number, "gres")) for number in (1, 3, 5)]
    assert asked == [("2", "gpu:a100:8"), ("1", "gpu:a100:1"), ("1", "")]
    assert [slurm.option(number, "time") for number in (1, 3)] == ["24:00:00", ""]
    assert [Path(call[-2]).name for call in slurm.calls[1::2]] == ["sweep.sbatch", "evaluate.sbatch", "judge.sbatch"]
    lines = [json.loads(Path(call[-1]).read_text()) for call in slurm.calls]
    assert (Path(slurm.calls[0][-1]).parents[1] / "conf" / "decoding").is_dir()
    assert [line["config"].get("stage") for line in lines] == [None, None, "generate", "generate", "all", "all"]
    assert [line["run"] for line in lines] == [str(job.run) for job in (jobs[0], jobs[2])] * 3
    assert lines[1]["config"]["training"]["max_steps"] == 2  # resolved: conf/ is not read again
    assert lines[4]["config"]["checkpoint"] == str(jobs[0].run)
    again = launcher(here).state(jobs[1])
    assert again == "missing"  # neither squeue nor sacct knows of them: cancelled before accounting saw them
    slurm.says(t1_0="RUNNING", t2_0="PENDING", t3_0="PENDING", t4_0="PENDING", t5_0="PENDING", t6_0="PENDING")
    assert launcher(here).submit(jobs, ()) == [
        "all 4 missing jobs are in the queue already; nothing is submitted",
    ]
    assert len(slurm.calls) == 6
    assert [launcher(here).state(job) for job in jobs] == ["running", "queued", "queued", "queued"]
    assert launcher(here, {jobs[0].id}).state(jobs[0]) == "done"


def test_what_was_cancelled_is_submitted_again_behind_what_is_still_there(
    here: Path, jobs: list[Job], slurm: FakeSlurm
) -> None:
    launcher(here).submit(jobs[:2], ())
    slurm.says(t1_0="RUNNING", a2_0="CANCELLED by 0", a3_0="CANCELLED")
    there = launcher(here)
    assert [there.state(job) for job in jobs[:2]] == ["running", "missing"]
    assert there.submit(jobs, ())[0] == "submitted 3 jobs as 5 arrays of SLURM; 1 were there already"
    assert {slurm.option(number, "dependency") for number in (4, 5)} == {"afterok:1_0"}


def test_the_table_is_rendered_when_all_have_ended(here: Path, jobs: list[Job], slurm: FakeSlurm) -> None:
    said = launcher(here).submit(jobs[:2], ("paper=amapo", "table=2"))
    assert slurm.option(4, "dependency") == "afterany:1,afterany:2,afterany:3"
    (line,) = [json.loads(text) for text in Path(slurm.calls[3][-1]).read_text().splitlines()]
    assert (line["module"], line["config"]["action"]) == ("src.reproduce", "table")
    assert line["overrides"] == ["paper=amapo", "table=2", "action=table"]
    assert_says(said[1], "job 4 writes the table when all have ended", "/table/4.out")


def test_a_refused_submission_keeps_what_was_taken_and_goes_on_from_there(
    here: Path, jobs: list[Job], slurm: FakeSlurm
) -> None:
    slurm.refuses_after(1)
    with pytest.raises(UserError, match=r"cluster.account=null may not submit here"):
        launcher(here).submit(jobs[:2], ())
    slurm.takes_all()
    slurm.says(t1_0="PENDING")
    assert launcher(here).submit(jobs[:2], ())[0] == "submitted 1 jobs as 2 arrays of SLURM; 1 were there already"
    assert [slurm.option(number, "dependency") for number in (2, 3)] == ["afterok:1_0", "aftercorr:2"]


def test_nothing_is_submitted_where_a_configuration_does_not_compose(
    here: Path, jobs: list[Job], slurm: FakeSlurm
) -> None:
    broken = dataclasses.replace(jobs[1], arguments=(*jobs[1].arguments, "max_items=0"))
    with pytest.raises(Problems, match="max_items=0 is too small"):
        launcher(here).submit([jobs[0], broken], ())
    assert slurm.calls == []
    with pytest.raises(Problems, match=r"cluster\.time=soon is no time limit"):
        settings(train_time="soon")


def ended(*words: str) -> list[JobState | None]:
    """Tasks with these states; "": forgotten."""
    return [JobState(f"1_{number}", word) if word else None for number, word in enumerate(words)]


@pytest.mark.parametrize(
    ("words", "own", "fate"),
    [
        (("COMPLETED", "RUNNING"), "", "running"),
        (("COMPLETED", "PENDING"), "", "queued"),
        (("REQUEUED",), "stopped", "queued"),
        (("COMPLETING",), "running", "running"),
        (("COMPLETED", "COMPLETED"), "", "failed"),  # ended well, but without its result
        (("FAILED", "CANCELLED"), "", "failed"),  # answering failed, so judging was cancelled
        (("COMPLETED", "CANCELLED"), "", "missing"),
        (("TIMEOUT",), "running", "failed"),
        (("OUT_OF_MEMORY",), "running", "failed"),
        (("PREEMPTED",), "running", "missing"),
        (("NODE_FAIL",), "running", "missing"),
        (("COMPLETED",), "stopped", "missing"),
        (("FAILED",), "stopped", "missing"),
        (("",), "failed", "failed"),
        (("",), "", "missing"),
        (("COMPLETED", ""), "", "missing"),
    ],
)
def test_what_slurm_and_the_run_itself_say_is_one_state(
    tmp_path: Path, words: tuple[str, ...], own: str, fate: State
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": own} if own else {}))
    assert fate_of(Job("train", "src.train", (), tmp_path), ended(*words)) == fate


def test_people_see_the_queue_and_why_a_job_failed(here: Path, cache: Path, slurm: FakeSlurm) -> None:
    where = dataclasses.replace(places(here), cache_root=str(cache))
    plan = plan_of(load(find("amapo", "small")), read_scale("laptop"), (0,), where)
    jobs = list(plan.jobs.values())
    launcher(here).submit(jobs, ())
    log = jobs[0].run / "slurm" / "train-1_0.out"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nthe disk is full\nsrun: error: node1: task 0: Exited with exit code 1\n")
    slurm.says(a1_0="OUT_OF_MEMORY", t2_0="RUNNING", t3_0="CANCELLED", t4_0="PENDING", t5_0="CANCELLED", t6_0="PENDING")
    status = "\n".join(Progress(plan, launcher(here), 2).status())
    assert_says(
        status, "0 done, 1 running, 1 queued, 1 failed, 1 missing", "90 s, SLURM 2_0", "waiting: 1 for their turn"
    )
    assert_says(status, "failed: python -m src.train method=sft", "      the disk is full", "SLURM 1_0: OUT_OF_MEMORY")


class Round(Watch):
    """Does something at each look."""

    def __init__(self, *rounds: Callable[[], object]) -> None:
        super().__init__()
        self.rounds = list(rounds)

    def look(self) -> None:
        if self.rounds:
            self.rounds.pop(0)()


def test_waiting_ends_with_the_last_job_and_a_silent_controller_is_waited_for(
    here: Path, jobs: list[Job], slurm: FakeSlurm
) -> None:
    done: set[str] = set()
    watch = Round(
        lambda: slurm.says(t1_0="RUNNING", t2_0="PENDING", t3_0="PENDING"),
        slurm.is_down,
        lambda: (done.add(jobs[0].id), slurm.says(t1_0="COMPLETED", t2_0="RUNNING", t3_0="PENDING")),
        lambda: slurm.says(t1_0="COMPLETED", t2_0="FAILED", t3_0="CANCELLED"),
    )
    slurm.says(t1_0="PENDING", t2_0="PENDING", t3_0="PENDING")
    assert not launcher(here, done).run(jobs[:2], watch)
    said = "\n".join(watch.said)
    assert_says(said, f"started  {jobs[0].name}", "waiting for SLURM: squeue", f"done     [1/2] {jobs[0].name}")
    assert_says(said, f"FAILED   [2/2] {jobs[1].name}", "    SLURM 2_0: FAILED")
    assert said.count("[2/2]") == 1


def test_jobs_are_left_in_the_queue_when_we_are_asked_to_stop(here: Path, jobs: list[Job], slurm: FakeSlurm) -> None:
    slurm.says(t1_0="RUNNING", t2_0="PENDING", t3_0="PENDING")
    watch = Watch(until=lambda: len(watch.said) > 2)
    assert not launcher(here).run(jobs[:2], watch)
    assert watch.said[-1] == "2 jobs stay in the queue and go on; cancel: scancel 1 2 3"
    assert len(slurm.calls) == 3


def test_keys_of_a_cluster_are_read_or_refused(here: Path, slurm: FakeSlurm) -> None:
    assert_says(refused("src.reproduce", *overrides(here), "cluster.partition=x"), "not be read without launcher=slurm")
    said = refused("src.reproduce", *overrides(here), "launcher=slurm", "cluster.nodes=2")
    assert_says(said, "resources", "write launcher.nodes=... for the trainings")


def test_the_table_can_be_looked_at_where_there_is_no_slurm(
    here: Path, jobs: list[Job], cache: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [text for text in (*overrides(here), "launcher=slurm") if not text.startswith("cache_root=")] + [
        f"cluster.cache_root={cache}"
    ]
    said = call("src.reproduce", *given, "action=submit")
    assert said.code == 0, said.err
    assert_says(said.out, "submitted 4 jobs as 6 arrays", "how far it is: python -m src.reproduce", "--status")
    assert json.loads(Path(slurm.calls[0][-1]).read_text())["config"]["cache_root"] == str(cache)
    monkeypatch.setenv("PATH", "/nowhere")
    assert call("src.reproduce", *given, "action=table").code == 0
    assert_says(refused("src.reproduce", *given, "action=status"), "there is no SLURM here")
