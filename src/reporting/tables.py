"""Results tables from records: one table per (benchmark, model, dataset, noise, split, settings), one row per method.

Runs that differ only in the seed share a row: mean and standard deviation over the seeds. A single run shows its
bootstrap interval. Only records enter a table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from src.errors import UserError
from src.evaluation.records import Record
from src.evaluation.statistics import METRICS
from src.reporting.escapes import escape_markdown

HIGHER_IS_BETTER = ("accuracy/", "spearman/")  # lengths have no better end: nothing in bold
TITLES = {
    "accuracy/reward": "Accuracy, method's own reward",
    "accuracy/average": "Accuracy, averaged log-prob",
    "accuracy/sum": "Accuracy, summed log-prob",
    "accuracy/reference": "Accuracy, vs reference",
    "spearman/average": "Spearman, averaged log-prob",
    "spearman/reference": "Spearman, vs reference",
    "spearman/average_eq10": "Spearman, printed formula",
    "lengths/chosen_mean": "Chosen tokens",
    "lengths/rejected_mean": "Rejected tokens",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number: with an interval (one run) or a standard deviation over seeds; or the ``reason`` it is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    n: int = 0
    reason: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A method (``label`` says more where several settings of it were measured) and its cells, by metric."""

    label: str
    method: str
    seeds: tuple[int, ...]
    hashes: tuple[str, ...]
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that may be compared with each other, and what they have in common; ``judge``: of benchmarks with one."""

    benchmark: str
    model: str
    dataset: str
    noise: str
    split: str
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=())
    judge: str = ""

    @property
    def title(self) -> str:
        """What the rows have in common, in a line."""
        noise = "clean labels" if self.noise == "none" else self.noise
        return f"{self.dataset}, {self.model}, {noise}, {self.split} split"

    @property
    def settings_line(self) -> str:
        """The settings of the measurement as ``key=value``, in order of key; unset ones are left out."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self.settings.items()) if value is not None)

    @property
    def notes(self) -> list[str]:
        """Why cells are empty or have no interval, each reason once."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            for metric, cell in row.cells.items():
                if cell.reason:
                    reasons.setdefault(f"{title(metric)}: {cell.reason}", []).append(row.label)
        everywhere = len(self.rows)
        return [
            text if len(labels) == everywhere else f"{text} ({', '.join(labels)})" for text, labels in reasons.items()
        ]


def title(metric: str) -> str:
    """Column heading of a metric."""
    if metric in TITLES:
        return TITLES[metric]
    for part in ("clean", "flipped"):
        if (base := metric.removesuffix(f"_{part}")) in TITLES and base != metric:
            return f"{TITLES[base]} ({part} pairs)"
    return metric


def build_tables(records: Iterable[Record]) -> list[Table]:
    """Group records into tables; rows best first by the first accuracy column, tables by name.

    Raises ``UserError`` when the records of a table have different judges, whose numbers do not compare.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        run = record.run
        settings = json.dumps(dict(record.settings), sort_keys=True)
        data = (record.data.split, record.data.content_hash)
        key = (record.benchmark, run.dataset, run.model, run.noise, *data, settings)
        groups.setdefault(key, []).append(record)
    return [_table(groups[key]) for key in sorted(groups)]


def _table(records: list[Record]) -> Table:
    first = records[0]
    refuse_several_judges(records)
    rows = [_row(label, group) for label, group in _label_rows(records)]
    present = {metric for row in rows for metric in row.cells}
    metrics = tuple([m for m in METRICS if m in present] + sorted(present - set(METRICS)))
    lead = metrics[0] if metrics else ""
    rows.sort(key=lambda row: (-_sort_value(row.cells.get(lead)), row.label))
    return Table(
        benchmark=first.benchmark,
        model=first.run.model,
        dataset=first.run.dataset,
        noise=first.run.noise,
        split=first.data.split,
        settings=first.settings,
        metrics=metrics,
        rows=tuple(_mark_best(rows, metrics)),
        judge="" if first.judge is None else first.judge.model,
    )


def refuse_several_judges(records: Sequence[Record]) -> None:
    """Raise ``UserError`` when records of one benchmark have different judges, whose numbers do not compare."""
    judges: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        identity = () if record.judge is None else record.judge.identity
        judges.setdefault(identity, []).append(record)
    if len(judges) < 2:
        return
    said = "; ".join(
        f"{' '.join((*identity[:2], f'with prompts {identity[2][:8]}')) if identity else 'no judge'}: "
        f"{', '.join(record.id for record in found)}"
        for identity, found in judges.items()
    )
    first = records[0]
    raise UserError(
        f"the {first.benchmark} records of {first.run.model} on {first.run.dataset} have {len(judges)} judges "
        f"({said}), whose numbers do not compare; give the records of one judge alone, such as a folder of theirs: "
        "records=FOLDER"
    )


def _sort_value(cell: Cell | None) -> float:
    return cell.value if cell is not None and cell.value is not None else float("-inf")


def _label_rows(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Records of one row each, labelled: by method, then by the constants (and checkpoint) in which its rows differ.

    Rows that still share a seed differ in something the record does not name; they are told apart by config hash.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        key = (record.run.method, json.dumps(record.run.constants, sort_keys=True), record.run.checkpoint)
        groups.setdefault(key, []).append(record)
    by_method: dict[str, list[list[Record]]] = {}
    for (method, _, _), group in groups.items():
        by_method.setdefault(method, []).append(group)
    labelled = []
    for method, rows in by_method.items():
        for group in rows:
            label = " ".join([method, *_differences(group[0], [row[0] for row in rows])])
            hashes = {record.run.config_hash for record in group}
            if len({record.run.seed for record in group}) == len(hashes):
                labelled.append((label, group))
            else:
                apart = [(h, [r for r in group if r.run.config_hash == h]) for h in sorted(hashes)]
                labelled += [(f"{label} #{config_hash[:6]}", part) for config_hash, part in apart]
    return labelled


def _differences(record: Record, siblings: Sequence[Record]) -> list[str]:
    def described(one: Record) -> dict[str, Any]:
        return {**one.run.constants, "checkpoint": one.run.checkpoint}

    own, others = described(record), [described(sibling) for sibling in siblings]
    keys = sorted({key for other in others for key in other})
    return [f"{key}={own.get(key)}" for key in keys if len({repr(other.get(key)) for other in others}) > 1]


def _row(label: str, records: list[Record]) -> Row:
    records = sorted(records, key=lambda record: record.run.seed)
    metrics = {metric for record in records for metric in record.metrics}
    return Row(
        label=label,
        method=records[0].run.method,
        seeds=tuple(record.run.seed for record in records),
        hashes=tuple(record.run.config_hash for record in records),
        cells={metric: _cell([r for r in records if metric in r.metrics], metric) for metric in sorted(metrics)},
    )


def _cell(records: list[Record], metric: str) -> Cell:
    found = [record.metrics[metric] for record in records]
    values = [one["value"] for one in found if one["value"] is not None]
    reasons = sorted({reason for one in found if (reason := one.get("reason"))})
    if not values:
        return Cell(None, reason="; ".join(reasons) or "not computed")
    n = max(one["n"] for one in found)
    if len(values) == 1:
        one = next(one for one in found if one["value"] is not None)
        return Cell(values[0], one["low"], one["high"], n=one["n"], reason="; ".join(reasons))
    return Cell(fmean(values), deviation=stdev(values), n=n, reason="; ".join(reasons))


def _mark_best(rows: list[Row], metrics: Iterable[str]) -> list[Row]:
    if len(rows) < 2:
        return rows
    best: dict[str, float] = {}
    for metric in metrics:
        values = [row.cells[metric].value for row in rows if metric in row.cells]
        known = [value for value in values if value is not None]
        if metric.startswith(HIGHER_IS_BETTER) and len(known) > 1:
            best[metric] = max(known)
    nothing = float("nan")  # equal to no value
    return [
        replace(row, cells={m: replace(c, best=c.value == best.get(m, nothing)) for m, c in row.cells.items()})
        for row in rows
    ]


def number(metric: str, value: float) -> str:
    """A value as the tables print it: accuracies in percent, correlations with three decimals, lengths with one."""
    if metric.startswith("accuracy/"):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if metric.startswith("lengths/") else f"{value:.3f}"


def spread(metric: str, cell: Cell) -> str:
    """What follows the value: ``[low, high]`` of one run, or ``± sd`` over seeds; empty without either."""
    if cell.deviation is not None:
        return f"± {number(metric, cell.deviation)}"
    if cell.low is None or cell.high is None:
        return ""
    return f"[{number(metric, cell.low)}, {number(metric, cell.high)}]"


def cell_text(metric: str, cell: Cell | None) -> str:
    """A cell in plain text; a dash where there is no value."""
    if cell is None or cell.value is None:
        return "–"
    return f"{number(metric, cell.value)} {spread(metric, cell)}".strip()


LEGEND = (
    "Accuracies in percent (strict, ties count as wrong). [low, high]: 95 % bootstrap interval over prompts of one "
    "run; ±: standard deviation over seeds. Bold: best of its column."
)


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables in Markdown, each under a heading, with its notes; the legend once, at the end."""
    blocks = []
    for table in tables:
        lines = [f"### {escape_markdown(table.benchmark)}: {escape_markdown(table.title)}", ""]
        heads = ["Method", "Seeds", *(title(metric) for metric in table.metrics)]
        lines += [
            "| " + " | ".join(escape_markdown(head) for head in heads) + " |",
            "|---|" + "---:|" * (len(heads) - 1),
        ]
        for row in table.rows:
            texts = [escape_markdown(row.label), str(len(row.seeds))]
            for metric in table.metrics:
                cell = row.cells.get(metric)
                text = cell_text(metric, cell)
                texts.append(f"**{text}**" if cell is not None and cell.best else text)
            lines.append("| " + " | ".join(texts) + " |")
        lines += ["", *(f"* {escape_markdown(note)}" for note in table.notes)]
        if table.judge:
            lines.append(f"* Judge: {escape_markdown(table.judge)}")
        if table.settings:
            lines.append(f"* Settings: {escape_markdown(table.settings_line)}")
        blocks.append("\n".join(lines).rstrip())
    return "\n\n".join([*blocks, LEGEND]) + "\n"


CSV_FIELDS = (
    "benchmark", "model", "dataset", "noise", "split", "settings", "method", "label", "seeds", "config_hashes",
    "metric", "value", "low", "high", "deviation", "n", "reason",
)  # fmt: skip


def to_csv(tables: Iterable[Table]) -> str:
    """All cells, one a line, at full precision; several seeds or hashes are separated by spaces."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for table in tables:
        head = [table.benchmark, table.model, table.dataset, table.noise, table.split, table.settings_line]
        for row in table.rows:
            identity = [row.method, row.label, " ".join(map(str, row.seeds)), " ".join(row.hashes)]
            for metric in table.metrics:
                cell = row.cells.get(metric) or Cell(None, reason="not measured")
                numbers = [cell.value, cell.low, cell.high, cell.deviation, cell.n]
                writer.writerow([*head, *identity, metric, *numbers, cell.reason])
    return out.getvalue()
