"""Whole evaluations on a handful of the toy world's items, by endpoints that a test serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.evaluation.endpoints import JUDGE, WRITER

JUDGED = ("alpaca_eval", "arena_hard", "mt_bench")
"""The benchmarks with a judge."""

ITEMS = 4


def module(benchmark: str) -> str:
    return f"src.evaluation.{benchmark}"


def places(folder: Path) -> tuple[str, ...]:
    """Everything that an evaluation writes, below ``folder``."""
    return (
        f"output_root={folder / 'evaluations'}",
        f"records_root={folder / 'records'}",
        f"cache_root={folder / 'cache'}",
    )


def asked(url: str, concurrency: int = 4, tries: int = 2, timeout: float = 20.0) -> tuple[str, ...]:
    """Writer and judge behind one endpoint."""
    shared = (f"concurrency={concurrency}", f"tries={tries}", f"timeout={timeout}", f"base_url={url}")
    return (
        "generator=openai",
        f"generator.model={WRITER}",
        *(f"generator.{setting}" for setting in shared),
        "judge=openai",
        f"judge.model={JUDGE}",
        *(f"judge.{setting}" for setting in shared),
    )


def toy(folder: Path, *overrides: str, items: int = ITEMS) -> tuple[str, ...]:
    """The toy world's counterpart, small, with its result as JSON."""
    return ("benchmark=toy", f"max_items={items}", "output=json", *places(folder), *overrides)


def results(out: str) -> list[dict[str, Any]]:
    """Standard output with output=json: one object a line and nothing else."""
    assert out.endswith("\n")
    return [json.loads(line) for line in out.splitlines()]


def result(out: str) -> dict[str, Any]:
    """That of the only model."""
    (only,) = results(out)
    return only
