"""A small table through a real SLURM: a job that fails, one that is cancelled, and then to the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.lab import running
from tests.entry import Outcome, assert_says, call
from tests.experiments.small import TABLE, here, overrides, write
from tests.support import ROOT

__all__ = ["here"]


@pytest.fixture(scope="module")
def lab() -> Iterator[None]:
    """A SLURM of our own, or a reason why none can be started."""
    with TemporaryDirectory(prefix="lab-", dir="/tmp") as folder, running(Path(folder), nodes=2, gpus=0):
        yield  # paths of sockets are short


@pytest.fixture
def python(here: Path) -> Path:
    """What the nodes take for Python: it knows the small table."""
    write(here, TABLE.replace("[SFT, DPO]", "[SFT]"))
    script = here / "python"
    command = f"{sys.executable} -m tests.experiments.on_node {here}"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} OMP_NUM_THREADS=1 exec {command} "$@"\n')
    script.chmod(0o755)
    return script


def queue() -> list[str]:
    """States of the jobs that are in the queue."""
    told = subprocess.run(["squeue", "--me", "--noheader", "--format=%T"], capture_output=True, text=True, check=True)
    return told.stdout.split()


def wait_for(condition: Callable[[], bool], seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, subprocess.run(["squeue"], capture_output=True, text=True, check=False).stdout
        time.sleep(0.5)


@pytest.mark.usefixtures("lab")
def test_a_table_through_slurm(here: Path, python: Path) -> None:
    def reproduced(action: str) -> Outcome:
        return call("src.reproduce", *overrides(here), "launcher=slurm", f"cluster.python={python}", f"action={action}")

    (here / "fail").touch()
    submitted = reproduced("submit")
    assert submitted.code == 0, submitted.err
    assert_says(submitted.out, "submitted 2 jobs as 3 arrays of SLURM; 0 were there already")
    wait_for(lambda: queue() == [])
    status = reproduced("status").out
    assert_says(status, "1 failed, 1 missing", "failed: python -m src.train method=sft", "      the disk is full")

    (here / "fail").rename(here / "sleep")
    submitted = reproduced("submit")
    assert_says(submitted.out, "submitted 2 jobs as 3 arrays of SLURM; 0 were there already")
    wait_for(lambda: "RUNNING" in queue())
    assert_says(reproduced("status").out, "1 running, 1 queued", "waiting: 1 for Dependency")
    assert_says(reproduced("submit").out, "all 2 missing jobs are in the queue already; nothing is submitted")
    cancel = next(line for line in submitted.out.splitlines() if line.startswith("cancel: "))
    subprocess.run(cancel.removeprefix("cancel: ").split(), check=True)
    wait_for(lambda: queue() == [])
    assert_says(reproduced("status").out, "0 done, 0 running, 0 failed, 2 missing")

    (here / "sleep").unlink()
    assert_says(reproduced("submit").out, "submitted 2 jobs as 3 arrays of SLURM; 0 were there already")
    table = here / "tables" / "amapo_tablesmall_laptop.md"
    wait_for(lambda: queue() == [])
    assert "| SFT" in table.read_text()
    (record,) = (here / "records").glob("*.json")
    assert json.loads(record.read_text())["command"].startswith("python -m src.evaluation.mt_bench checkpoint=")
    assert_says(reproduced("submit").out, "nothing is missing")
    assert os.listdir(here / "runs" / ".jobs" / "slurm")
