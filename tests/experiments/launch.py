"""`python -m tests.experiments.launch FOLDER SECONDS`: a launcher over four jobs, as a process of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from src.experiments.jobs import Job
from src.experiments.launcher import LocalLauncher


class Lines:
    """Says everything on standard output; stops when a signal came."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: self.signals.append(number))

    @property
    def stopping(self) -> bool:
        return bool(self.signals)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def look(self) -> None:
        """Nothing to show."""


def job(folder: Path, name: str, *arguments: str, needs: tuple[Job, ...] = ()) -> Job:
    """A job that works in ``folder / name``."""
    run = folder / name
    return Job("train", "tests.experiments.job", (str(run), *arguments), run, tuple(need.id for need in needs))


def done(one: Job) -> bool:
    return (one.run / "done").exists()


def launcher(folder: Path, workers: int = 2) -> LocalLauncher:
    return LocalLauncher(folder / ".jobs", done, workers)


def four(folder: Path, seconds: str) -> list[Job]:
    """A base, two that need it, and one that needs one of these."""
    base = job(folder, "base", f"seconds={seconds}")
    left = job(folder, "left", f"seconds={seconds}", needs=(base,))
    right = job(folder, "right", f"seconds={seconds}", needs=(base,))
    return [base, left, right, job(folder, "last", f"seconds={seconds}", needs=(right,))]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.exit(0 if launcher(place).run(four(place, sys.argv[2]), Lines()) else 1)
