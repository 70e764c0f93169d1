"""What is said of a plan: forecast, missing commands, status, where a cell comes from, and how far a run is."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from src.errors import Problems, UserError
from src.experiments.files import did_you_mean
from src.experiments.jobs import Job, read
from src.experiments.launcher import Launcher
from src.experiments.plan import Plan
from src.experiments.results import Results


def preflight(plan: Plan) -> None:
    """Look at every training before any is started; raises ``Problems`` with all that is wrong, each once."""
    from src.training.checks import recipe_exists, usual_recipe

    problems = [
        f"{job.command}: there is no tuned recipe {usual_recipe(config)}, so the row would be made with defaults; add "
        f"conf/recipe/{usual_recipe(config)}.yaml"
        for job, config in ((plan.jobs[name], config) for name, config in plan.configs.items())
        if not recipe_exists(usual_recipe(config)) and not any(a.startswith("recipe=") for a in job.arguments)
    ]
    if problems:
        raise Problems(list(dict.fromkeys(problems)))


def seconds_of(plan: Plan, launcher: Launcher) -> dict[str, float]:
    """Seconds per kind of job: the median of those measured here, else what the scale says."""
    found: dict[str, list[float]] = {}
    for job in plan.jobs.values():
        note = read(launcher.place(job) / "status.json")
        if note.get("state") == "done" and isinstance(note.get("seconds"), (int, float)):
            found.setdefault(job.kind, []).append(float(note["seconds"]))
    kinds = {job.kind for job in plan.jobs.values()}
    return {kind: median(found[kind]) if kind in found else plan.scale.seconds.get(kind, 60.0) for kind in kinds}


def forecast(plan: Plan, launcher: Launcher, workers: int) -> list[str]:
    """Jobs by kind and state, and the time that the missing ones take about."""
    states = {job.id: launcher.state(job) for job in plan.jobs.values()}
    seconds = seconds_of(plan, launcher)
    lines = [heading(plan)]
    for kind in dict.fromkeys(job.kind for job in plan.jobs.values()):
        counts = Counter(states[job.id] for job in plan.jobs.values() if job.kind == kind)
        spoken = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        lines.append(f"  {kind:14s} {sum(counts.values()):4d} jobs: {spoken}; about {seconds[kind]:.0f} s each")
    left = sum(seconds[job.kind] for job in plan.jobs.values() if states[job.id] != "done")
    lines.append(f"  about {left / 60 / workers:.0f} minutes with {workers} at a time")
    return lines


def heading(plan: Plan) -> str:
    """Which table at which scale with how many seeds."""
    experiment = plan.experiment
    return (
        f"{experiment.paper}, {experiment.path.stem}: {experiment.title} ({len(experiment.keys)} rows, "
        f"{len(experiment.columns)} columns, scale {plan.scale.name}, {len(plan.seeds)} "
        f"{'seed' if len(plan.seeds) == 1 else 'seeds'})"
    )


def missing(plan: Plan, launcher: Launcher) -> list[str]:
    """The commands that are still to be run, in an order in which they can be."""
    return [job.command for job in plan.jobs.values() if launcher.state(job) != "done"]


def status(plan: Plan, launcher: Launcher) -> list[str]:
    """How far each job is; of failed ones the last lines of why."""
    lines = [heading(plan)]
    states = {job.id: launcher.state(job) for job in plan.jobs.values()}
    counts = Counter(states.values())
    lines.append("  " + ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "failed", "missing")))
    for job in plan.jobs.values():
        if states[job.id] in ("running", "failed"):
            lines.append(f"  {states[job.id]}: {job.command}{how_far(job)}")
            lines += [f"      {line}" for line in launcher.tail(job, 5)]
    return lines


def how_far(job: Job) -> str:
    """Step and steps of a training under way."""
    note = read(job.run / "status.json") if job.is_training else {}
    return f" (step {note['step']} of {note['total_steps']})" if {"step", "total_steps"} <= set(note) else ""


def trace(plan: Plan, results: Results, cell: str) -> list[str]:
    """Where a cell comes from: per seed the number, the record, the run directory and the commands."""
    *labels, name = cell.split("/")
    column = plan.experiment.column(name)
    keys = [key for key in plan.experiment.keys if list(key.values()) == labels]
    if not keys:
        known = ["/".join(key.values()) for key in plan.experiment.keys]
        raise UserError(f"no row is called {'/'.join(labels)}{did_you_mean('/'.join(labels), known)}")
    lines = [f"{cell} of {heading(plan)}"]
    for value in results.values(keys[0], column):
        number = "—" if value.number is None else f"{value.number:.6g}"
        lines.append(f"  seed {value.seed}: {number}{f' ({value.reason})' if value.reason else ''}")
        if value.record is not None:
            lines.append(f"    record: {Path(results.index.folder) / (value.record.id + '.json')}")
            lines.append(f"    measured by: {value.record.command}")
    for measurement in plan.of(keys[0], plan.scale.column(column)):
        lines.append(f"  seed {measurement.seed}: run directory {measurement.run}")
        if measurement.training:
            lines.append(f"    trained by: {plan.jobs[measurement.training].command}")
        if measurement.evaluation:
            lines.append(f"    measured by: {plan.jobs[measurement.evaluation].command}")
    return lines


class Reporter:
    """Lines of a launcher on standard error, each with the time that is left about."""

    def __init__(self, plan: Plan, launcher: Launcher, workers: int) -> None:
        self.plan, self.launcher, self.workers = plan, launcher, workers
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        seconds = seconds_of(self.plan, self.launcher)
        left = sum(seconds[job.kind] for job in self.undone())
        elapsed = time.monotonic() - self.started
        ahead = f"about {left / 60 / self.workers:.0f} min left"
        print(f"[{elapsed / 60:5.1f} min, {ahead}] {text}", file=sys.stderr, flush=True)

    def undone(self) -> Iterable[Job]:
        """Jobs without a result."""
        return (job for job in self.plan.jobs.values() if self.launcher.state(job) != "done")
