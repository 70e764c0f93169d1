"""One SLURM of our own for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.lab import running, warm_python


@pytest.fixture(scope="package")
def python() -> Iterator[Path]:
    """An 8-node × 8-GPU cluster, and the interpreter of its jobs."""
    with ExitStack() as until_the_end:
        # paths of sockets are short
        folder = Path(until_the_end.enter_context(TemporaryDirectory(prefix="lab-", dir="/tmp")))
        until_the_end.enter_context(running(folder / folder.name, nodes=8, gpus=8))
        yield until_the_end.enter_context(warm_python(folder))
