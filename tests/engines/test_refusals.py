"""Launches that cannot work, as a user makes them: refused before anything is computed, with what to write instead."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf

from src.config import compose_train, config_hash
from src.engine.ranks import ranks
from tests.entry import assert_says, call, refused
from tests.support import SMALL_RUN, places

TRAIN = "src.train"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
LAUNCHERS += ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that no launcher has touched, and no rank remembered from test to test."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    ranks.cache_clear()
    yield monkeypatch
    ranks.cache_clear()


def small(folder: Path, *overrides: str) -> list[str]:
    return ["method=simpo", *SMALL_RUN, *places(folder), *overrides]


def launched(launcher: pytest.MonkeyPatch, rank: int, size: int, port: int | None = None) -> None:
    """The environment of one of several ranks; without ``port`` nothing says where they meet."""
    launcher.setenv("RANK", str(rank))
    launcher.setenv("WORLD_SIZE", str(size))
    if port is not None:
        launcher.setenv("MASTER_ADDR", "127.0.0.1")
        launcher.setenv("MASTER_PORT", str(port))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(
    ("size", "overrides", "fragments"),
    [
        (1, ["engine=ddp"], ["engine=ddp is for several processes, and this one was started alone", "torchrun"]),
        (2, ["engine=single"], ["engine=single was started by a launcher as one of 2 processes", "engine=ddp, fsdp2"]),
        (4, ["engine=ddp"], ["divided among 4 ranks of training.micro_batch_size=4", "micro_batch_size=2"]),
        (3, ["engine=fsdp2"], ["whatever the micro-batch; use a number of ranks that divides 8, such as 2"]),
        (
            2,
            ["engine=ddp", "method=gamma_simpo", "method.queue_scope=rank"],
            ["method.queue_scope=rank keeps a queue of margins for each rank", "use method.queue_scope=global"],
        ),
        (
            2,
            ["engine=fsdp2", "engine.bucket_mb=25"],
            ["engine.bucket_mb=25.0 would not be read with engine=fsdp2; leave it out"],
        ),
        (
            2,
            ["engine=zero2", "engine.persistence_threshold=1"],
            ["engine.persistence_threshold=1 would not be read with engine=zero2; leave it out"],
        ),
        (
            2,
            ["engine=fsdp2_offload", "method=simpo_sam"],
            ["engine=fsdp2_offload keeps states in the memory of the CPU", "use engine=fsdp2,"],
        ),
        (
            2,
            ["engine=ddp"],
            ["this process is rank 0 of 2, but MASTER_ADDR and MASTER_PORT do not say where", "torchrun"],
        ),
    ],
)
def test_refused(
    size: int, overrides: list[str], fragments: list[str], tmp_path: Path, launcher: pytest.MonkeyPatch
) -> None:
    if size > 1:
        launched(launcher, 0, size)
    assert_says(refused(TRAIN, *small(tmp_path, *overrides)), *fragments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("engine", "variable"),
    [("single", "SLURM_STEP_NUM_TASKS"), ("fsdp2", "OMPI_COMM_WORLD_SIZE"), ("single", "PMI_SIZE")],
)
def test_processes_that_do_not_know_of_each_other(
    engine: str, variable: str, tmp_path: Path, launcher: pytest.MonkeyPatch
) -> None:
    """As ``srun python`` or ``mpirun python`` start them: each would train the whole run alone."""
    launcher.setenv(variable, "2")
    message = refused(TRAIN, *small(tmp_path, f"engine={engine}"))
    assert_says(message, "a launcher started 2 processes without telling them of each other", "one torchrun per")


@pytest.mark.parametrize("engine", ["zero2", "zero3_offload"])
def test_an_engine_without_its_package(engine: str, tmp_path: Path, launcher: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    launcher.setattr("importlib.util.find_spec", lambda name, *a: None if name == "deepspeed" else found(name, *a))
    launched(launcher, 0, 2)
    message = refused(TRAIN, *small(tmp_path, f"engine={engine}"))
    assert_says(message, f"engine={engine} needs the package deepspeed", "requirements/cluster.txt", "engine=fsdp2")


def test_a_missing_rank_is_named(tmp_path: Path, launcher: pytest.MonkeyPatch) -> None:
    launched(launcher, 0, 2, free_port())
    message = refused(TRAIN, *small(tmp_path, "engine=ddp", "engine.timeout_s=0.5"))
    assert_says(message, f"rank 1 of 2 has not come within 0.5 s; here are those on {socket.gethostname()}")


def test_a_missing_meeting_place_is_named(tmp_path: Path, launcher: pytest.MonkeyPatch) -> None:
    port = free_port()
    launched(launcher, 1, 2, port)
    message = refused(TRAIN, *small(tmp_path, "engine=ddp", "engine.timeout_s=0.5"))
    assert_says(message, f"rank 1 of 2 found nobody at 127.0.0.1:{port} within 0.5 s", "look whether rank 0 runs")


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_a_run_directory_of_another_engine(engine: str, tmp_path: Path) -> None:
    overrides = small(tmp_path, f"run_dir={tmp_path / 'run'}")
    there = compose_train([*overrides, f"engine={engine}"])
    other = config_hash(there)
    (tmp_path / "run").mkdir()
    OmegaConf.save(cast(DictConfig, there), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "status.json").write_text(json.dumps({"state": "stopped", "config_hash": other}))
    message = refused(TRAIN, *overrides, "engine=single")
    assert_says(message, f"holds the run of configuration {other}", "use another run_dir, or leave run_dir out")
    assert_says(message, f" (engine.name={engine} there, single here); ")


def test_a_stop_file_of_an_earlier_run_is_removed_and_said(tmp_path: Path, launcher: pytest.MonkeyPatch) -> None:
    named, run = tmp_path / "flag", tmp_path / "run"
    launcher.setenv("MARGINALIA_STOP_FILE", str(named))
    run.mkdir()
    stale = [run / "STOP", named]
    for path in stale:
        path.touch()
    short = ["training.max_steps=1", "evaluation.every_steps=0", "evaluation.max_pairs=2", f"run_dir={run}"]
    ended = call(TRAIN, *small(tmp_path, *short))
    assert ended.code == 0, ended.err
    for path in stale:
        assert_says(ended.err, f"{path} was there before the run started, so it is of an earlier one: removed")
        assert not path.exists()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
