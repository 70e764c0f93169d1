"""The report: one HTML file that needs nothing else, and figures and tables as files beside it."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from src.environment import environment
from src.errors import UserError
from src.evaluation.records import Record, read_records
from src.reporting import plots
from src.reporting.runs import Run, find_runs, read_run
from src.reporting.tables import LEGEND, Table, build_tables, cell_text, number, spread, title, to_csv, to_markdown

TEMPLATES = Path(__file__).parent / "templates"
ACCURACY = "rewards/accuracies"


@dataclass(frozen=True, slots=True)
class RunView:
    """What the page shows of a run; ``label`` is short and unique in the report."""

    run: Run
    label: str
    series: int
    anchor: str
    panels: Sequence[Markup]

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


def build_report(
    runs: Sequence[Path],
    records: Sequence[Path],
    out: Path,
    *,
    now: datetime | None = None,
    command: str | None = None,
) -> Path:
    """Write the page, figures to ``figures/`` and tables to ``tables/`` beside it; return the page's path.

    ``out``: an .html file, or a folder in which the page is called report.html. ``runs``: run directories or folders
    that hold some; ``records``: record files or folders of them; a path that does not exist counts as empty. ``now``
    and ``command`` are for the footer (default: this moment, this process).

    Raises ``UserError`` when there is neither a run nor a record, for a malformed record, and when ``out`` or its
    folder cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        out = out / "report.html"
    loaded = [read_run(path) for path in find_runs(runs)]
    found = read_records([path for path in records if path.exists()])
    if not loaded and not found:
        raise UserError(_nothing_found(runs, records))
    tables = build_tables(found)
    colours = plots.assign_colours(loaded)
    row_series = _row_series(tables, loaded, colours)
    page = _render(loaded, found, tables, colours, row_series, now or datetime.now(UTC), command or _command())
    _write(out, page)
    _write_figures(out.parent / "figures", loaded, tables, colours, row_series)
    if tables:
        _write(out.parent / "tables" / "results.md", to_markdown(tables))
        _write(out.parent / "tables" / "results.csv", to_csv(tables))
    return out


def _nothing_found(runs: Sequence[Path], records: Sequence[Path]) -> str:
    looked = ", ".join(str(path) for path in [*runs, *records]) or "no paths at all"
    return (
        f"nothing to report: no run directory and no record in {looked}. Train first, for example "
        "`python -m src.train method=simpo`, then `python -m src.evaluation.ranking checkpoint=RUN`, or run `make demo`"
    )


def _render(
    runs: list[Run],
    records: list[Record],
    tables: list[Table],
    colours: dict[str, int],
    row_series: list[list[int]],
    now: datetime,
    command: str,
) -> str:
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.globals.update(
        metric_title=title, number=number, spread=spread, dash=_swatch_dash, series_count=len(plots.SERIES)
    )
    jinja.filters["compact"] = _compact
    labels = run_labels(runs)
    views = [_run_view(run, labels[str(run.path)], colours[str(run.path)]) for run in runs]
    return jinja.get_template("report.html.j2").render(
        runs=views,
        groups=[_overlay(name, group, colours) for name, group in _by_dataset(views).items()],
        tables=[
            {"table": table, "series": series, "figure": _accuracy_svg(table, series, index)}
            for index, (table, series) in enumerate(zip(tables, row_series, strict=True))
        ],
        legend=LEGEND,
        provenance=_provenance(runs, records),
        generated=now.strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
        counts=_counts(runs, records),
    )


def render_tables(tables: Sequence[Table]) -> str:
    """The results tables alone as an HTML fragment, without figures or style."""
    jinja = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    jinja.globals.update(metric_title=title, number=number, spread=spread)
    module: Any = jinja.get_template("table.html.j2").module
    return "\n".join(str(module.results(table, None)) for table in tables)


def run_labels(runs: Sequence[Run]) -> dict[str, str]:
    """A short name for each run path: method, noise, seed, as far as needed the folder's hash or the path."""
    labels = {str(run.path): _label(run) for run in runs}
    suffixes = (
        {str(run.path): f"#{run.name.rsplit('__', 1)[-1][:6]}" for run in runs},
        {str(run.path): str(run.path) for run in runs},
    )
    for suffix in suffixes:
        counts = Counter(labels.values())
        labels = {path: f"{label} {suffix[path]}" if counts[label] > 1 else label for path, label in labels.items()}
    return labels


def _label(run: Run) -> str:
    parts = [run.section("method"), run.section("model"), run.section("dataset")]
    if parts[0] == "unknown":
        return run.name
    noise = [] if run.noise == "none" else [run.noise]
    return ", ".join([*parts, *noise, *([] if run.seed is None else [f"seed {run.seed}"])])


def _run_view(run: Run, label: str, series: int) -> RunView:
    panels = []
    for panel in plots.panels_of([run]):
        figure = plots.draw_panel(partial(plots.single_panel, panel=panel, run=run, number=series))
        panels.append(Markup(plots.inline_svg(figure, f"{panel.title}: {label}", f"{series}-{panel.metric}")))
    return RunView(run, label, series, f"run-{series}", panels)


def _by_dataset(views: Iterable[RunView]) -> dict[str, list[RunView]]:
    groups: dict[str, list[RunView]] = {}
    for view in views:
        groups.setdefault(view.run.section("dataset"), []).append(view)
    return dict(sorted(groups.items()))


def _overlay(name: str, views: list[RunView], colours: dict[str, int]) -> dict[str, Any]:
    runs = [view.run for view in views]
    panels = []
    for panel in plots.panels_of(runs):
        figure = plots.draw_panel(partial(plots.overlay_panel, panel=panel, runs=runs, colours=colours))
        label = f"{panel.title} of {len(runs)} runs on {name}"
        panels.append(Markup(plots.inline_svg(figure, label, f"{name}-{panel.metric}")))
    return {"name": name, "views": views, "panels": panels}


def _accuracy_svg(table: Table, series: list[int], index: int) -> Markup | None:
    if not _has_accuracy(table):
        return None
    metric = table.metrics[0]
    summary = "; ".join(f"{row.label} {cell_text(metric, row.cells.get(metric))}" for row in table.rows)
    label = f"Ranking accuracy on {table.title}: {summary}"
    return Markup(plots.inline_svg(plots.draw_accuracy(table, series), label, f"accuracy-{index}"))


def _has_accuracy(table: Table) -> bool:
    return any(
        cell.value is not None
        for row in table.rows
        for metric, cell in row.cells.items()
        if metric.startswith("accuracy/")
    )


def _row_series(tables: Iterable[Table], runs: Iterable[Run], colours: dict[str, int]) -> list[list[int]]:
    """Series number of every table row: that of its run where the run is here, else a number of its own."""
    known = {run.config_hash: colours[str(run.path)] for run in runs if run.config_hash}
    result = []
    for table in tables:
        numbers = []
        for row in table.rows:
            here = [known[config_hash] for config_hash in row.hashes if config_hash in known]
            if not here:
                here = [known.setdefault(row.hashes[0], len(colours) + len(known))]
            numbers.append(min(here))
        result.append(numbers)
    return result


def _write_figures(
    folder: Path, runs: list[Run], tables: list[Table], colours: dict[str, int], row_series: list[list[int]]
) -> None:
    groups: dict[str, list[Run]] = {}
    labels = run_labels(runs)
    figures: list[tuple[str, Figure]] = []
    for run in runs:
        groups.setdefault(run.section("dataset"), []).append(run)
        number = colours[str(run.path)]
        single = [partial(plots.single_panel, panel=p, run=run, number=number) for p in plots.panels_of([run])]
        if single:
            figures.append((f"run__{run.name}", plots.draw_grid(single)))
    for name, group in sorted(groups.items()):
        overlay = [partial(plots.overlay_panel, panel=p, runs=group, colours=colours) for p in plots.panels_of(group)]
        if overlay:
            legend = {labels[str(run.path)]: colours[str(run.path)] for run in group}
            figures.append((f"curves__{name}", plots.draw_grid(overlay, legend)))
    for table, series in zip(tables, row_series, strict=True):
        if _has_accuracy(table):
            parts = (table.benchmark, table.dataset, table.model, table.noise, table.split, table.settings_line)
            figures.append(("__".join(part for part in parts if part), plots.draw_accuracy(table, series)))
    taken: Counter[str] = Counter()
    for full_name, figure in figures:
        stem = _file_name(full_name)
        taken[stem] += 1
        plots.save(figure, folder / (stem if taken[stem] == 1 else f"{stem}-{taken[stem]}"))


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", name)[:150]


def _counts(runs: list[Run], records: list[Record]) -> list[tuple[str, int]]:
    states: dict[str, int] = {}
    for run in runs:
        states[run.state] = states.get(run.state, 0) + 1
    return [("runs", len(runs)), *sorted(states.items()), ("records", len(records))]


def _provenance(runs: list[Run], records: list[Record]) -> dict[str, Any]:
    """What made the figures: environments (each once, with what it made), and the hash of every config."""
    made: dict[str, list[str]] = {}
    for run in runs:
        if run.environment:
            made.setdefault(_environment_line(run.environment), []).append(run.name)
    for record in records:
        made.setdefault(_environment_line(record.environment), []).append(record.id)
    hashes = {run.config_hash: run.name for run in runs if run.config_hash}
    for record in records:
        hashes.setdefault(record.run.config_hash, Path(record.run.directory).name)
    return {
        "report": _environment_line(environment()),
        "made": made,
        "hashes": sorted(hashes.items(), key=lambda item: item[1]),
        "commands": sorted({record.command for record in records if record.command}),
    }


def _environment_line(content: Any) -> str:
    shown = {key: value for key, value in dict(content).items() if value not in (None, "", False, {}, [])}
    commit = str(shown.pop("commit", "unknown"))[:12]
    dirty = " with uncommitted changes" if shown.pop("dirty", False) else ""
    return ", ".join([f"commit {commit}{dirty}", *(f"{key} {value}" for key, value in sorted(shown.items()))])


def _command() -> str:
    return shlex.join(["python", *sys.orig_argv[1:]])


def _compact(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _swatch_dash(series: int) -> str:
    """SVG dash pattern of a series, for the legend."""
    return " ".join(f"{length * 1.6:g}" for length in plots.DASHES[series // len(plots.SERIES) % len(plots.DASHES)][1])


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; give another path") from error
