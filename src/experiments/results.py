"""What came of a plan's jobs: the records and curves behind each cell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from src.errors import UserError
from src.evaluation.items import read_items
from src.evaluation.records import Record, differing, newest, read_record
from src.evaluation.statistics import Metric
from src.experiments.compare import Sample
from src.experiments.experiment import Column, Curve, MeanOf, MeanRankOf, Measured, RankOf
from src.experiments.jobs import Job, trained
from src.experiments.plan import Measurement, Plan
from src.experiments.published import Labels


@dataclass
class RecordIndex:
    """Records of a folder by what they measured; looks again when files were added.

    ``damaged``: file name -> what is wrong with it. Such a file hides no other.
    """

    folder: Path
    damaged: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, Record] = field(default_factory=dict)
    _index: dict[tuple[str, str, str], list[Record]] = field(default_factory=dict)

    def find(self, job: Job) -> Record | None:
        """The newest record of a measurement, or ``None``."""
        self.refresh()
        found = self._index.get(key_of(job), [])
        return newest(found) if found else None

    def repeated(self, job: Job) -> str:
        """What to say of a measurement that was repeated with another result; "" where there is none."""
        return differing(self._index.get(key_of(job), [])) if self.find(job) else ""

    def refresh(self) -> None:
        """Read the files that are new."""
        names = [entry.name for entry in os.scandir(self.folder)] if self.folder.is_dir() else []
        for name in sorted(set(names) - self._seen.keys() - self.damaged.keys()):
            if name.endswith(".json") and not name.startswith("."):
                try:
                    record = read_record(self.folder / name)
                except UserError as error:
                    self.damaged[name] = str(error)
                    continue
                self._seen[name] = record
                as_it_is = record.run.checkpoint == "as it is"
                own = record.run.directory if as_it_is else record.run.config_hash
                key = (record.benchmark, own, record.evaluation_hash)
                self._index.setdefault(key, []).append(record)


def key_of(job: Job) -> tuple[str, str, str]:
    """By what the records of a measurement are found."""
    own = job.run.name.rpartition("__")[2] if job.needs else str(job.run)  # nobody trains a model as it is
    return job.kind, own, job.evaluation


def done(job: Job, index: RecordIndex) -> bool:
    """Whether a job has its result: a finished run, or a record."""
    return trained(job.run) if job.is_training else index.find(job) is not None


@dataclass(frozen=True)
class Value:
    """A cell with one seed: the number as the record has it, the record itself, or why there is none."""

    seed: int
    number: float | None
    record: Record | None = None
    run: Path | None = None
    reason: str = ""


@dataclass(frozen=True)
class Results:
    """Reads the values behind the cells of a plan."""

    plan: Plan
    index: RecordIndex

    def values(self, labels: Labels, column: Column) -> list[Value]:
        """One value per seed, times the column's factor; derived columns are computed seed by seed."""
        column = self.plan.scale.column(column)
        if isinstance(column.source, MeanOf):
            return [self.mean(labels, column.source, seed) for seed in self.plan.seeds]
        if isinstance(column.source, RankOf):
            return [self.rank(labels, column.source, seed) for seed in self.plan.seeds]
        if isinstance(column.source, MeanRankOf):
            return [self.mean_rank(labels, column.source, seed) for seed in self.plan.seeds]
        if not isinstance(column.source, (Measured, Curve)):
            return [Value(seed, None, reason=column.source.reason) for seed in self.plan.seeds]
        return [self.measured(measurement) for measurement in self.plan.of(labels, column)]

    def measured(self, measurement: Measurement) -> Value:
        """The value of one measurement."""
        source, factor = measurement.column.source, measurement.column.scale
        if isinstance(source, Curve):
            value = curve_value(measurement.run, source)
            reason = "" if value is not None else "not trained yet"
            return Value(measurement.seed, None if value is None else factor * value, None, measurement.run, reason)
        assert isinstance(source, Measured)
        assert measurement.evaluation is not None
        record = self.index.find(self.plan.jobs[measurement.evaluation])
        if record is None:
            return Value(measurement.seed, None, None, measurement.run, "not measured yet")
        if source.metric not in record.metrics:
            known = ", ".join(record.metrics)
            raise UserError(f"record {record.id} has no metric '{source.metric}'; it has {known}")
        metric = record.metrics[source.metric]
        number = part_of(metric, source.part)
        number = None if number is None else factor * number
        return Value(measurement.seed, number, record, measurement.run, metric.get("reason", ""))

    def mean(self, labels: Labels, source: MeanOf, seed: int) -> Value:
        """The mean of other columns; none where one of them is missing."""
        numbers = [self.number(labels, name, seed) for name in source.columns]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return Value(seed, None, reason=f"needs {', '.join(source.columns)}")
        return Value(seed, sum(known) / len(known))

    def rank(self, labels: Labels, source: RankOf, seed: int) -> Value:
        """The row's place, ties sharing the better one; none where its own number is missing."""
        own = self.number(labels, source.column, seed)
        if own is None:
            return Value(seed, None, reason=f"needs {source.column}")
        higher = self.plan.experiment.column(source.column).higher_is_better
        rivals = [
            self.number(other, source.column, seed)
            for other in self.plan.experiment.keys
            if self.plan.experiment.rivals(labels, other, source.within)
        ]
        better = sum(number is not None and (number > own if higher else number < own) for number in rivals)
        return Value(seed, 1.0 + better)

    def mean_rank(self, labels: Labels, source: MeanRankOf, seed: int) -> Value:
        """The mean of the row's places by several columns; none where one of them is missing."""
        ranks = [self.rank(labels, RankOf(column, source.within), seed) for column in source.columns]
        if missing := [column for column, rank in zip(source.columns, ranks, strict=True) if rank.number is None]:
            return Value(seed, None, reason=f"needs {', '.join(missing)}")
        return Value(seed, sum(rank.number or 0.0 for rank in ranks) / len(ranks))

    def number(self, labels: Labels, column: str, seed: int) -> float | None:
        """The number of a cell with one seed."""
        values = self.values(labels, self.plan.experiment.column(column))
        return next((value.number for value in values if value.seed == seed), None)

    def sample(self, labels: Labels, column: Column) -> Sample:
        """A cell with the values of its single items, as far as there are any."""
        column = self.plan.scale.column(column)
        known = [value for value in self.values(labels, column) if value.number is not None]
        items: dict[int, Mapping[str, float]] = {}
        if isinstance(column.source, Measured) and column.source.part == "value":
            for value in known:
                assert value.record is not None
                items[value.seed] = scaled_items(value.record, column.source.metric, column.scale)
        return Sample({value.seed: value.number for value in known if value.number is not None}, items)

    def repeated(self) -> list[str]:
        """What to say of measurements that were repeated with another result."""
        jobs = {m.evaluation for m in self.plan.measurements if m.evaluation}
        said = (self.index.repeated(self.plan.jobs[job]) for job in sorted(jobs))
        return [text for text in said if text]

    def records(self) -> list[Record]:
        """All records that the table stands on, each once."""
        found = (self.index.find(self.plan.jobs[m.evaluation]) for m in self.plan.measurements if m.evaluation)
        return list({record.id + record.created: record for record in found if record is not None}.values())


@lru_cache(maxsize=1024)
def items_at(path: Path, items_hash: str) -> Mapping[str, Mapping[str, float]]:
    """The items in a file, read once; ``items_hash``: of their content."""
    return read_items(path, items_hash)


def scaled_items(record: Record, metric: str, factor: float) -> dict[str, float]:
    """The items of a metric in the table's unit; {} where the record has none."""
    if record.file is None or metric not in record.items.get("metrics", ()):
        return {}
    found = items_at(record.file.parent / record.items["path"], record.items["hash"])[metric]
    return {item: factor * value for item, value in found.items()}


def part_of(metric: Metric, part: str) -> float | None:
    """A metric's value, or the distance from it to the end of its interval ``below`` or ``above``."""
    end = metric["low"] if part == "below" else metric["high"]
    value = metric["value"]
    if part == "value" or value is None:
        return value
    return None if end is None else end - value


def curve_value(run: Path, source: Curve) -> float | None:
    """The largest, last or summed value of a metric in the run's files; ``None`` until the run is finished."""
    if not trained(run):
        return None
    name = "timings.jsonl" if source.split == "timings" else "metrics.jsonl"
    values = [value for split, value in curve(run / name, source.metric) if split == source.split]
    if not values:
        raise UserError(f"{run / name} has no '{source.metric}' on {source.split}; correct the experiment")
    return max(values) if source.take == "max" else sum(values) if source.take == "sum" else values[-1]


def curve(path: Path, metric: str) -> Iterator[tuple[str, float]]:
    """(split, value) of a metric over the steps of a run; the split of timings.jsonl is ``timings``."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        if isinstance(line.get(metric), (int, float)):
            yield str(line.get("split", path.stem)), float(line[metric])
