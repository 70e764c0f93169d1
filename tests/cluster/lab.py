"""A SLURM of our own for the tests of a module (slurm/lab): how to start it, to submit to it and to wait for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from src.cluster.batch import client
from src.cluster.states import JobState, of_job, queued, states
from src.config import ROOT
from src.submit import main
from tests.cluster import warm
from tests.entry import Outcome, call

LAB = ROOT / "slurm" / "lab"
PATIENCE = 300
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
            while not (folder / "socket").exists():
                assert server.poll() is None, "tests/cluster/warm.py ended as it imported; stderr says why"
                time.sleep(0.2)
            yield warm.client(folder)
        finally:
            server.kill()


def submit(own: list[str], given: list[str]) -> Outcome:
    """``python -m src.submit`` in this process."""
    return call("src.submit", *own, task=partial(main, given=given))


def wait_until(what: str, met: Callable[[], bool]) -> None:
    """Look twice a second. Fails when it takes too long, and at once when no job is left that could bring it about."""
    end = time.monotonic() + PATIENCE
    while True:
        still = time.monotonic() < end and any(job.active for job in queued(60))
        if met():
            return
        assert still, f"{what} never came; the jobs now:\n{shown()}"
        time.sleep(0.5)


def shown() -> str:
    """All jobs that SLURM knows."""
    form = "--format=%.10i %.28j %.10T %.10M %.20S %.8u %R"
    return client(["squeue", "--states=all", "--array", form], 60).stdout


def ended(jobs: Sequence[str]) -> dict[str, JobState]:
    """The states of jobs once all have ended."""

    def all_ended() -> bool:
        found = states(jobs)
        return all(of_job(found, job) and not any(one.active for one in of_job(found, job)) for job in jobs)

    wait_until(f"the end of jobs {', '.join(jobs)}", all_ended)
    return states(jobs)
