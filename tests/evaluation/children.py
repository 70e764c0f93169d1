"""Entry points as processes of their own that start at once, so that a test can afford to kill many of them.

A fork server imports what takes long and nothing else (no threads, no state); each call is forked from it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.support import ROOT

PRELOADED = ["tests.evaluation.preloaded", "tests.evaluation.children"]


@cache
def fork_server() -> ForkServerContext:
    """The context whose processes are forked from a warm one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def live(program: str, overrides: tuple[str, ...], folder: str, environment: Mapping[str, str]) -> None:
    """What a child does: the program, to its exit."""
    import importlib

    from src.cli import entry_point
    from tests.entry import PROGRAMS

    os.chdir(ROOT)
    os.environ.update(environment)
    with open(f"{folder}/out", "w") as out, open(f"{folder}/err", "w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = [program, *overrides]
    try:
        entry_point(PROGRAMS[program], importlib.import_module(program).main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass
class Child:
    """One call of an entry point. ``code`` after ``join``: its exit code, negative for the signal that ended it."""

    program: str
    overrides: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Any = None

    def start(self) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"OMP_NUM_THREADS": "1", "NO_PROXY": "*", **self.environment}
        self.process = fork_server().Process(
            target=live, args=(self.program, self.overrides, str(self.folder), settings), daemon=True
        )
        self.process.start()
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it now, wherever it is, and wait until it has ended; nothing if it ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def join(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"{self.program} still runs after {seconds} s: {self.err}"
        return int(self.process.exitcode)

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()


def finished(program: str, *overrides: str, folder: Path, environment: Mapping[str, str] | None = None) -> Child:
    """A call that must end well."""
    child = Child(program, overrides, folder, environment or {}).start()
    assert child.join() == 0, child.err
    return child
