"""The runs of a sweep and its presets: settings by key, seed and numbers, from run directories and records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeGuard

import yaml

from src.config import CONF
from src.evaluation.record import Record, run_constants
from src.reporting.runs import Run

Value = str | float | int | bool | None


@dataclass
class Trial:
    """One run: its settings by key (without the seed), and what was measured of it by metric name."""

    name: str
    settings: dict[str, Value]
    seed: int
    numbers: dict[str, float] = field(default_factory=dict)


def shown(value: Value) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else f"{value:g}"


def order(value: Value) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    return (False, float(value), "") if is_number(value) else (True, 0.0, shown(value))


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def key_of(text: str) -> str:
    """A key as settings have it: those of method and training go without their section, as in records."""
    return text.removeprefix("method.").removeprefix("training.")


@dataclass(frozen=True)
class Preset:
    """A file of conf/sweep: overrides of every job, and the values of each swept key."""

    name: str
    fixed: Mapping[str, Value]
    swept: Mapping[str, tuple[Value, ...]]

    def has(self, settings: Mapping[str, Value]) -> bool:
        """Whether a run may be of this sweep: it agrees in what is fixed."""
        return all(same(settings.get(key), value) for key, value in self.fixed.items())


def same(one: Value, other: Value) -> bool:
    """Equality up to rounding."""
    if is_number(one) and is_number(other):
        return math.isclose(float(one), float(other), rel_tol=1e-9)
    return one == other


def presets() -> list[str]:
    """Names of the sweeps of conf/sweep."""
    return sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "none")


def read_preset(name: str) -> Preset:
    """The preset of that name."""
    content = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))
    values = {
        key_of(key): tuple(parsed(part) for part in str(text).split(",")) for key, text in content["params"].items()
    }
    return Preset(
        name,
        {key: value[0] for key, value in values.items() if len(value) == 1},
        {key: value for key, value in values.items() if len(value) > 1},
    )


def parsed(text: str) -> Value:
    """A value of an override: a number (also 4.0e-7, which YAML takes for a word) or a word."""
    try:
        return float(text)
    except ValueError:
        value: Value = yaml.safe_load(text)
        return value


def trials_of(runs: Iterable[Run], records: Iterable[Record]) -> tuple[list[Trial], list[str]]:
    """Every run that is finished or measured, with its numbers; and notes on what was left out."""
    found: dict[str, Trial] = {}
    unfinished = 0
    for run in runs:
        if run.state != "finished" or not run.config:
            unfinished += bool(run.config_text)
            continue
        names = {name: run.section(name) for name in ("method", "model", "dataset")}
        seed = int(run.seed or 0)
        constants = plain(run_constants(run.config), seed)
        trial = Trial(run.name, {**names, "noise": run.noise, **constants}, seed)
        trial.numbers |= best_of_curves(run)
        found[run.config_hash or run.name] = trial
    for name, record in measured(records):
        info = record.run
        names = {"method": info.method, "model": info.model, "dataset": info.dataset, "noise": info.noise}
        settings = {**names, **plain(info.constants, info.seed)}
        trial = found.setdefault(info.config_hash, Trial(info.directory, settings, info.seed))
        numbers = {metric: content["value"] for metric, content in record.metrics.items()}
        trial.numbers |= {f"{name}/{metric}": value for metric, value in numbers.items() if value is not None}
    return list(found.values()), [f"{unfinished} unfinished runs are left out"] if unfinished else []


def measured(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """(benchmark, record), the newest last. Where a benchmark was measured in several ways, each is named apart."""
    ordered = sorted(records, key=lambda record: record.created)
    ways: dict[str, list[str]] = {}
    for record in ordered:
        known = ways.setdefault(record.benchmark, [])
        if way_of(record) not in known:
            known.append(way_of(record))
    return [
        (record.benchmark if len(ways[record.benchmark]) == 1 else f"{record.benchmark}[{way_of(record)}]", record)
        for record in ordered
    ]


def way_of(record: Record) -> str:
    """What must be equal for numbers of a benchmark to be compared: checkpoint, split, judge, scale."""
    judge = record.judge.name if record.judge else ""
    return ", ".join(part for part in (record.run.checkpoint, record.data.split, judge, record.scale) if part)


def plain(constants: Mapping[str, Any], seed: int) -> dict[str, Value]:
    """Constants whose values can be compared: numbers as such, lists as text, and without the run's seed."""
    found: dict[str, Value] = {}
    for key, value in constants.items():
        if key == "seed" and value == seed:  # a method's, which follows the run's
            continue
        if is_number(value):
            found[key] = float(value)
        else:
            known = value is None or isinstance(value, (str, bool))
            found[key] = value if known else json.dumps(value, sort_keys=True)
    return found


def best_of_curves(run: Run) -> dict[str, float]:
    """Every validation metric at the run's best checkpoint (at its last validation where none is named)."""
    step = run.status.get("best_step")
    found = {}
    for (split, metric), (steps, values) in run.curves.items():
        if split == "validation":
            found[f"validation/{metric}"] = values[steps.index(step)] if step in steps else values[-1]
    return found


def varying(trials: Sequence[Trial]) -> set[str]:
    """Keys with more than one value among the runs; a run that has no such key does not count."""
    values: dict[str, set[Value]] = {}
    for trial in trials:
        for key, value in trial.settings.items():
            values.setdefault(key, set()).add(value)
    return {key for key, found in values.items() if len(found) > 1}


def missing(chosen: Sequence[Preset], trials: Sequence[Trial]) -> list[str]:
    """Settings of the presets that no finished run has."""
    notes = []
    for preset in chosen:
        combinations = [dict(zip(preset.swept, values, strict=True)) for values in product(*preset.swept.values())]
        absent = [
            combination
            for combination in combinations
            if not any(
                preset.has(trial.settings) and all(same(trial.settings.get(k), v) for k, v in combination.items())
                for trial in trials
            )
        ]
        if absent:
            first = "; ".join(" ".join(f"{k}={shown(v)}" for k, v in one.items()) for one in absent[:4])
            more = "; …" if len(absent) > 4 else ""
            notes.append(
                f"{len(absent)} of {len(combinations)} settings of {preset.name} are not run yet: {first}{more}"
            )
    return notes
