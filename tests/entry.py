"""Calling an entry point inside the test's process: quick, and as on the command line but for the new process."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from src.cli import entry_point

PROGRAMS = {
    "src.train": "train",
    "src.preflight": "preflight",
    "src.evaluation.ranking": "ranking",
    "src.evaluation.alpaca_eval": "alpaca_eval",
    "src.evaluation.mt_bench": "mt_bench",
    "src.evaluation.arena_hard": "arena_hard",
    "src.evaluation.listwise": "listwise",
    "src.evaluation.rm_bench": "rm_bench",
    "src.evaluation.curvature": "curvature",
    "src.report": "report",
    "src.reproduce": "reproduce",
    "src.prepare": "prepare",
    "src.submit": "submit",
    "src.dashboard": "dashboard",
    "src.data.gaps": "gaps",
    "src.generate": "generate",
    "src.annotate": "annotate",
    "src.data.show": "show",
    "src.evaluation.lm_harness": "lm_harness",
}
"""Entry points and the configuration of each."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def command_line(program: str, overrides: tuple[str, ...]) -> Iterator[None]:
    """``python -m program overrides`` as the process sees it; everything is put back at the end."""
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR", "0")
    GlobalHydra.instance().clear()
    # Hydra composes everything once more to read `hydra.mode`, which nothing here sets.
    composed_once = mock.patch.object(Hydra, "get_mode", return_value=None)
    with mock.patch.object(sys, "argv", [program, *overrides]), mock.patch.dict(os.environ, environment), composed_once:
        try:
            yield
        finally:
            GlobalHydra.instance().clear()


def call(program: str, *overrides: str, task: Callable[[Any], int | None] | None = None) -> Outcome:
    """Run an entry point (or another ``task`` in its place) to its exit."""
    out, err = io.StringIO(), io.StringIO()
    task = task or importlib.import_module(program).main
    code: int | str | None = None
    with command_line(program, overrides), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry_point(PROGRAMS[program], task)
        except SystemExit as ending:
            code = ending.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(program: str, *overrides: str) -> str:
    """The message of a call that must end as a user's mistake does: exit code 2, our words, no traceback."""
    outcome = call(program, *overrides)
    assert outcome.code == 2, outcome
    assert outcome.err.count("error: ") == 1, outcome.err
    for never in ("Traceback", "Error executing job", "HYDRA_FULL_ERROR", 'File "'):
        assert never not in outcome.err
    return outcome.err


def refused_after_run_directory(overrides: list[str]) -> str:
    """The message of a run that had said where it would write before it read the data."""
    said, _, error = refused("src.train", *overrides).rpartition("error: ")
    first, *rest = said.splitlines()
    assert first.startswith("run directory: ")
    assert all(line.startswith("training ") for line in rest), rest
    return error


def assert_says(message: str, *fragments: str) -> None:
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is not in {message!r}"
