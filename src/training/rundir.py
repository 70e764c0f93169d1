"""The run directory: who owns it, how far its run is, what is said on the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from src.config import hashed_view
from src.engine.ranks import ranks
from src.errors import UserError
from src.schema import TrainConfig
from src.training.checkpoint import Progress

SHOWN = 3
"""Differences of two configurations that a message names."""


def say(text: str) -> None:
    """One line for the person at the terminal, from rank 0; standard output stays free for results."""
    if ranks().is_main:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def owned(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Make ``directory`` and keep other processes out of it, after waiting for them if ``wait``.

    Raises ``UserError`` when that cannot be done.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            say(f"waiting for another process to finish {directory}")
            lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{directory} is being trained by another process with the same configuration; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise UserError(
            f"the run directory {directory} cannot be written ({error.strerror}); set output_root or run_dir to a "
            "place where you may write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename, so that a reader never sees half a file."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


class Unsaid:
    """What a rank other than rank 0 says of the run: nothing."""

    def write(self, state: str, progress: Progress, total_steps: int, message: str = "") -> None: ...

    def fail(self, message: str) -> None: ...


class Status:
    """status.json: running, finished, stopped or failed, at which step, and why."""

    def __init__(self, directory: Path, config_hash: str) -> None:
        self.path, self.config_hash = directory / "status.json", config_hash

    def write(self, state: str, progress: Progress, total_steps: int, message: str = "") -> None:
        """Say how far the run is."""
        write_json(
            self.path,
            {
                "state": state,
                "step": progress.step,
                "total_steps": total_steps,
                "best_step": progress.best_step,
                "best_value": progress.best_value,
                "message": message,
                "config_hash": self.config_hash,
            },
        )

    def fail(self, message: str) -> None:
        """Keep what was known and say why the run ended."""
        write_json(self.path, {**read_status(self.path.parent), "state": "failed", "message": message})


def read_status(directory: Path) -> Mapping[str, Any]:
    """What status.json of a run says; {} when there is none."""
    path = directory / "status.json"
    if not path.exists():
        return {}
    status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return status


def refuse_other_configuration(directory: Path, config: TrainConfig, config_hash: str) -> None:
    """Raise ``UserError`` when ``directory`` holds the run of another configuration (possible with ``run_dir``)."""
    other = read_status(directory).get("config_hash", config_hash)
    if other != config_hash:
        raise UserError(
            f"{directory} holds the run of configuration {other}, this one is {config_hash}"
            f"{differences(directory, config)}; use another run_dir, or leave run_dir out"
        )


def differences(directory: Path, config: TrainConfig) -> str:
    """In brackets, the first few values in which ``config`` differs from the run of ``directory``; "" unless known."""
    path = directory / "config.yaml"
    if not path.exists():
        return ""
    there, found = OmegaConf.load(path), []
    for key, value in leaves(hashed_view(config)):
        before = OmegaConf.select(there, key)
        if before != value:
            found.append(f"{key}={before} there, {value} here")
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f" ({'; '.join(found[:SHOWN])}{more})" if found else ""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
