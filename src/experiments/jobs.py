"""The commands behind a table, each of which can be run by hand, and how far they are."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "running", "failed", "missing"]
JOBS = ".jobs"
"""Folder below output_root: what the launcher knows of each job."""


@dataclass(frozen=True)
class Job:
    """One command. ``kind``: train, or the benchmark; ``run``: the run directory it makes or measures; ``needs``: ids
    of the jobs before it; ``evaluation``: ``evaluation_hash`` of a measurement, "" for a training."""

    kind: str
    module: str
    arguments: tuple[str, ...]
    run: Path
    needs: tuple[str, ...] = ()
    evaluation: str = ""

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
    def is_training(self) -> bool:
        """Whether it trains."""
        return self.kind == "train"


def trained(run: Path) -> bool:
    """Whether the run of that directory is finished."""
    return read(run / "status.json").get("state") == "finished"


def read(path: Path) -> Mapping[str, Any]:
    """A JSON object; {} when it is not there or half-written (another process may be writing it)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
