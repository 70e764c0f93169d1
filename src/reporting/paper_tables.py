"""A paper's table, printed and reproduced side by side, with what is best, what is certain, and where it is from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from statistics import fmean, stdev

from src.experiments.claims import ahead
from src.experiments.compare import Estimate
from src.experiments.experiment import Column, Experiment, MeanOf, MeanRankOf, RankOf
from src.experiments.published import Labels
from src.experiments.results import Results, Value
from src.experiments.verdicts import estimates, printed_value
from src.reporting.escapes import DASH
from src.reporting.provenance import provenance, refuse_mixed

STAR = "*"
LEGEND = (
    f"Bold: best of its rows. {STAR}: better than the next best of ours, as the 95 % interval of their paired "
    "difference (bootstrap over seeds and prompts) does not reach 0."
)


@dataclass(frozen=True)
class Pair:
    """A cell: the printed number, the reproduced mean, its standard deviation over ``n`` runs; ``reason``: why there
    is no reproduced one; ``bold``: best printed, best reproduced among the rows it is compared with; ``lead``: by how
    much the best is ahead of the next best, ``star``: whether that is certain; ``sources``: records (files) and, of
    curves, runs behind our number."""

    published: float | None
    mean: float | None
    deviation: float | None
    n: int
    reason: str = ""
    bold: tuple[bool, bool] = (False, False)
    lead: Estimate | None = None
    sources: tuple[str, ...] = ()

    @property
    def star(self) -> bool:
        """Whether it is the best beyond doubt."""
        return self.bold[1] and self.lead is not None and self.lead.above


@dataclass(frozen=True)
class PaperTable:
    """All cells of a table, by row and column, and the lines below it; ``seeds``: how many there are of each cell."""

    experiment: Experiment
    columns: tuple[Column, ...]
    rows: tuple[tuple[Labels, tuple[Pair, ...]], ...]
    footer: tuple[str, ...]
    seeds: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes whose labels stand before the cells."""
        return tuple(self.experiment.keys[0])

    @property
    def complete(self) -> bool:
        """Whether every cell has a reproduced number."""
        return all(pair.mean is not None for _, pairs in self.rows for pair in pairs)

    @property
    def title(self) -> str:
        """Paper, table and what it is of."""
        return f"{self.experiment.paper}, {self.experiment.path.stem}: {self.experiment.title}"

    @property
    def legend(self) -> str:
        """What the marks of this table mean; "" without any."""
        pairs = [pair for _, row in self.rows for pair in row]
        if not any(any(pair.bold) for pair in pairs):
            return ""
        return LEGEND if any(pair.star for pair in pairs) else LEGEND.partition(f" {STAR}")[0]

    @property
    def below(self) -> list[str]:
        """Every line below the table: legend, reasons of dashes, provenance."""
        return [line for line in (self.legend, *reasons_of(self), *self.footer) if line]


def table_of(results: Results, command: str) -> PaperTable:
    """The table as far as there are results. Raises ``UserError`` for records that may not stand in one table."""
    experiment = results.plan.experiment
    columns = tuple(results.plan.scale.column(with_digits(experiment, column)) for column in experiment.columns)
    records = results.records()
    refuse_mixed(results, records)
    keys = experiment.keys
    cells = {(row, c.name): pair_of(results, labels, c) for row, labels in enumerate(keys) for c in columns}
    rows = []
    for row, labels in enumerate(keys):
        rivals = [i for i, other in enumerate(keys) if experiment.rivals(labels, other, experiment.bold_within)]
        pairs = []
        for column in columns:
            pair = bold(cells[row, column.name], [cells[i, column.name] for i in rivals], column)
            others = [i for i in rivals if i != row]
            pairs.append(replace(pair, lead=lead_of(results, column, row, others, cells) if pair.bold[1] else None))
        rows.append((labels, tuple(pairs)))
    return PaperTable(
        experiment, columns, tuple(rows), tuple(provenance(results, records, command)), len(results.plan.seeds)
    )


def with_digits(experiment: Experiment, column: Column) -> Column:
    """The column with as many digits as the paper prints there, if those are more than its own."""
    published = experiment.published
    values = [] if published is None else [published.value(row, column.name) for row in published_rows(experiment)]
    printed = [max(0, -int(Decimal(str(value)).as_tuple().exponent)) for value in values if value is not None]
    decimals = max(printed, default=0)
    return replace(column, digits=decimals) if column.digits < decimals <= 4 else column


def published_rows(experiment: Experiment) -> list[Labels]:
    """The labels of all rows, with those that they share."""
    return [{**experiment.fixed, **labels} for labels in experiment.keys]


def pair_of(results: Results, labels: Labels, column: Column) -> Pair:
    """One cell. A number stands there only when every seed has one: means over other seeds do not compare."""
    printed = printed_value(results.plan.experiment, labels, column)
    values = results.values(labels, column)
    numbers = [value.number for value in values if value.number is not None]
    if len(numbers) < len(values) or not numbers:
        return Pair(printed, None, None, 0, reason_of(values))
    runs = distinct(values)
    sources = tuple(dict.fromkeys(sources_of(results, labels, column)))
    return Pair(printed, fmean(numbers), stdev(numbers) if runs > 1 else None, runs, sources=sources)


def sources_of(results: Results, labels: Labels, column: Column) -> list[str]:
    """The records and runs that a cell was made of."""
    source = column.source
    if isinstance(source, (MeanOf, MeanRankOf, RankOf)):
        names = (source.column,) if isinstance(source, RankOf) else source.columns
        columns = [results.plan.experiment.column(name) for name in names]
        return [found for one in columns for found in sources_of(results, labels, one)]
    values = results.values(labels, column)
    records = [value.record.file.name for value in values if value.record is not None and value.record.file]
    return records or [str(value.run) for value in values if value.run is not None]


def distinct(values: Sequence[Value]) -> int:
    """How many runs stand behind the values: a model that nobody trained here is one, whatever the seed."""
    if all(value.record is not None for value in values):
        return len({(value.record.id, value.record.created) for value in values if value.record is not None})
    return len(values)


def reason_of(values: Sequence[Value]) -> str:
    """Why a cell is empty; with the seeds, where some of them have a number."""
    missing = [value for value in values if value.number is None]
    reasons = "; ".join(dict.fromkeys(value.reason or "no value" for value in missing))
    if len(missing) == len(values):
        return reasons
    seeds = ", ".join(str(value.seed) for value in missing)
    return f"{reasons} (seed {seeds} of {len(values)}, and rows must have the same seeds to be compared)"


def bold(pair: Pair, rivals: Sequence[Pair], column: Column) -> Pair:
    """The pair with its best numbers marked; nothing is best among fewer than two, or where nothing is better."""
    if not column.compared:
        return pair
    sign = 1.0 if column.higher_is_better else -1.0

    def best(own: float | None, others: Sequence[float | None]) -> bool:
        known = [sign * value for value in others if value is not None]
        return own is not None and len(known) > 1 and math.isclose(sign * own, max(known))

    marks = (best(pair.published, [r.published for r in rivals]), best(pair.mean, [r.mean for r in rivals]))
    return replace(pair, bold=marks)


def lead_of(
    results: Results, column: Column, row: int, rivals: Sequence[int], cells: dict[tuple[int, str], Pair]
) -> Estimate | None:
    """By how much the best row is ahead of the next best; ``None`` for places, whose differences are not measured."""
    if isinstance(column.source, (RankOf, MeanRankOf)):
        return None
    sign = 1.0 if column.higher_is_better else -1.0
    means = {rival: cells[rival, column.name].mean for rival in rivals}
    known = {rival: sign * mean for rival, mean in means.items() if mean is not None}
    if not known:
        return None
    keys = results.plan.experiment.keys
    nearest = max(known, key=lambda rival: known[rival])
    comparison = ahead((keys[row], column.name), (keys[nearest], column.name), higher=column.higher_is_better)
    return estimates(results, [comparison])[0]


def printed(column: Column, value: float | None) -> str:
    """A number with the column's digits; a dash without one."""
    return DASH if value is None else f"{value:.{column.digits}f}"


def reproduced(column: Column, pair: Pair, seeds: int = 1) -> str:
    """Mean and standard deviation; how many runs, where they are not as many as there are seeds."""
    deviation = "" if pair.deviation is None else f" ± {pair.deviation:.{column.digits}f}"
    runs = f" (n={pair.n})" if pair.mean is not None and pair.n != seeds else ""
    return printed(column, pair.mean) + deviation + runs


def reasons_of(table: PaperTable) -> list[str]:
    """Why cells are empty, each reason once, with its columns and, where not all rows are, their number."""
    found: dict[str, dict[str, int]] = {}
    for _, pairs in table.rows:
        for column, pair in zip(table.columns, pairs, strict=True):
            if pair.mean is None:
                columns = found.setdefault(pair.reason or "no value", {})
                columns[column.title] = columns.get(column.title, 0) + 1
    lines = []
    for reason, columns in found.items():
        named = [f"{title}{f' in {count} rows' if count < len(table.rows) else ''}" for title, count in columns.items()]
        lines.append(f"{DASH} {', '.join(named)}: {reason}")
    if any(pair.published is None for _, pairs in table.rows for pair in pairs):
        lines.append(f"{DASH} under paper: the paper prints no number there, or it cannot be read.")
    return lines


def write_table(results: Results, folder: Path, command: str) -> tuple[list[Path], str]:
    """Write the table and its claims in all formats to ``folder``; returns the files and the Markdown texts."""
    from src.reporting.claims_table import claims_texts
    from src.reporting.table_formats import table_texts

    stem = f"{results.plan.experiment.name}_{results.plan.scale.name}"
    tables, claims = table_texts(table_of(results, command)), claims_texts(results, command)
    paths = [written(folder / f"{stem}.{name}", text) for name, text in tables.items()]
    paths += [written(folder / f"{stem}_claims.{name}", text) for name, text in claims.items()]
    return paths, "\n".join([tables["md"], *([claims["md"]] if claims else [])])


def written(path: Path, text: str) -> Path:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path
