"""For all tests: their order, programs of the environment, quick compositions, and less garbage collection."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

from tests.composing import compose_quickly

LONGEST = (
    "tests/cluster/test_lab.py",
    "tests/resume/",
    "tests/evaluation/test_kills.py",
    "tests/cli/test_readme.py",
    "tests/cli/test_entry_points.py",
    "tests/experiments/test_reproduce.py",
    "tests/reporting/test_browser.py",
    "tests/config/test_fidelity.py",
    "tests/cli/test_generate.py",
    "tests/cli/test_bad",
)
"""Where the longest tests are: they come first, so that all workers end at about the same time (`--dist loadfile`)."""

# Programs that came with the tests' packages (ninja, shellcheck), whether or not the environment is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def pytest_configure() -> None:
    compose_quickly()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """A fifth of the time in which configurations are composed went into collections that found nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
