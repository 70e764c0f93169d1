"""Run directories, checkpoints and places that cannot be used: what was given, why, and what to write instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.entry import Outcome, assert_says, call, refused, refused_after_run_directory
from tests.support import SMALL_RUN, places

PREFLIGHT, TRAIN, RANKING = "src.preflight", "src.train", "src.evaluation.ranking"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``run``."""
    folder: Path = tmp_path_factory.mktemp("bad")
    outcome = train(folder, f"run_dir={folder / 'run'}")
    assert outcome.code == 0, outcome.err
    return folder


def small(folder: Path, *overrides: str) -> list[str]:
    return [*SMALL_RUN, "method=simpo", *places(folder), *overrides]


def train(folder: Path, *overrides: str) -> Outcome:
    return call(TRAIN, *small(folder, *overrides))


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that says that it is still running."""
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run, symlinks=True)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
    return run


@pytest.mark.parametrize("program", [PREFLIGHT, TRAIN])
def test_run_directory_of_another_configuration(program: str, finished: Path) -> None:
    before = (finished / "run" / "metrics.jsonl").read_bytes()
    message = refused(program, *small(finished, f"run_dir={finished / 'run'}", "method.beta=7"))
    assert_says(
        message, f"{finished / 'run'} holds the run of configuration", "use another run_dir, or leave run_dir out"
    )
    assert (finished / "run" / "metrics.jsonl").read_bytes() == before


def test_checkpoint_of_another_configuration(interrupted: Path, finished: Path) -> None:
    """Found by the checkpoint itself where status.json is lost."""
    (interrupted / "status.json").unlink()
    message = refused_after_run_directory(small(finished, f"run_dir={interrupted}", "method.beta=7"))
    assert_says(
        message, "checkpoints/step-", "was written by configuration", "use another run_dir, or the configuration in"
    )


def test_half_written_checkpoint_is_not_resumed_from(interrupted: Path, finished: Path) -> None:
    last = interrupted / "checkpoints" / "last"
    (last / "COMPLETED").unlink()
    message = refused_after_run_directory(small(finished, f"run_dir={interrupted}"))
    assert_says(message, f"{last} is a half-written checkpoint (it has no COMPLETED file)", "and run the command again")
    last.unlink()
    assert train(finished, f"run_dir={interrupted}").code == 0


def test_half_written_checkpoint_is_not_ranked(interrupted: Path, tmp_path: Path) -> None:
    best = interrupted / "checkpoints" / "best"
    (best / "COMPLETED").unlink()
    message = refused(RANKING, f"checkpoint={interrupted}", f"records_root={tmp_path}")
    assert_says(message, f"{best} is a half-written checkpoint (it has no COMPLETED file)", "and run the command again")
    assert list(tmp_path.glob("*.json")) == []


def test_half_written_folder_beside_a_whole_checkpoint_does_no_harm(interrupted: Path, finished: Path) -> None:
    stray = interrupted / "checkpoints" / "step-00000099"
    stray.mkdir()
    before = (interrupted / "metrics.jsonl").read_bytes()
    assert train(finished, f"run_dir={interrupted}").code == 0
    assert (interrupted / "metrics.jsonl").read_bytes() == before


def test_ranking_a_run_without_checkpoints(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run, ignore=shutil.ignore_patterns("checkpoints"))
    assert_says(refused(RANKING, f"checkpoint={run}"), f"{run} has no checkpoint 'best'", "train it first")


@pytest.mark.parametrize("key", ["output_root", "run_dir", "cache_root"])
@pytest.mark.parametrize("program", [PREFLIGHT, TRAIN])
def test_place_that_cannot_be_written(program: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(program, *SMALL_RUN, *places(tmp_path), f"{key}={tmp_path}/file/below")
    assert_says(message, f"{key}={tmp_path}/file/below cannot be made: {tmp_path}/file is not a directory")
    assert_says(message, f"set {key} to a place where you may write")


def test_records_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(
        RANKING, f"checkpoint={finished / 'run'}", f"records_root={tmp_path}/file/below", f"output_root={tmp_path}"
    )
    assert_says(message, f"the record cannot be written to {tmp_path}/file/below", "give a folder that can be written")
