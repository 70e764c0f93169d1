"""What every experiment comes to at every scale: numbers of rows, cells and jobs, and hashes.

    python -m tests.experiments.snapshot            composes everything and writes tests/experiments/snapshot.json
    python -m tests.experiments.snapshot --check    composes everything and says what differs, writing nothing

Either takes minutes: it composes every configuration of every table. The tests (test_experiment_files.py) compare
``rows``, ``cells`` and ``overrides``, for which nothing is composed, and compose one cell of each table and scale.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from src.experiments.experiment import Curve, Experiment, Measured, all_paths, load
from src.experiments.plan import Measurement, Places, Plan, plan_of
from src.experiments.published import Labels
from src.experiments.scale import Scale, read_scale, scales

PATH = Path(__file__).with_name("snapshot.json")
Entry = dict[str, Any]


def digest(parts: list[Any]) -> str:
    """Sixteen hex digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cells(experiment: Experiment, scale: Scale) -> list[tuple[Labels, str, list[str], list[str]]]:
    """Row, column, overrides of the training and arguments of the evaluation of every measured cell, with seed 0."""
    found = []
    for labels in experiment.keys:
        for column in map(scale.column, experiment.columns):
            if isinstance(column.source, (Measured, Curve)):
                measured = scale.arguments(column.source) if isinstance(column.source, Measured) else []
                found.append((labels, column.name, scale.training(experiment, labels, column, 0), measured))
    return found


def uncomposed(experiment: Experiment, scale: Scale) -> Entry:
    """What is known without composing anything."""
    found = cells(experiment, scale)
    parts = [[dict(labels), name, overrides, arguments] for labels, name, overrides, arguments in found]
    return {"rows": len(experiment.keys), "cells": len(found), "overrides": digest(parts)}


def composed(plan: Plan) -> Entry:
    """What composing gives: run directories and evaluations are named by hashes of their configurations."""
    jobs = sorted([job.kind, job.run.name, job.evaluation] for job in plan.jobs.values())
    return {"jobs": len(jobs), "configs": digest(jobs)}


def sampled(experiment: Experiment, scale: Scale) -> tuple[Labels, str] | None:
    """Row and column of the cell that the tests compose; ``None`` where nothing is measured."""
    found = cells(experiment, scale)
    if not found:
        return None
    labels, name, _, _ = found[int(digest([experiment.name, scale.name]), 16) % len(found)]
    return labels, name


def identity(plan: Plan, measurement: Measurement) -> str:
    """The names that follow from the configurations behind a cell."""
    evaluation = plan.jobs[measurement.evaluation].evaluation if measurement.evaluation else "curve"
    return f"{measurement.run.name} {evaluation}"


def entry(experiment: Experiment, scale: Scale, places: Places) -> Entry:
    """Everything that the snapshot holds of a table at a scale."""
    plan = plan_of(experiment, scale, (0,), places)
    found = uncomposed(experiment, scale) | composed(plan)
    if (cell := sampled(experiment, scale)) is not None:
        labels, name = cell
        found["sample"] = identity(plan, plan.of(labels, experiment.column(name))[0])
    return found


def snapshot() -> dict[str, dict[str, Entry]]:
    """Experiment -> scale -> entry, everything composed anew."""
    found: dict[str, dict[str, Entry]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for path in all_paths():
            experiment = load(path)
            for name in scales():
                entries = found.setdefault(experiment.name, {})
                entries[name] = entry(experiment, read_scale(name), Places(cache_root=cache))
            print(experiment.name, {name: made["jobs"] for name, made in found[experiment.name].items()}, flush=True)
    return found


def main(arguments: list[str]) -> int:
    """Write the snapshot, or with ``--check`` say where it differs; 1 when it does."""
    now = snapshot()
    if arguments != ["--check"]:
        PATH.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return 0
    before = json.loads(PATH.read_text(encoding="utf-8"))
    differing = [
        f"{name} at scale {scale}: {before.get(name, {}).get(scale)} before, {found} now"
        for name, entries in now.items()
        for scale, found in entries.items()
        if before.get(name, {}).get(scale) != found
    ] + [f"{name}: no such experiment any more" for name in before.keys() - now.keys()]
    print("\n".join(differing) or "nothing differs")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
