"""A sweep as files: response curves as PNG and SVG, verdicts and means as Markdown, and a section of the report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from src.errors import UserError
from src.reporting import plots
from src.reporting.sweeps import Line, Metric, Sweep, is_geometric, number
from src.reporting.trials import Value, is_number, shown

NAMED = 8
"""Lines that a legend names; of more, the panel says how many there are."""


@dataclass(frozen=True)
class SweepSection:
    """A sweep in the HTML report. ``figures``: one per metric and swept key; ``body``: verdicts, tables, notes."""

    name: str
    title: str
    figures: tuple[Markup, ...]
    body: Markup


def write_sweep(sweep: Sweep, folder: Path) -> list[Path]:
    """Write ``<folder>/<name>.md``, ``.png`` and ``.svg``; return their paths. Raises ``UserError``."""
    stem = folder / sweep.name
    figures = plots.save(draw(sweep, sweep.metrics, sweep.keys), stem)
    page = stem.with_name(f"{sweep.name}.md")
    try:
        page.write_text(markdown(sweep), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the sweep cannot be written to {page}: {error.strerror}; give another output=") from error
    return [page, *figures]


def section_of(sweep: Sweep) -> SweepSection:
    """The same for the HTML report: everything in it escaped, drawings inline."""
    figures = []
    for metric, key in product(sweep.metrics, sweep.keys):
        drawing = draw(sweep, [metric], [key])
        label, salt = f"{metric.title} against {key}", f"sweep-{sweep.name}-{metric.name}-{key}"
        figures.append(Markup(plots.inline_svg(drawing, label, salt)))
    return SweepSection(sweep.name, f"Sweep {sweep.name}", tuple(figures), Markup(html_body(sweep)))


def draw(sweep: Sweep, metrics: Sequence[Metric], keys: Sequence[str]) -> Figure:
    """A row of panels per metric, one per swept key: mean over seeds with its standard deviation."""
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.9 * len(keys), 3.6 * len(metrics)), layout="constrained")
        grid = figure.subplots(len(metrics), len(keys), squeeze=False)
        for row, metric in zip(grid, metrics, strict=True):
            for axes, key in zip(row, keys, strict=True):
                draw_response(axes, sweep, metric, key)
        return figure


def draw_response(axes: Axes, sweep: Sweep, metric: Metric, key: str) -> None:
    """One metric against one key, a line per setting of everything else; the best setting is ringed."""
    lines, values = sweep.lines(metric, key), sweep.values(key)
    numeric = all(is_number(value) for value in values)
    if is_geometric(values):
        axes.set_xscale("log")
    best = next(verdict.best for verdict in sweep.verdicts if verdict.metric == metric)
    for place, line in enumerate(lines):
        draw_line(axes, line, key, values, place, numeric=numeric)
        if best in line.settings:
            x = place_of(best.swept[key], values, numeric=numeric)
            axes.plot([x], [best.mean], "o", markersize=10, fillstyle="none", color=plots.INK, zorder=4)
    axes.set_title(metric.title)
    axes.set_xlabel(key)
    axes.xaxis.set_major_locator(FixedLocator([place_of(value, values, numeric=numeric) for value in values]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(axes.get_xticks(), [shown(value) for value in values])
    if 1 < len(lines) <= NAMED:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, handlelength=1.4)
    elif len(lines) > NAMED:
        axes.annotate(f"{len(lines)} lines; the table names them", (0.02, 0.02), xycoords="axes fraction", fontsize=7)


def draw_line(axes: Axes, line: Line, key: str, values: Sequence[Value], place: int, *, numeric: bool) -> None:
    """One curve with its error bars."""
    style: Any = {
        "color": plots.SERIES[place % len(plots.SERIES)],
        "linestyle": plots.DASHES[place // len(plots.SERIES) % len(plots.DASHES)],
    }
    axes.errorbar(
        [place_of(setting.swept[key], values, numeric=numeric) for setting in line.settings],
        [setting.mean for setting in line.settings],
        yerr=[setting.deviation or 0.0 for setting in line.settings],
        marker="o",
        markersize=4,
        capsize=3,
        label=line.label or None,
        **style,
    )


def place_of(value: Value, values: Sequence[Value], *, numeric: bool) -> float:
    """Where a value lies on the axis: words stand side by side."""
    return float(value) if numeric and is_number(value) else float(values.index(value))


def markdown(sweep: Sweep) -> str:
    """Verdicts, then a table of all settings, then notes."""
    heads = [f"`{key}`" for key in sweep.keys]
    parts = [f"# Sweep {sweep.name}", "", f"![Response curves]({sweep.name}.svg)", ""]
    for verdict in sweep.verdicts:
        parts += [f"* **{verdict.metric.title}**: {verdict.text}{noise_of(verdict.noise)}"]
    for metric in sweep.metrics:
        parts += ["", f"## {metric.title}", "", row([*heads, "others", "mean ± sd (seeds)"])]
        parts += [row([*("---" for _ in heads), "---", "---:"])]
        best = next(verdict.best for verdict in sweep.verdicts if verdict.metric == metric)
        for setting in sweep.settings[metric.name]:
            text = f"**{number(setting)}**" if setting is best else number(setting)
            parts.append(row([*(shown(value) for value in setting.swept.values()), setting.label or "", text]))
    parts += ["", *(f"* {note}" for note in notes_of(sweep))]
    return "\n".join(parts).rstrip() + "\n"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def noise_of(noise: float | None) -> str:
    """The seed noise in words."""
    return "" if noise is None else f" Standard deviation over seeds: {noise:.2g} (pooled)."


def notes_of(sweep: Sweep) -> list[str]:
    """What a reader must know."""
    rule = (
        "A difference counts when it exceeds Student's t times its standard error (seed noise pooled over settings; "
        "5 % over all comparisons with the best). The best of many settings is chosen by its luck, too: measure it "
        "again with new seeds before quoting it."
    )
    return [*sweep.notes, rule]


def html_body(sweep: Sweep) -> str:
    """Verdicts, tables and notes as HTML; every value escaped."""
    said = "".join(
        f"<li><b>{html.escape(v.metric.title)}</b>: {bold(html.escape(v.text))}{noise_of(v.noise)}</li>"
        for v in sweep.verdicts
    )
    parts = [f"<ul>{said}</ul>"]
    for metric in sweep.metrics:
        best = next(verdict.best for verdict in sweep.verdicts if verdict.metric == metric)
        heads = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in [*sweep.keys, "others", "mean ± sd"])
        rows = []
        for setting in sweep.settings[metric.name]:
            text = html.escape(number(setting))
            cells = [*(shown(value) for value in setting.swept.values()), setting.label]
            inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr>{inner}<td>{f'<b>{text}</b>' if setting is best else text}</td></tr>")
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table><caption>'
            f"{html.escape(metric.title)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
            "</table></div>"
        )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in notes_of(sweep))
    return "".join([*parts, f"<ul>{notes}</ul>"])


def bold(text: str) -> str:
    """Markdown's bold of a verdict as HTML; the text is escaped already."""
    first, *rest = text.split("**")
    if len(rest) != 2:
        return text
    return f"{first}<b>{rest[0]}</b>{rest[1]}"
