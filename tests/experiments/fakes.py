"""Launchers that start nothing, chosen by ``launcher._target_=tests.experiments.fakes.Failing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.experiments.jobs import Job, State
from src.experiments.launcher import Done, Watch


@dataclass(frozen=True)
class Failing:
    """Settings of a launcher whose jobs all fail, the first of them in words."""

    workers: int | None = None
    threads: int = 1
    at_a_time = 4

    def open(self, folder: Path, done: Done) -> Launched:
        return Launched(done)


@dataclass
class Launched:
    """Remembers what it was given; ``states``: of jobs that are not done, by kind."""

    done: Done
    states: dict[str, State] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: list[Job] = field(default_factory=list)

    def state(self, job: Job) -> State:
        return "done" if self.done(job) else self.states.get(job.kind, "missing")

    def note(self, job: Job) -> Mapping[str, Any]:
        return self.notes.get(job.kind, {})

    def tail(self, job: Job, lines: int) -> list[str]:
        return ["Traceback", "the disk is full"][-lines:] if self.states.get(job.kind) == "failed" else []

    def run(self, jobs: Sequence[Job], watch: Watch) -> bool:
        self.given = list(jobs)
        watch.say(f"FAILED   [1/{len(jobs)}] {jobs[0].name}")
        watch.look()
        return False

    def submit(self, jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
        self.given = list(jobs)
        return [f"{len(jobs)} jobs are on their way, then {' '.join(command)}"]
