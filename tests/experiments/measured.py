"""A small grid with records of its own, without training anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.evaluation.records import DataInfo, JudgeInfo, Record, RunInfo, write_record
from src.experiments.experiment import Column, Experiment, Meaning, Measured
from src.experiments.facts import Composer
from src.experiments.jobs import Job
from src.experiments.plan import Measurement, Plan
from src.experiments.published import PublishedTable
from src.experiments.results import RecordIndex, Results
from src.experiments.scale import Scale

ENVIRONMENT = {"commit": "0123456789abcdef", "dirty": False, "python": "3.11.9", "torch": "2.13.0", "transformers": "5"}
WINS = Column("wins", "Wins (%)", Measured("alpaca_eval", "win_rate"))
SCALE = Scale("laptop", "own", {}, (), (), (), {}, {}, {}, ("Tiny models.",))

Values = Mapping[tuple[str, str], Mapping[int, Sequence[float]]]
"""(model, method) -> seed -> the value of each question."""


def experiment_of(
    rows: Sequence[tuple[str, str]],
    printed: Mapping[tuple[str, str], Sequence[float | None]] | None = None,
    columns: Sequence[Column] = (WINS,),
    **changes: Any,
) -> Experiment:
    """A grid of models and methods. ``printed``: the paper's numbers, one for each column."""
    axes = {
        "model": {model: Meaning((), model) for model, _ in rows},
        "method": {method: Meaning((f"method={method}",)) for _, method in rows},
    }
    published = None
    if printed is not None:
        names = ("model", "method", *(column.name for column in columns))
        cells = tuple(dict(zip(names, (*row, *values), strict=True)) for row, values in printed.items())
        published = PublishedTable("paper", "2", "wins", names, cells, ())
    found = Experiment(
        "paper", "2", "grid", "Wins", axes, {}, tuple({"model": a, "method": b} for a, b in rows), tuple(columns), (),
        ("model",), (), ("A note.",), published, Path("table2.yaml"),
    )  # fmt: skip
    return replace(found, **changes)


def record_of(model: str, method: str, seed: int, values: Sequence[float], **changes: Any) -> Record:
    """The record of one run, over questions q0, q1, …"""
    mean = sum(values) / len(values)
    name = hashlib.sha256(f"{model} {method} {seed}".encode()).hexdigest()[:10]
    record = Record(
        benchmark="alpaca_eval",
        run=RunInfo(f"runs/{method}__{name}", name, method, model, "toy", "none", seed, 10, "best", manifest="feed"),
        data=DataInfo("toy", "da7a", len(values)),
        metrics={"win_rate": {"value": mean, "low": None, "high": None, "n": len(values)}},
        environment=ENVIRONMENT,
        command="python -m src.evaluation.alpaca_eval",
        created=f"2026-02-0{seed + 1}T00:00:00+00:00",
        judge=JudgeInfo("oracle", "oracle", "1dea"),
        evaluation_hash="e0e0",
        scale="laptop",
    )
    return replace(record, **changes)


def items_of(values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Each question's value."""
    return {"win_rate": {f"q{place}": value for place, value in enumerate(values)}}


def results_of(
    folder: Path,
    experiment: Experiment,
    values: Values,
    seeds: Sequence[int] = (0,),
    change: Callable[[Record], Record] = lambda record: record,
) -> Results:
    """The results of ``experiment`` from records that are written to ``folder``; what is not in ``values`` is not
    measured. ``change``: of every record before it is written."""
    jobs: dict[str, Job] = {}
    measurements = []
    for labels in experiment.keys:
        row = labels["model"], labels["method"]
        for seed in seeds:
            run = Path(record_of(*row, seed, [0.0]).run.directory)
            job = Job("alpaca_eval", "src.evaluation.alpaca_eval", (f"checkpoint={run}",), run, ("t",), "e0e0")
            jobs[job.id] = job
            columns = [column for column in experiment.columns if isinstance(column.source, Measured)]
            measurements += [Measurement(labels, column, seed, run, "t", job.id) for column in columns]
            if seed in values.get(row, {}):
                own = values[row][seed]
                write_record(folder, change(record_of(*row, seed, own)), items_of(own))
    plan = Plan(experiment, SCALE, tuple(seeds), tuple(measurements), jobs, Composer(str(folder / "cache")))
    return Results(plan, RecordIndex(folder))
