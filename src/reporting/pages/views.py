"""What the pages show of each run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.evaluation.records import Record
from src.reporting.panels import BENCHMARKS
from src.reporting.runs import Run

ACCURACY = "rewards/accuracies"
HEADLINES: Mapping[str, tuple[str, str, float, int]] = {
    "ranking": ("accuracy/reward", "Ranking, %", 100.0, 1),
    "alpaca_eval": ("length_controlled_winrate", "AlpacaEval 2 LC, %", 1.0, 1),
    "arena_hard": ("score", "Arena-Hard, %", 1.0, 1),
    "mt_bench": ("overall", "MT-Bench", 1.0, 2),
    "rm_bench": ("overall", "RM-Bench, %", 100.0, 1),
}
"""Benchmark -> its first number, heading, factor and digits; others show the first metric of their record."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The first number of a benchmark. ``value``: None where it could not be computed; ``named``: which number it is,
    where the heading does not say it; ``more``: further records of the benchmark, of other settings or checkpoints."""

    text: str
    value: float | None
    title: str
    named: str = ""
    more: int = 0


@dataclass(frozen=True, slots=True)
class RunView:
    """A run in the report. ``label`` is short and unique; ``series``: its colour; ``page``: its file below runs/."""

    run: Run
    label: str
    series: int
    page: str
    records: Sequence[Record] = field(default=())
    headlines: Mapping[str, Headline] = field(default_factory=dict)

    @property
    def progress(self) -> float | None:
        """Share of the planned steps done, 0 to 1; None when the plan is unknown."""
        total = self.run.total_steps
        return None if total is None else min(1.0, self.run.step / total)

    @property
    def best_accuracy(self) -> float | None:
        """Highest validation accuracy of the run; None without evaluation."""
        curve = self.run.curves.get(("validation", ACCURACY))
        return max(curve[1]) if curve else None

    @property
    def noise(self) -> str:
        """In words."""
        return "clean labels" if self.run.noise == "none" else self.run.noise

    @property
    def words(self) -> str:
        """What the text filter looks in."""
        run = self.run
        parts = [self.label, run.name, run.config_hash, self.noise, run.state, str(run.status.get("message", ""))]
        return " ".join(part.lower() for part in parts if part)


def views_of(runs: Sequence[Run], records: Iterable[Record], colours: Mapping[str, int]) -> list[RunView]:
    """A view of each run, with its records (newest first within a benchmark)."""
    by_hash: dict[str, list[Record]] = {}
    for record in records:
        by_hash.setdefault(record.run.config_hash, []).append(record)
    labels, taken = run_labels(runs), Counter[str]()
    views = []
    for run in runs:
        own = by_hash.get(run.config_hash, []) if run.config_hash else []
        own = sorted(own, key=lambda record: record.created, reverse=True)
        own.sort(key=lambda record: record.benchmark)
        path = str(run.path)
        page = f"{unique(file_name(run.name), taken)}.html"
        views.append(RunView(run, labels[path], colours[path], page, own, headlines_of(own)))
    return views


def unique(name: str, taken: Counter[str]) -> str:
    """The name, numbered where it was taken before (file systems may not tell upper from lower case)."""
    taken[name.lower()] += 1
    count = taken[name.lower()]
    return name if count == 1 else unique(f"{name}-{count}", taken)


def headlines_of(records: Iterable[Record]) -> dict[str, Headline]:
    """Benchmark -> the first number of its newest record."""
    found: dict[str, Headline] = {}
    for record in records:
        if (earlier := found.get(record.benchmark)) is not None:
            found[record.benchmark] = replace(earlier, more=earlier.more + 1)
        elif record.metrics:
            found[record.benchmark] = headline(record)
    return found


def headline(record: Record) -> Headline:
    """The first number of a record, with its interval in the title."""
    wanted, _, factor, digits = HEADLINES.get(record.benchmark, ("", "", 1.0, 3))
    name = first_metric(record.benchmark, list(record.metrics))
    if name != wanted:
        factor, digits = 1.0, 3
    metric, told = record.metrics[name], "" if name == wanted else name
    if metric["value"] is None:
        return Headline("–", None, f"{name}: {metric.get('reason', 'no value')}", told)
    value = factor * metric["value"]
    interval = ""
    if metric["low"] is not None and metric["high"] is not None:
        interval = f" [{factor * metric['low']:.{digits}f}, {factor * metric['high']:.{digits}f}]"
    return Headline(f"{value:.{digits}f}", value, f"{name} {value:.{digits}f}{interval}, n = {metric['n']}", told)


def first_metric(benchmark: str, metrics: Sequence[str]) -> str:
    """The benchmark's own headline where it is among the metrics, else the first of them."""
    wanted = HEADLINES.get(benchmark, ("", "", 1.0, 3))[0]
    return wanted if wanted in metrics else metrics[0]


def benchmarks_of(views: Iterable[RunView]) -> list[tuple[str, str]]:
    """(benchmark, heading) of the benchmarks that some run has, in the order of the dashboards, others by name."""
    present = {name for view in views for name in view.headlines}
    order = [bar.benchmark for section in BENCHMARKS for bar in section.bars]
    known = sorted(present, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [(name, HEADLINES[name][1] if name in HEADLINES else name.replace("_", " ")) for name in known]


def run_labels(runs: Sequence[Run]) -> dict[str, str]:
    """A short name for each run path: method, noise, seed, as far as needed the folder's hash or the path."""
    labels = {str(run.path): label_of(run) for run in runs}
    suffixes = (
        {str(run.path): f"#{run.name.rsplit('__', 1)[-1][:6]}" for run in runs},
        {str(run.path): str(run.path) for run in runs},
    )
    for suffix in suffixes:
        counts = Counter(labels.values())
        labels = {path: f"{label} {suffix[path]}" if counts[label] > 1 else label for path, label in labels.items()}
    return labels


def label_of(run: Run) -> str:
    """Method, model, data set, noise and seed of a run; its folder's name where it does not say its method."""
    parts = [run.section("method"), run.section("model"), run.section("dataset")]
    if parts[0] == "unknown":
        return run.name
    noise = [] if run.noise == "none" else [run.noise]
    return ", ".join([*parts, *noise, *([] if run.seed is None else [f"seed {run.seed}"])])


def file_name(name: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", Path(name).name)[:150] or "run"
