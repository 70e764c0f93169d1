"""The results tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from src.evaluation.records import Record
from src.reporting.tables import LEGEND, Table, build_tables, cell_text, title

MAIN = ("accuracy/reward", "accuracy/average", "accuracy/sum", "accuracy/reference", "spearman/average")
"""Metrics shown in the terminal; the rest is in the page and the files."""


def print_records(records: Iterable[Record], console: Console | None = None) -> None:
    """Print the tables that these records make."""
    print_tables(build_tables(records), console)


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print one grid per table: method rows, the main metrics that have a value in some row."""
    console = console or Console()
    for table in tables:
        shown = [m for m in MAIN if any((c := row.cells.get(m)) and c.value is not None for row in table.rows)]
        shown = shown or list(table.metrics)  # a benchmark with metrics of its own
        grid = Grid(title=escape(f"{table.benchmark}: {table.title}"), title_justify="left", title_style="bold")
        grid.add_column("method", overflow="fold")
        for metric in shown:
            grid.add_column(escape(title(metric)), justify="right")
        for row in table.rows:
            label = row.label if len(row.seeds) == 1 else f"{row.label} ({len(row.seeds)} seeds)"
            texts = []
            for metric in shown:
                cell = row.cells.get(metric)
                text = escape(cell_text(metric, cell))
                texts.append(f"[bold green]{text}[/]" if cell is not None and cell.best else text)
            grid.add_row(escape(label), *texts)
        console.print(grid)
    if tables:
        console.print(LEGEND, style="dim", markup=False)
