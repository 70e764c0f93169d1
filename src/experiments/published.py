"""The numbers that the papers print (results/published), by the labels of their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.errors import UserError
from src.experiments.files import PUBLISHED, did_you_mean, read_node

Labels = Mapping[str, str]
"""What tells a row from the others: axis -> printed label."""


@dataclass(frozen=True)
class PublishedTable:
    """One printed table. ``rows`` hold a value per column; ``None`` is unreadable in the paper."""

    paper: str
    number: str
    measures: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def keys(self, axes: tuple[str, ...]) -> list[dict[str, str]]:
        """The labels of every row on ``axes``, as printed. Raises ``UserError`` for an axis that is no column."""
        for axis in axes:
            if axis not in self.columns:
                raise UserError(
                    f"{self.paper} table {self.number} has no column '{axis}'{did_you_mean(axis, self.columns)}"
                )
        return [{axis: str(row[axis]) for axis in axes} for row in self.rows]

    def value(self, labels: Labels, column: str) -> float | None:
        """The printed number of a row; ``None`` where the paper prints none. Axes that are no column do not count."""
        if column not in self.columns:
            return None
        wanted = {axis: label for axis, label in labels.items() if axis in self.columns}
        for row in self.rows:
            if all(str(row[axis]) == label for axis, label in wanted.items()):
                return number_of(row[column])
        return None


def number_of(value: Any) -> float | None:
    """A printed number; a time such as ``4h54`` in hours; ``None`` for anything else."""
    if isinstance(value, str) and (time := re.fullmatch(r"(\d+)h(\d\d)", value)):
        return int(time[1]) + int(time[2]) / 60
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def papers() -> list[str]:
    """The papers whose numbers are at hand."""
    return sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def read_table(paper: str, number: str) -> PublishedTable | None:
    """A printed table, or ``None`` where the paper has none of that number (a figure without numbers).

    Raises ``UserError`` for an unknown paper.
    """
    if paper not in papers():
        raise UserError(f"paper={paper} is unknown{did_you_mean(paper, papers())}")
    table = read_node(PUBLISHED / f"{paper}.yaml").child("tables").child(number)
    if not table.values:
        return None
    columns = table.texts("columns")
    rows = []
    for index, row in enumerate(table.need("rows")):
        if len(row) != len(columns):
            raise UserError(
                f"{table.where}: row {index + 1} has {len(row)} values for {len(columns)} columns; restore it"
            )
        rows.append(dict(zip(columns, row, strict=True)))
    return PublishedTable(paper, number, str(table.need("measures")), columns, tuple(rows), table.texts("notes"))
