"""A SLURM of our own for tests (slurm/lab): virtual nodes on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPTS = ROOT / "slurm" / "lab"


@pytest.fixture(scope="module")
def lab() -> Iterator[Path]:
    """Two nodes with fake GPUs, to which SLURM's commands lead in this process and those it starts; gone at the end.

    Skips where no SLURM can be started: it takes root, and the daemons of the packages slurm-wlm and munge.
    """
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"no SLURM can be started: {'not root' if os.geteuid() else ', '.join(missing) + ' missing'}")
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    folder = Path(tempfile.mkdtemp(prefix="marginalia-lab-", dir="/tmp"))  # paths of sockets are short
    settings = {"LAB_NODES": "2", "LAB_GPUS": "2", "LAB_PORT": str(28000 + 1200 * worker)}
    up = subprocess.run([SCRIPTS / "up.sh", folder], env=os.environ | settings, capture_output=True, text=True)
    try:
        if up.returncode:
            pytest.skip(f"no SLURM can be started: {up.stderr.strip()}")
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        yield folder
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before
    finally:
        subprocess.run([SCRIPTS / "down.sh", folder], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
