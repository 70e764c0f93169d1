"""One process, from which all ranks are forked, for all tests of engines."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.engines.world import SIZES
from tests.support import ROOT

Found = dict[tuple[int, int], dict[str, Any]]
"""What rank r of n found, by (n, r)."""


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    directory = tmp_path_factory.mktemp("engines")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engines.world", str(directory)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    print(ended.stdout[-3000:])
    assert ended.returncode == 0, ended.stderr[-6000:]
    return {
        (size, rank): torch.load(directory / f"{size}-{rank}.pt", weights_only=False)
        for size in SIZES
        for rank in range(size)
    } | {(0, 0): {"output": ended.stdout + ended.stderr}}
