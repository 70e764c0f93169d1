"""`python -m src.reproduce`: what it says, what it refuses, and a small table made by two processes at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from src import reproduce
from src.experiments.experiment import find, load
from src.experiments.jobs import JOBS, Job
from src.experiments.launcher import Watch
from src.experiments.plan import Plan, plan_of
from src.experiments.progress import Progress, Reporter, labels_of
from src.experiments.scale import read_scale
from tests.entry import Outcome, assert_says, call, refused
from tests.experiments.fakes import Launched
from tests.experiments.small import here, overrides, places

__all__ = ["here"]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept from test to test, so that few configurations are composed."""
    return tmp_path_factory.getbasetemp() / "plans of test_reproduce"


def reproduced(folder: Path, cache: Path, *more: str) -> Outcome:
    """The small table's command, in this process."""
    fixed = [text for text in overrides(folder) if not text.startswith(("output_root", "cache_root"))]
    return call("src.reproduce", *fixed, "output_root=runs-of-no-test", f"cache_root={cache}", *more)


def test_flags_are_words_for_actions() -> None:
    given = ["paper=gapo", "--dry-run", "seeds=3", "--trace", "Llama3-8B-Base/w/o zero/ae2_lc"]
    assert reproduce.translated(given) == [
        *("paper=gapo", "action=dry_run", "seeds=3", "action=trace"),
        "cell='Llama3-8B-Base/w/o zero/ae2_lc'",
    ]
    assert reproduce.translated(["--unknown"]) == ["--unknown"]


def test_what_is_unknown_is_refused_with_what_there_is() -> None:
    assert_says(refused("src.reproduce", "paper=amapi", "table=2"), "did you mean 'amapo'", "gamma_po, gapo, gappo")
    assert_says(refused("src.reproduce", "paper=amapo", "table=77"), "table=77 is none of amapo's", "choose one of: ")
    assert_says(refused("src.reproduce", "paper=amapo", "table=2", "scale=laptops"), "did you mean 'laptop'")
    assert_says(refused("src.reproduce", "paper=amapo"), "table has no value", "(one of ", "figure1, ")
    assert_says(refused("src.reproduce"), "2 problems", "paper=... (one of amapo, gamma_po, gapo, gappo)", "table=...")
    assert_says(refused("src.reproduce", "paper=amapo", "table=2", "seeds=0"), "seeds=0 is too small")
    assert_says(refused("src.reproduce", "paper=amapo", "table=2", "action=dryrun"), "choose one of: run, dry_run")
    assert_says(refused("src.reproduce", "paper=amapo", "table=2", "action=trace"), "a cell is traced by --trace")
    assert_says(refused("src.reproduce", "paper=amapo", "table=2", "launcher=loca"), "launcher=local")


def test_what_is_to_be_done_is_said_and_nothing_started(here: Path, cache: Path) -> None:
    forecast = reproduced(here, cache, "action=dry_run").out
    assert_says(
        forecast, "A small table (2 rows, 2 columns, scale laptop, 1 seed)", "train             2 jobs: 2 missing"
    )
    assert_says(forecast, "mt_bench          2 jobs: 2 missing; about 5 s each")
    commands = reproduced(here, cache, "action=missing").out.splitlines()
    assert [re.sub(r" .*", "", command.removeprefix("python -m src.")) for command in commands] == [
        *("train", "evaluation.mt_bench") * 2,
    ]
    assert_says(reproduced(here, cache, "action=status").out, "0 done, 0 running, 0 failed, 4 missing")
    traced = reproduced(here, cache, "action=trace", "cell=One/DPO/rating").out
    assert_says(
        traced, "run directory runs-of-no-test/dpo__tiny__toy__s0__", "measured by: python -m src.evaluation.mt_bench"
    )
    missing = reproduced(here, cache, "action=trace", "cell=One/DPQ/rating")
    assert (missing.code, missing.out) == (2, "")
    assert_says(missing.err, "no row is called One/DPQ; did you mean 'One/DPO'")
    assert not list(here.glob("*/*.json"))


def test_a_row_is_named_by_its_labels_though_they_hold_slashes(here: Path) -> None:
    path = here / "amapo" / "tablesmall.yaml"
    path.write_text(path.read_text().replace("[SFT, DPO]", "[SFT, w/o margin]"))
    experiment = load(find("amapo", "small"))
    assert labels_of(experiment, "One/w/o margin") == {"model": "One", "method": "w/o margin"}


def test_a_corrupt_record_is_named_and_hides_no_other(here: Path, cache: Path) -> None:
    (here / "records").mkdir()
    (here / "records" / "half.json").write_text('{"benchmark": "mt_')
    said = reproduced(here, cache, "action=status")
    assert said.code == 0
    assert_says(said.err, "half.json is not a usable record", "restore it, or delete it")
    assert_says(said.out, "4 missing")


def test_jobs_that_fail_end_with_the_table_as_far_as_it_is_and_exit_code_1(here: Path, cache: Path) -> None:
    ended = reproduced(here, cache, "launcher._target_=tests.experiments.fakes.Failing")
    assert ended.code == 1, ended.err
    assert_says(ended.out, "—")
    assert_says(
        ended.err, "with 4 at a time", "FAILED   [1/4] sft__tiny__toy", "some jobs failed; see why: ", "--status"
    )


def test_a_table_is_submitted_after_a_look_at_its_jobs(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Process:
        pid = 4711

        def __init__(self, command: list[str], **settings: object) -> None:
            assert settings["start_new_session"]
            started.append(command)

    monkeypatch.setattr(subprocess, "Popen", Process)
    said = reproduced(here, cache, "action=submit", f"output_root={here / 'runs'}")
    assert_says(said.out, "process 4711 is at it", ".jobs/reproduce-", ".log", "--status")
    assert started[0][1:3] == ["-m", "src.reproduce"]
    assert "action=submit" not in started[0]
    assert "table=small" in started[0]


def launched(folder: Path) -> tuple[Plan, Launched]:
    """The plan of the small table, of which nothing is done, and a launcher that says what a test wants."""
    plan = plan_of(load(find("amapo", "small")), read_scale("laptop"), (0,), places(folder))
    return plan, Launched(lambda job: False)


def test_people_see_how_far_each_job_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, launcher = launched(here)
    progress = Progress(plan, launcher, 2)
    launcher.states = {"train": "running", "mt_bench": "failed"}
    launcher.notes = {"train": {"started": time.time() - 2}}
    sft, dpo = [job for job in plan.jobs.values() if job.is_training]
    sft.run.mkdir(parents=True)
    (sft.run / "status.json").write_text('{"state": "running", "total_steps": 80}')
    (sft.run / "timings.jsonl").write_text('{"step": 12, "pairs_per_second": 33.4}\n')
    status = "\n".join(progress.status())
    assert_says(status, "0 done, 2 running, 2 failed, 0 missing; about 0 min left")
    assert_says(status, f"running: {sft.run.name}: step 12/80, 33 pairs/s, 2 s", f"running: {dpo.run.name}: 2 s")
    assert_says(status, "failed: python -m src.evaluation.mt_bench", "      the disk is full")
    reporter = Reporter(progress, [])
    view = "\n".join(map(str, reporter.view()))
    assert_says(view, "0/4", "2 running", f"▸ {sft.run.name}: step 12/80")
    reporter.say("done     [1/4] something")
    assert re.search(r"\[  0\.0 min, about \d+ left\] done     \[1/4\] something", capsys.readouterr().err)
    assert not reporter.stopping
    assert Reporter(progress, [signal.SIGTERM]).stopping


def test_the_time_left_counts_measured_jobs_and_what_running_ones_have_taken(here: Path) -> None:
    plan, launcher = launched(here)
    progress = Progress(plan, launcher, 2)
    assert progress.left(progress.states()) == pytest.approx(20 / 60 / 2)
    launcher.notes = {"mt_bench": {"state": "done", "seconds": 65.0}}
    assert progress.seconds() == {"train": 5.0, "mt_bench": 65.0}
    launcher.states, launcher.notes["train"] = {"train": "running"}, {"started": time.time() - 4}
    assert progress.left(progress.states()) == pytest.approx((130 + 2 * 1) / 60 / 2, rel=0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_to_stop_ends_with_what_goes_on(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def stopped(self: Launched, jobs: list[Job], watch: Watch) -> bool:
        os.kill(os.getpid(), number)
        assert watch.stopping
        return False

    before = signal.getsignal(number)
    monkeypatch.setattr(Launched, "run", stopped)
    ended = reproduced(here, cache, "launcher._target_=tests.experiments.fakes.Failing")
    assert (ended.code, ended.out) == (code, "")
    assert_says(
        ended.err, "stopped; the same command goes on from here: python -m src.reproduce paper=amapo table=small"
    )
    assert signal.getsignal(number) == before


def into(file: Path, folder: Path, cache: Path) -> None:
    """The small table's command in a process forked from this one; its words go to ``file``, then its exit code."""
    ended = call("src.reproduce", *overrides(folder), f"cache_root={cache}")
    file.write_text(json.dumps([ended.code, ended.out, ended.err]))


def test_two_processes_make_a_table_once_and_a_third_finds_nothing_to_do(here: Path, cache: Path) -> None:
    path = here / "amapo" / "tablesmall.yaml"
    path.write_text(path.read_text().replace("[SFT, DPO]", "[SFT]"))
    files = [here / "one.json", here / "two.json"]
    forked = multiprocessing.get_context("fork")  # what takes long to import is there already
    both = [forked.Process(target=into, args=(file, here, cache)) for file in files]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=300)
    (code, out, err), (other_code, other_out, other_err) = (json.loads(file.read_text()) for file in files)
    assert (code, other_code) == (0, 0), (err, other_err)
    assert f"{err}{other_err}".count("started  python -m") == 2
    assert_says(f"{err}{other_err}", "done     [1/2] sft__tiny__toy", "mt_bench of sft__tiny__toy")
    assert table_in(out) == table_in(other_out)
    assert re.search(r"\| SFT .*\d\.\d\d", out)
    (record,) = (here / "records").glob("*.json")
    assert json.loads(record.read_text())["scale"] == "laptop"
    (run,) = (here / "runs").glob("sft__*")
    made = [record, run / "status.json", *(here / "runs" / JOBS).glob("*/status.json")]
    before = [file.stat().st_mtime_ns for file in made]
    again = call("src.reproduce", *overrides(here), f"cache_root={cache}")
    assert again.code == 0
    assert_says(again.err, "nothing is missing")
    assert table_in(again.out) == table_in(out)
    assert [file.stat().st_mtime_ns for file in made] == before


def table_in(text: str) -> list[str]:
    """The lines of a table."""
    return [line for line in text.splitlines() if line.startswith("|")]
