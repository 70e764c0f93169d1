"""The project's own commands, run one after the other by a program: printed first, so that they can be typed again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from src.config import ROOT, compose_train

RECORDS = Path("results/records")


def run(module: str, *arguments: str) -> None:
    """Print a command and run it from the repository's root; end with its exit code when it fails."""
    print(f"\n$ python -m {module} {shlex.join(arguments)}".rstrip(), flush=True)
    code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def directory_of(overrides: list[str]) -> Path:
    """The run directory of ``python -m src.train <overrides>``."""
    from src.training.run import planned_directory

    return planned_directory(compose_train(overrides))


def records_of(directories: list[Path], which: str = "best") -> list[Path]:
    """Record files made from checkpoint ``which`` of the runs in ``directories``, in their order."""
    from src.evaluation.records import read_records

    records = [record for record in read_records([RECORDS]) if record.run.checkpoint == which]
    return [
        RECORDS / f"{record.id}.json"
        for directory in directories
        for record in records
        if record.run.directory == str(directory)
    ]
