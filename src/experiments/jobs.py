"""The commands behind a table, each of which can be run by hand, and how far they are."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "running", "queued", "failed", "missing"]
JOBS = ".jobs"
"""Folder below output_root: what the launcher knows of each job."""


@dataclass(frozen=True)
class Resources:
    """What a job takes of a cluster: whole nodes, and GPUs on each of them, with a process for every GPU."""

    nodes: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Job:
    """One command. ``kind``: train, or the benchmark; ``run``: the run directory it makes or measures; ``needs``: ids
    of the jobs before it; ``evaluation``: ``evaluation_hash`` of a measurement, "" for a training; ``resources``: on a
    cluster."""

    kind: str
    module: str
    arguments: tuple[str, ...]
    run: Path
    needs: tuple[str, ...] = ()
    evaluation: str = ""
    resources: Resources = Resources()

    @property
    def id(self) -> str:
        """A pure function of what the job does."""
        text = json.dumps([self.kind, str(self.run), self.evaluation])
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def command(self) -> str:
        """The command as one types it."""
        return f"python -m {self.module} {shlex.join(self.arguments)}"

    @property
    def name(self) -> str:
        """For people: the run, and the benchmark where it is measured."""
        return self.run.name if self.is_training else f"{self.kind} of {self.run.name}"

    @property
    def is_training(self) -> bool:
        """Whether it trains."""
        return self.kind == "train"


def trained(run: Path) -> bool:
    """Whether the run of that directory is finished."""
    return read(run / "status.json").get("state") == "finished"


@dataclass(frozen=True)
class HowFar:
    """Steps of a training under way: done, all, and pairs per second of the last one (``None`` until known)."""

    step: int
    steps: int
    pairs_per_second: float | None


def how_far(job: Job) -> HowFar | None:
    """How far a training is, from what it writes itself; ``None`` before its first step, and for a measurement."""
    steps = read(job.run / "status.json").get("total_steps") if job.is_training else None
    if not isinstance(steps, int):
        return None
    last = last_line(job.run / "timings.jsonl")
    rate = last.get("pairs_per_second")
    return HowFar(int(last.get("step", 0)), steps, rate if isinstance(rate, float) else None)


def last_line(path: Path) -> Mapping[str, Any]:
    """The last whole line of a file of JSON objects; {} when there is none."""
    with suppress(OSError, ValueError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        value = json.loads(lines[-1]) if lines else {}
        return value if isinstance(value, dict) else {}
    return {}


def read(path: Path) -> Mapping[str, Any]:
    """A JSON object; {} when it is not there or half-written (another process may be writing it)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
