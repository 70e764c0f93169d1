"""The figure of `python -m src.data.gaps`: the histogram of score gaps, and the gradient mass of each weighting."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.plots import DASHES, SERIES, draw_grid


def draw_gaps(report: Mapping[str, Any]) -> Figure:
    """Two panels over the score gap: share of the pairs, and share of the gradient by weighting (GapPO's figures 1, 2).

    ``report``: as `python -m src.data.gaps output=json` prints it.
    """
    return draw_grid([partial(histogram_axes, report=report), partial(mass_axes, report=report)])


def histogram_axes(axes: Axes, report: Mapping[str, Any]) -> None:
    """Bars: percent of the pairs in each bin."""
    bins = report["bins"]
    axes.bar(
        [one["from"] for one in bins],
        [100 * one["pairs"] / report["pairs"] for one in bins],
        [one["to"] - one["from"] for one in bins],
        align="edge",
        color=SERIES[0],
        alpha=0.75,
        edgecolor="white",
        linewidth=0.6,
    )
    axes.set_title(f"{report['data']['dataset']}, {report['data']['split']}: {report['pairs']} pairs")
    axes.set_xlabel("score gap")
    axes.set_ylabel("pairs, %")


def mass_axes(axes: Axes, report: Mapping[str, Any]) -> None:
    """Steps: percent of the gradient in each bin, one line per weighting that gives any pair a weight."""
    bins = report["bins"]
    edges = [one["from"] for one in bins] + [bins[-1]["to"]]
    for number, name in enumerate(report["counting"]):
        values = [one["mass"][name] for one in bins]
        if None not in values:
            axes.stairs(
                [100 * value for value in values],
                edges,
                color=SERIES[number % len(SERIES)],
                linestyle=DASHES[number // len(SERIES)],
                linewidth=1.6,
                label=name.replace("_", " "),
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", handlelength=1.4)
    axes.set_title("Gradient by weight of a pair")
    axes.set_xlabel("score gap")
    axes.set_ylabel("gradient mass, %")
