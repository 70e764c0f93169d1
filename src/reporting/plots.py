"""Figures: training curves and ranking accuracy, as files (PNG, SVG) and as SVG to put into a page.

Output is deterministic (no dates, fixed ids), and figures are drawn without pyplot, so none stays open. In a page,
colours become CSS variables, so that one drawing serves light and dark. The curves of the pages are in charts.py.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from src.errors import UserError
from src.reporting.panels import PANELS, Panel
from src.reporting.runs import Curve, Run
from src.reporting.tables import Cell, Table, title

INK, MUTED, GRID = "#20242b", "#6a717d", "#e3e6eb"
SERIES = ("#0b66c3", "#d1495b", "#1a936f", "#8a4fbf", "#c77700", "#0f8b99", "#b0388a", "#5f6b00", "#8b4a2b", "#4a5a78")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
LONGEST_LABEL = 36
"""Characters of a row's label in a figure."""

STYLE: Any = {
    "svg.hashsalt": "marginalia",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run name with $ is a name
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}
RAW_OF_RUNS = 8
"""Raw values are drawn behind the means of at most so many runs; with more they would be a cloud."""

MAX_POINTS = 300  # per curve; more cannot be told apart at the size of a panel
DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
"""Line styles of the runs 1-10, 11-20, ...: colours alone would repeat."""


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels for which some of the runs logged a curve."""
    logged = {key for run in runs for key in run.curves}
    return [panel for panel in PANELS if any((split, panel.metric) in logged for split in panel.splits)]


def assign_colours(runs: Sequence[Run]) -> dict[str, int]:
    """Series number of each run path, by order of name: one colour per run, the same in every figure."""
    return {str(run.path): number for number, run in enumerate(sorted(runs, key=lambda run: str(run.path)))}


def overlay_panel(axes: Axes, panel: Panel, runs: Sequence[Run], colours: Mapping[str, int]) -> None:
    """One metric of several runs: training faint behind its running mean, validation dotted with markers."""
    for run in runs:
        _draw_run(axes, panel, run, colours[str(run.path)], raw=len(runs) <= RAW_OF_RUNS)
    _finish(axes, panel)


def _draw_run(axes: Axes, panel: Panel, run: Run, number: int, *, raw: bool) -> None:
    colour = SERIES[number % len(SERIES)]
    dashes = DASHES[number // len(SERIES) % len(DASHES)]
    for split in panel.splits:
        curve = run.curves.get((split, panel.metric))
        if not curve:
            continue
        if split == "train":
            values, mean = thin(curve), smooth(thin(curve))
            if raw and mean[1] != values[1]:
                axes.plot(*values, color=colour, alpha=0.18, linewidth=0.9)
            axes.plot(*mean, color=colour, linestyle=dashes)
        else:
            style: Any = {"linestyle": (0, (1, 2)), "linewidth": 1.1, "marker": "o", "markersize": 3.6}
            axes.plot(*thin(curve), color=colour, **style)


def _finish(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel.chance is not None:
        axes.axhline(panel.chance, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)


def thin(curve: Curve) -> Curve:
    """At most ``MAX_POINTS`` points: means of equal blocks, at the last step of each block."""
    steps, values = curve
    if len(steps) <= MAX_POINTS:
        return curve
    cuts = [block for block in np.array_split(np.arange(len(steps)), MAX_POINTS) if len(block)]
    return [steps[int(block[-1])] for block in cuts], [
        float(np.mean([values[int(i)] for i in block])) for block in cuts
    ]


def smooth(curve: Curve) -> Curve:
    """Running mean over a twentieth of the curve around each point; short curves stay as they are."""
    steps, values = curve
    half = len(values) // 40
    if half < 1:
        return curve
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, places[::-1]), half)  # symmetric, so that a slope stays where it is
    starts, ends = places - reach, places + reach + 1
    return steps, [float(v) for v in (sums[ends] - sums[starts]) / (ends - starts)]


def accuracy_axes(axes: Axes, table: Table, colours: Sequence[int]) -> None:
    """Ranking accuracy of a table's rows with intervals (± sd over seeds), one mark per kind of log-prob."""
    kinds = {"accuracy/reward": "o", "accuracy/average": "v", "accuracy/sum": "s", "accuracy/reference": "D"}
    shown = {m: k for m, k in kinds.items() if any(_has_value(row.cells.get(m)) for row in table.rows)}
    offsets = np.linspace(-0.18, 0.18, len(shown)) if len(shown) > 1 else [0.0]
    for (metric, marker), offset in zip(shown.items(), offsets, strict=False):
        axes.plot([], [], marker, color=MUTED, markersize=4.5, label=title(metric).removeprefix("Accuracy, "))
        for place, (row, number) in enumerate(zip(table.rows, colours, strict=True)):
            cell = row.cells.get(metric)
            if cell is None or cell.value is None:
                continue
            deviation = cell.deviation or 0.0
            low = cell.low if cell.low is not None else cell.value - deviation
            high = cell.high if cell.high is not None else cell.value + deviation
            colour, height = SERIES[number % len(SERIES)], place + offset
            axes.plot([100 * low, 100 * high], [height, height], color=colour, linewidth=1.4, alpha=0.55)
            axes.plot([100 * cell.value], [height], marker, color=colour, markersize=5)
    axes.axvline(50, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    axes.set_yticks(range(len(table.rows)), [shortened(row.label) for row in table.rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("pairs ranked right, %  (dotted: chance)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handletextpad=0.1, columnspacing=1.2)


def shortened(label: str) -> str:
    """A label that leaves room for what it labels; the table beside the figure has the whole of it."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _has_value(cell: Cell | None) -> bool:
    return cell is not None and cell.value is not None


def draw_accuracy(table: Table, colours: Sequence[int]) -> Figure:
    """``accuracy_axes`` in a figure as high as the table has rows."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.95 + 0.42 * len(table.rows)), layout="constrained")
        accuracy_axes(figure.subplots(), table, colours)
        return figure


def draw_grid(plots: Sequence[Callable[[Axes], None]], legend: Mapping[str, int] | None = None) -> Figure:
    """A figure of up to four panels, two in a row, with a legend of runs (label -> series number) below."""
    with mpl.rc_context(STYLE):
        rows = (len(plots) + 1) // 2
        below = 0.22 * len(legend or {}) + 0.1
        height = 3.2 * rows + below
        figure = Figure(figsize=(10, height))
        grid = figure.subplots(rows, 2, squeeze=False)
        figure.subplots_adjust(
            left=0.06, right=0.985, top=1 - 0.3 / height, bottom=(below + 0.45) / height, wspace=0.15, hspace=0.32
        )
        for axes in grid.flat[len(plots) :]:
            axes.set_axis_off()
        for axes, plot in zip(grid.flat, plots, strict=False):
            plot(axes)
        if legend:
            lines = [
                Line2D([], [], color=SERIES[n % len(SERIES)], linestyle=DASHES[n // len(SERIES) % len(DASHES)])
                for n in legend.values()
            ]
            figure.legend(lines, list(legend), loc="lower left", bbox_to_anchor=(0.05, 0))
        return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` with the suffixes .png and .svg; return both paths.

    Raises ``UserError`` when the folder cannot be written.
    """
    with mpl.rc_context(STYLE):
        paths = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[0], metadata={"Software": None})
            figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
        except OSError as error:
            raise UserError(f"figures cannot be written to {path.parent}: {error.strerror}") from error
    return paths


def inline_svg(figure: Figure, label: str, salt: str) -> str:
    """The figure as an ``<svg>`` element for a page.

    ``label`` is read out by screen readers; ``salt`` keeps ids of several figures in one page apart. The text of the
    figure is escaped by matplotlib, the label here.
    """
    out = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _page_svg(out.getvalue(), label)


def _page_svg(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg viewBox="{box[1] if box else "0 0 100 100"}" role="img" aria-label="{html.escape(label)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)  # 0.01 pt is enough
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", re.sub(r"\n\s*", "\n", svg)).strip()
