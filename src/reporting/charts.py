"""Small charts for pages, as SVG text: lines over steps and histograms.

A report has thousands of panels, so these are written directly: a few kilobytes and well under a millisecond each. They
are coloured by the page's CSS variables (light and dark); a curve carries the class ``series-<n>``, by which a page
hides it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from src.reporting.runs import Curve

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 184
COLOURS = 10
"""Colours of a page, ``--series-0`` to ``--series-9``; further series repeat them with other dashes."""

DASHES = ("", "6 2.5", "1.5 2", "6 2.5 1.5 2.5")
BINS = 32
TAIL = 0.005
"""Share of the values at either end that fall into the outermost bins of a histogram."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. ``series``: its colour and dash; ``style``: mean (drawn), raw (faint) or dots (with markers)."""

    curve: Curve
    series: int
    style: str = "mean"
    label: str = ""
    hidable: bool = False


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between ``edges`` of each group of values; groups are compared by their shares."""

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]

    @property
    def totals(self) -> dict[str, int]:
        """Values of each group."""
        return {name: sum(counts) for name, counts in self.counts.items()}


def colour(series: int) -> str:
    """The CSS value of a series' colour."""
    return f"var(--series-{series % COLOURS})"


def dash(series: int) -> str:
    """The SVG dash pattern of a series."""
    return DASHES[series // COLOURS % len(DASHES)]


def line_chart(lines: Sequence[Line], label: str, chance: float | None = None) -> str:
    """Curves over steps as an ``<svg>``. ``label`` is read out by screen readers; ``chance``: a line at that height.

    Empty text when there is no point to draw.
    """
    drawn = [line for line in lines if line.curve[0]]
    if not drawn:
        return ""
    xs = [float(step) for line in drawn for step in (line.curve[0][0], line.curve[0][-1])]
    ys = [value for line in drawn for value in line.curve[1]] + ([] if chance is None else [chance])
    (left, right), (low, high) = (min(xs), max(xs)), padded(min(ys), max(ys))
    right = right if right > left else left + 1
    place = Place(left, right, low, high)
    parts = [axes(place, nice(left, right, 5, whole=True), nice(low, high, 5))]
    if chance is not None:
        y = place.y(chance)
        parts.append(f'<line class="chance" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
    parts += [path_of(line, place) for line in drawn]
    parts.append(f'<text class="unit" x="{RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>')
    return svg(parts, label)


@dataclass(frozen=True, slots=True)
class Place:
    """From values to places in the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> str:
        return short(LEFT + (RIGHT - LEFT) * (value - self.left) / (self.right - self.left))

    def y(self, value: float) -> str:
        return short(BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low))


def path_of(line: Line, place: Place) -> str:
    """One curve, with its name as the tooltip that a browser shows by itself."""
    points = [f"{place.x(step)} {place.y(value)}" for step, value in zip(*line.curve, strict=True)]
    pattern = "1.5 3" if line.style == "dots" else dash(line.series)
    dashed = f' stroke-dasharray="{pattern}"' if pattern else ""
    name = f"<title>{html.escape(line.label)}</title>" if line.label else ""
    ends = ' stroke-linecap="round"' if len(points) == 1 else ""
    drawing = f'<path d="M{"L".join(points if len(points) > 1 else points * 2)}"{dashed}{ends}/>'
    if line.style == "dots":
        drawing += "".join(f'<circle cx="{x}" cy="{y}" r="2.6"/>' for x, y in (point.split() for point in points))
    series = f" series-{line.series}" if line.hidable else ""
    return f'<g class="curve {line.style}{series}" style="--c: {colour(line.series)}">{name}{drawing}</g>'


def histogram_chart(found: Histogram, label: str, axis: str) -> str:
    """Shares of each group between the edges as an ``<svg>``; ``axis``: what is counted."""
    totals = found.totals
    highest = max(max(counts) / totals[name] for name, counts in found.counts.items() if totals[name])
    place = Place(found.edges[0], found.edges[-1], 0.0, 100 * highest * 1.06)
    parts = [axes(place, nice(place.left, place.right, 6), nice(0.0, place.high, 4))]
    if place.left < 0 < place.right:
        parts.append(f'<line class="chance" x1="{place.x(0)}" x2="{place.x(0)}" y1="{TOP}" y2="{BOTTOM}"/>')
    for number, (name, counts) in enumerate(found.counts.items()):
        if not totals[name]:
            continue
        corners = [f"{place.x(found.edges[0])} {place.y(0)}"]
        for (left, right), count in zip(pairwise(found.edges), counts, strict=True):
            height = place.y(100 * count / totals[name])
            corners += [f"{place.x(left)} {height}", f"{place.x(right)} {height}"]
        corners.append(f"{place.x(found.edges[-1])} {place.y(0)}")
        title = f"<title>{html.escape(name)}</title>"
        parts.append(f'<g class="bars" style="--c: {colour(number)}">{title}<path d="M{"L".join(corners)}"/></g>')
    parts.append(f'<text class="unit" x="{RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(axis)}</text>')
    return svg(parts, label)


def binned(groups: Mapping[str, Iterable[float]], bins: int = BINS) -> Histogram | None:
    """The groups over common bins; the outermost bins hold the tails. ``None`` where all values are the same."""
    arrays = {name: np.asarray([v for v in values if math.isfinite(v)]) for name, values in groups.items()}
    arrays = {name: values for name, values in arrays.items() if len(values)}
    if not arrays:
        return None
    together = np.concatenate(list(arrays.values()))
    low, high = (float(value) for value in np.quantile(together, [TAIL, 1 - TAIL]))
    if not high > low:
        low, high = float(together.min()), float(together.max())
    if not high > low:
        return None
    edges = np.linspace(low, high, bins + 1)
    counts = {
        name: tuple(int(count) for count in np.histogram(np.clip(values, low, high), edges)[0])
        for name, values in arrays.items()
    }
    return Histogram(tuple(float(edge) for edge in edges), counts)


def svg(parts: Sequence[str], label: str) -> str:
    """The element."""
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"


def axes(place: Place, across: Sequence[float], upwards: Sequence[float]) -> str:
    """Grid lines and the numbers at them."""
    parts = ['<g class="grid">']
    parts += [f'<path d="M{LEFT} {place.y(y)}H{RIGHT}"/>' for y in upwards]
    parts += [f'<path d="M{place.x(x)} {TOP}V{BOTTOM}"/>' for x in across]
    parts.append("</g>")
    written = texts_of(upwards)
    baseline = 3.5
    for y, text in zip(upwards, written, strict=True):
        parts.append(f'<text x="{LEFT - 5}" y="{short(float(place.y(y)) + baseline)}" text-anchor="end">{text}</text>')
    for x, text in zip(across, texts_of(across), strict=True):
        parts.append(f'<text x="{place.x(x)}" y="{BOTTOM + 13}" text-anchor="middle">{text}</text>')
    return "".join(parts)


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a little air at both ends; never empty, nor so narrow that it shows rounding."""
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def nice(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """About so many round numbers within the range."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first
    return [(first + number) * step for number in range(count + 1)]


def texts_of(numbers: Sequence[float]) -> list[str]:
    """The numbers with as many digits as tell them apart; thousands as k."""
    largest = max(map(abs, numbers), default=0.0)
    gap = min((b - a for a, b in pairwise(numbers)), default=largest or 1.0)
    if largest and not 1e-3 <= largest < 1e6:
        return [f"{number:.3g}" for number in numbers]
    if largest >= 10_000:
        return [f"{number / 1000:g}k" for number in numbers]
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    finer = digits + 1 if any(abs(n * 10**digits - round(n * 10**digits)) > 1e-6 for n in numbers) else digits
    return [f"{number:.{finer}f}" for number in numbers]


def short(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
