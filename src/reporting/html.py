"""The report: an overview, a page per run and per table of a paper, each an HTML file that needs nothing else.

Figures of all runs and the tables lie beside them as files, for papers and slides.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from src.environment import environment
from src.errors import UserError
from src.evaluation.records import Record, read_records
from src.reporting import plots
from src.reporting.pages.curves import overlay_charts
from src.reporting.pages.fragments import Fragment, read_fragments
from src.reporting.pages.render import environment_line, jinja
from src.reporting.pages.run_page import run_content
from src.reporting.pages.views import RunView, benchmarks_of, file_name, first_metric, unique, views_of
from src.reporting.runs import Run, find_runs, read_run, recorded_runs
from src.reporting.sweep_page import section_of, write_sweep
from src.reporting.sweeps import sweep_of
from src.reporting.tables import LEGEND, Table, build_tables, cell_text, to_csv, to_markdown

FILTERS = (
    ("method", "Method"),
    ("model", "Model"),
    ("dataset", "Data"),
    ("noise", "Labels"),
    ("seed", "Seed"),
    ("state", "State"),
)
"""Key of a row's attribute and heading of each select of the overview."""


def build_report(
    runs: Sequence[Path],
    records: Sequence[Path],
    out: Path,
    *,
    tables: Sequence[Path] = (),
    sweep: Sequence[str] = (),
    sweep_metrics: Sequence[str] = (),
    now: datetime | None = None,
    command: str | None = None,
) -> Path:
    """Write the overview, ``runs/*.html``, ``tables/*`` and ``figures/*`` beside it; return the overview's path.

    ``out``: an .html file, or a folder in which the overview is called report.html. ``runs``: run directories or
    folders that hold some; ``records``: record files or folders of them; ``tables``: folders of tables of papers as
    HTML, as `src.reproduce` writes them; a path that does not exist counts as empty. ``sweep``: presets or keys whose
    response curves are written to ``sweeps/``, of ``sweep_metrics`` where there are some. ``now`` and ``command`` are
    for the footer (default: this moment, this process).

    Raises ``UserError`` when there is neither a run nor a record, for a malformed record, and when ``out`` or its
    folder cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        out = out / "report.html"
    trained = [read_run(path) for path in find_runs(runs)]
    found = read_records([path for path in records if path.exists()])
    if not trained and not found:
        raise UserError(nothing_found(runs, records))
    responses = sweep_of(list(sweep), trained, found, list(sweep_metrics)) if sweep else None
    shown = [*trained, *recorded_runs(found, trained)]
    results = build_tables(found)
    colours = plots.assign_colours(shown)
    site = Site(jinja(), out, views_of(shown, found, colours), now or datetime.now(UTC), command or command_line())
    papers = read_fragments(tables, {view.run.config_hash: f"../runs/{view.page}" for view in site.views})
    for view in site.views:
        site.write(f"runs/{view.page}", "run.html.j2", **run_content(view, site.views, papers))
    for paper in papers:
        behind = [view for view in site.views if view.run.config_hash in paper.hashes]
        site.write(f"tables/{paper.name}.html", "paper.html.j2", fragment=paper, body=Markup(paper.body), runs=behind)
    if responses is not None:
        write_sweep(responses, out.parent / "sweeps")
        site.write(f"sweeps/{responses.name}.html", "sweep.html.j2", section=section_of(responses))
    row_series = series_of_rows(results, shown, colours)
    site.write(out.name, "report.html.j2", **overview(site, trained, found, results, row_series, papers))
    write_figures(out.parent / "figures", site, trained, results, colours, row_series)
    if results:
        write(out.parent / "tables" / "results.md", to_markdown(results))
        write(out.parent / "tables" / "results.csv", to_csv(results))
    return out


class Site:
    """The pages of one report, which share their runs and their footer."""

    def __init__(
        self, templates: Environment, out: Path, views: Sequence[RunView], now: datetime, command: str
    ) -> None:
        self.templates, self.out, self.views = templates, out, views
        self._shared = {
            "generated": now.strftime("%Y-%m-%d %H:%M UTC"),
            "command": command,
            "made_with": environment_line(environment()),
            "index": out.name,
        }

    def write(self, name: str, template: str, **content: Any) -> None:
        """Render one page to ``name``, relative to the overview's folder."""
        up = "../" if "/" in name else ""
        text = self.templates.get_template(template).render(**self._shared, **content, up=up)
        write(self.out.parent / name, text)


def nothing_found(runs: Sequence[Path], records: Sequence[Path]) -> str:
    """What to do about an empty report."""
    looked = ", ".join(str(path) for path in [*runs, *records]) or "no paths at all"
    return (
        f"nothing to report: no run directory and no record in {looked}. Train first, for example "
        "`python -m src.train method=simpo`, then `python -m src.evaluation.ranking checkpoint=RUN`, or run `make demo`"
    )


def overview(
    site: Site,
    trained: Sequence[Run],
    records: Sequence[Record],
    results: Sequence[Table],
    row_series: Sequence[Sequence[int]],
    papers: Sequence[Fragment],
) -> dict[str, Any]:
    """The values of report.html.j2."""
    benchmarks = benchmarks_of(site.views)
    sorts = [("step", "steps"), ("accuracy", "validation accuracy")]
    return {
        "runs": site.views,
        "benchmarks": benchmarks,
        "filters": [(key, heading, choices(site.views, key)) for key, heading in FILTERS],
        "sorts": sorts + [(f"b{number}", heading) for number, (_, heading) in enumerate(benchmarks)],
        "papers": papers,
        "sweeps": sorted(path.stem for path in (site.out.parent / "sweeps").glob("*.html")),
        "groups": [overlay(name, group) for name, group in by_dataset(site.views).items()],
        "links": {view.run.config_hash: f"runs/{view.page}" for view in site.views if view.run.config_hash},
        "tables": [
            {
                "table": table,
                "series": series,
                "figure": accuracy_svg(table, series, index),
                "metrics": sorted(table.metrics, key=lambda one: one != first_metric(table.benchmark, table.metrics)),
            }
            for index, (table, series) in enumerate(zip(results, row_series, strict=True))
        ],
        "legend": LEGEND,
        "provenance": provenance(trained, records),
        "counts": counts_of(trained, records),
    }


def choices(views: Sequence[RunView], key: str) -> list[str]:
    """The values that a select offers: those of the runs."""
    found = {value_of(view, key) for view in views} - {""}
    return sorted(found, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))


def value_of(view: RunView, key: str) -> str:
    """What a select compares; "" where the run does not say."""
    if key == "seed":
        return "" if view.run.seed is None else str(view.run.seed)
    if key in ("noise", "state"):
        return view.noise if key == "noise" else view.run.state
    return view.run.section(key)


def by_dataset(views: Iterable[RunView]) -> dict[str, list[RunView]]:
    """Views of runs with curves, by data set: losses on different data do not compare."""
    groups: dict[str, list[RunView]] = {}
    for view in views:
        if view.run.curves:
            groups.setdefault(view.run.section("dataset"), []).append(view)
    return dict(sorted(groups.items()))


def overlay(name: str, views: Sequence[RunView]) -> dict[str, Any]:
    """The curves of several runs on one data set."""
    return {
        "name": name,
        "views": views,
        "sections": overlay_charts([(view.run, view.label, view.series) for view in views], name),
    }


def accuracy_svg(table: Table, series: Sequence[int], index: int) -> Markup | None:
    """The figure of a table of ranking accuracies, with its numbers for screen readers."""
    if not has_accuracy(table):
        return None
    metric = table.metrics[0]
    summary = "; ".join(f"{row.label} {cell_text(metric, row.cells.get(metric))}" for row in table.rows)
    label = f"Ranking accuracy on {table.title}: {summary}"
    return Markup(plots.inline_svg(plots.draw_accuracy(table, series), label, f"accuracy-{index}"))


def has_accuracy(table: Table) -> bool:
    """Whether there is an accuracy to draw."""
    return any(
        cell.value is not None
        for row in table.rows
        for metric, cell in row.cells.items()
        if metric.startswith("accuracy/")
    )


def series_of_rows(tables: Iterable[Table], runs: Iterable[Run], colours: dict[str, int]) -> list[list[int]]:
    """Series number of every table row: that of its first run."""
    known = {run.config_hash: colours[str(run.path)] for run in runs if run.config_hash}
    return [[min(known.get(one, len(colours)) for one in row.hashes) for row in table.rows] for table in tables]


def write_figures(
    folder: Path,
    site: Site,
    runs: Sequence[Run],
    tables: Sequence[Table],
    colours: dict[str, int],
    row_series: Sequence[Sequence[int]],
) -> None:
    """The main curves of each data set and the accuracies of each table, as PNG and SVG."""
    figures: list[tuple[str, Figure]] = []
    labels = {str(view.run.path): view.label for view in site.views}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.section("dataset"), []).append(run)
    for name, group in sorted(groups.items()):
        panels = [partial(plots.overlay_panel, panel=p, runs=group, colours=colours) for p in plots.panels_of(group)]
        if panels:
            legend = {labels[str(run.path)]: colours[str(run.path)] for run in group}
            figures.append((f"curves__{name}", plots.draw_grid(panels, legend)))
    for table, series in zip(tables, row_series, strict=True):
        if has_accuracy(table):
            parts = (table.benchmark, table.dataset, table.model, table.noise, table.split, table.settings_line)
            figures.append(("__".join(part for part in parts if part), plots.draw_accuracy(table, series)))
    taken: Counter[str] = Counter()
    for full_name, figure in figures:
        plots.save(figure, folder / unique(file_name(full_name.replace("/", "_")), taken))


def counts_of(runs: Sequence[Run], records: Sequence[Record]) -> list[tuple[str, int]]:
    """How many runs there are, in which states, and records."""
    states = Counter(run.state for run in runs)
    return [("runs", len(runs)), *sorted(states.items()), ("records", len(records))]


def provenance(runs: Sequence[Run], records: Sequence[Record]) -> dict[str, Any]:
    """What made the figures: environments (each once, with what it made), and the hash of every config."""
    made: dict[str, list[str]] = {}
    for run in runs:
        if run.environment:
            made.setdefault(environment_line(run.environment), []).append(run.name)
    for record in records:
        made.setdefault(environment_line(record.environment), []).append(record.id)
    hashes = {run.config_hash: run.name for run in runs if run.config_hash}
    for record in records:
        hashes.setdefault(record.run.config_hash, Path(record.run.directory).name)
    return {
        "made": made,
        "hashes": sorted(hashes.items(), key=lambda item: item[1]),
        "commands": sorted({record.command for record in records if record.command}),
    }


def command_line() -> str:
    """This process as one types it."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def write(path: Path, text: str) -> None:
    """Write a file whole; raises ``UserError`` when it cannot be written."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8", errors="replace")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; give another path") from error
