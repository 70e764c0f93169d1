"""A SLURM of our own for the tests of a module (slurm/lab), with everything submitted at once and awaited together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from src.cluster.states import JobState, of_job, states
from src.config import ROOT
from src.submit import main
from tests.cluster.warm import client
from tests.entry import Outcome, call

LAB = ROOT / "slurm" / "lab"
PATIENCE = 900
"""Seconds until what should have happened is given up; the machines of the tests are busy."""


@contextmanager
def running(folder: Path, nodes: int, gpus: int) -> Iterator[None]:
    """A lab in ``folder``; the variables that lead to it are set meanwhile. Skips where none can be started."""
    port = 26000 + 1200 * (os.getpid() % 20)
    settings = {"LAB_NODES": str(nodes), "LAB_GPUS": str(gpus), "LAB_PORT": str(port)}
    up = subprocess.run(
        [str(LAB / "up.sh"), str(folder)], env=os.environ | settings, capture_output=True, text=True, timeout=180
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
            patch.setenv(name, "lo")
        try:
            if up.returncode:
                pytest.skip(f"no SLURM can be started here: {up.stderr.strip()}")
            yield
        finally:
            subprocess.run([str(LAB / "down.sh"), str(folder)], timeout=60)


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """A stand-in for the interpreter that starts at once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("warm.py")), "serve", str(folder / "socket")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: (folder / "socket").exists() or server.poll() is not None)
            yield client(folder)
        finally:
            server.kill()


def submit(own: list[str], given: list[str]) -> Outcome:
    """``python -m src.submit`` in this process."""
    return call("src.submit", *own, task=partial(main, given=given))


def wait_until(met: Callable[[], bool]) -> None:
    """Look several times a second; fails when it takes too long."""
    end = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.2)


def ended(jobs: list[str]) -> dict[str, JobState]:
    """The states of jobs once all have ended."""
    found: dict[str, JobState] = {}

    def all_ended() -> bool:
        found.update(states(jobs))
        return all(of_job(found, job) and not any(one.active for one in of_job(found, job)) for job in jobs)

    wait_until(all_ended)
    return found
