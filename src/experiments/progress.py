"""What is said of a plan: forecast, missing commands, status, where a cell comes from, and how far a run is."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from src.errors import UserError
from src.experiments.experiment import Experiment
from src.experiments.files import did_you_mean
from src.experiments.jobs import Job, State, how_far
from src.experiments.launcher import Launcher
from src.experiments.plan import Plan
from src.experiments.published import Labels
from src.experiments.results import Results

STATES: tuple[State, ...] = ("done", "running", "queued", "failed", "missing")


class Progress:
    """How far a plan's jobs are, whoever runs them. ``workers``: jobs at a time, for the time that is left."""

    def __init__(self, plan: Plan, launcher: Launcher, workers: int) -> None:
        self.plan, self.launcher, self.workers = plan, launcher, workers
        self._done: set[str] = set()

    def states(self) -> dict[str, State]:
        """Of every job; one that is done stays so."""
        found: dict[str, State] = {}
        for job in self.plan.jobs.values():
            found[job.id] = "done" if job.id in self._done else self.launcher.state(job)
            if found[job.id] == "done":
                self._done.add(job.id)
        return found

    def seconds(self) -> dict[str, float]:
        """Seconds per kind of job: the median of those measured here, else what the scale says."""
        found: dict[str, list[float]] = {}
        for job in self.plan.jobs.values():
            note = self.launcher.note(job)
            if note.get("state") == "done" and isinstance(note.get("seconds"), (int, float)):
                found.setdefault(job.kind, []).append(float(note["seconds"]))
        kinds = {job.kind for job in self.plan.jobs.values()}
        return {
            kind: median(found[kind]) if kind in found else self.plan.scale.seconds.get(kind, 60.0) for kind in kinds
        }

    def left(self, states: dict[str, State]) -> float:
        """Minutes until all jobs are done, about: those that run count by what they have taken."""
        seconds, total = self.seconds(), 0.0
        for job in self.plan.jobs.values():
            if states[job.id] != "done":
                taken = self.elapsed(job) if states[job.id] == "running" else 0.0
                total += max(seconds[job.kind] - taken, 1.0)
        return total / 60 / self.workers

    def elapsed(self, job: Job) -> float:
        """Seconds since a job was started; 0 where that is not known."""
        started = self.launcher.note(job).get("started")
        return max(time.time() - started, 0.0) if isinstance(started, float) else 0.0

    def forecast(self) -> list[str]:
        """Jobs by kind and state, and the time that the missing ones take about."""
        states, seconds = self.states(), self.seconds()
        lines = [heading(self.plan)]
        for kind in dict.fromkeys(job.kind for job in self.plan.jobs.values()):
            counts = Counter(states[job.id] for job in self.plan.jobs.values() if job.kind == kind)
            spoken = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
            lines.append(f"  {kind:14s} {sum(counts.values()):4d} jobs: {spoken}; about {seconds[kind]:.0f} s each")
        if set(states.values()) <= {"done"}:
            return [*lines, "  nothing is missing"]
        return [*lines, f"  about {spoken_minutes(self.left(states))} with {self.workers} at a time"]

    def missing(self) -> list[str]:
        """The commands that are still to be run, in an order in which they can be."""
        states = self.states()
        return [job.command for job in self.plan.jobs.values() if states[job.id] != "done"]

    def summary(self, states: dict[str, State]) -> str:
        """How many jobs are in which state, and the time that is left."""
        counts = Counter(states.values())
        spoken = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state] or state != "queued")
        left = "" if set(states.values()) <= {"done"} else f"; about {self.left(states):.0f} min left"
        return f"{spoken}{left}"

    def at_work(self, states: dict[str, State]) -> list[str]:
        """A line per job that runs: how far it is, how fast and how long already."""
        jobs = [job for job in self.plan.jobs.values() if states[job.id] == "running"]
        return [f"{job.name}: {self.place_of(job)}{self.elapsed(job):.0f} s{self.where(job)}" for job in jobs]

    def where(self, job: Job) -> str:
        """Which task of a scheduler does it; "" where none does."""
        return f", {at}" if (at := self.launcher.note(job).get("where")) else ""

    def queue(self, states: dict[str, State]) -> list[str]:
        """How many jobs wait in a scheduler's queue, by what they wait for."""
        jobs = [job for job in self.plan.jobs.values() if states[job.id] == "queued"]
        reasons = Counter(str(self.launcher.note(job).get("reason") or "their turn") for job in jobs)
        return [f"{count} for {reason}" for reason, count in reasons.most_common()]

    def place_of(self, job: Job) -> str:
        """Step and rate of a training; of a measurement the last that it said."""
        if (far := how_far(job)) is not None:
            rate = "" if far.pairs_per_second is None else f"{far.pairs_per_second:.0f} pairs/s, "
            return f"step {far.step}/{far.steps}, {rate}"
        said = self.launcher.tail(job, 1)
        return f"{said[0].strip():.60}, " if said else ""

    def status(self) -> list[str]:
        """How far each job is; of failed ones the last lines of why."""
        states = self.states()
        lines = [heading(self.plan), f"  {self.summary(states)}"]
        lines += [f"  running: {line}" for line in self.at_work(states)]
        lines += [f"  waiting: {line}" for line in self.queue(states)]
        for job in self.plan.jobs.values():
            if states[job.id] == "failed":
                lines.append(f"  failed: {job.command}")
                lines += [f"      {line}" for line in self.launcher.tail(job, 5)]
        return lines


def spoken_minutes(minutes: float) -> str:
    """A duration in minutes, hours or days, whichever says most."""
    if minutes < 120:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 2880 else f"{minutes / 1440:.0f} days"


def heading(plan: Plan) -> str:
    """Which table at which scale with how many seeds."""
    experiment = plan.experiment
    return (
        f"{experiment.paper}, {experiment.path.stem}: {experiment.title} ({len(experiment.keys)} rows, "
        f"{len(experiment.columns)} columns, scale {plan.scale.name}, {len(plan.seeds)} "
        f"{'seed' if len(plan.seeds) == 1 else 'seeds'})"
    )


def trace(plan: Plan, results: Results, cell: str) -> list[str]:
    """Where a cell comes from: per seed the number, the record, the run directory and the commands."""
    row, _, name = cell.rpartition("/")
    column, labels = plan.experiment.column(name), labels_of(plan.experiment, row)
    lines = [f"{cell} of {heading(plan)}"]
    for value in results.values(labels, column):
        number = "—" if value.number is None else f"{value.number:.6g}"
        lines.append(f"  seed {value.seed}: {number}{f' ({value.reason})' if value.reason else ''}")
        if value.record is not None:
            lines.append(f"    record: {value.record.file}")
            lines.append(f"    measured by: {value.record.command}")
    for measurement in plan.of(labels, plan.scale.column(column)):
        lines.append(f"  seed {measurement.seed}: run directory {measurement.run}")
        if measurement.training:
            lines.append(f"    trained by: {plan.jobs[measurement.training].command}")
        if measurement.evaluation:
            lines.append(f"    measured by: {plan.jobs[measurement.evaluation].command}")
    return lines


def labels_of(experiment: Experiment, row: str) -> Labels:
    """The labels of a row that is named by them, with slashes between (and perhaps within); raises ``UserError``."""
    named = {"/".join(labels.values()): labels for labels in experiment.keys}
    if row not in named:
        raise UserError(f"no row is called {row}{did_you_mean(row, named)}")
    return named[row]


class Reporter:
    """Tells people on standard error how a launcher gets on: a view that follows on a terminal, else lines."""

    def __init__(self, progress: Progress, stopping: Sequence[int]) -> None:
        self.progress, self._stopping = progress, stopping
        self.started = time.monotonic()
        self.events: deque[str] = deque(maxlen=8)
        self.live: Live | None = None
        self._looked = 0.0

    @property
    def stopping(self) -> bool:
        """Whether a signal came that asks to stop."""
        return bool(self._stopping)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the view while jobs run, where standard error is a terminal."""
        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            yield
            return
        with Live(console=console, auto_refresh=False, transient=True) as self.live:
            yield
        self.live = None

    def say(self, text: str) -> None:
        if self.live is None:
            elapsed = (time.monotonic() - self.started) / 60
            left = self.progress.left(self.progress.states())
            print(f"[{elapsed:5.1f} min, about {left:.0f} left] {text}", file=sys.stderr, flush=True)
            return
        self.live.console.print(Text(text)) if text.startswith(("FAILED", "  ")) else self.events.append(text)

    def look(self) -> None:
        if self.live is None or time.monotonic() - self._looked < 1.0:
            return
        self.live.update(Group(*self.view()), refresh=True)
        self._looked = time.monotonic()

    def view(self) -> list[Text]:
        """The view: all jobs by state, those that run, and what happened last."""
        states = self.progress.states()
        done = sum(state == "done" for state in states.values())
        width = 40 * done // max(len(states), 1)
        elapsed = (time.monotonic() - self.started) / 60
        lines = [
            heading(self.progress.plan),
            f"{'━' * width}{'╌' * (40 - width)} {done}/{len(states)}  {elapsed:.1f} min",
        ]
        lines += [self.progress.summary(states), *(f"  ▸ {line}" for line in self.progress.at_work(states))]
        return [Text(line, no_wrap=True, overflow="ellipsis") for line in [*lines, "", *self.events]]
