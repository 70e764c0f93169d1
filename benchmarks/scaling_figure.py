"""The figure of benchmarks/weak_scaling.py: CPU time, share of the time waited, overlap and bytes, by ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from src.reporting.plots import SERIES, STYLE

PANELS = {
    "cpu": ("CPU of a rank, relative to one rank", 1.0),
    "waited_share": ("time waited for other ranks, %", 100.0),
    "overlap": ("collectives beside computing, %", 100.0),
    "sent_total": ("MB sent by a rank in a step", 1e-6),
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Four panels for each number of forwards; the same input gives the same bytes."""
    cases = [case for case in report["cases"] if "cpu" in case]
    cuts = sorted({case["pairs_per_forward"] for case in cases}, reverse=True)
    engines = list(dict.fromkeys(case["engine"] for case in cases))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(PANELS), 2.9 * len(cuts)), layout="constrained")
        panels = figure.subplots(len(cuts), len(PANELS), squeeze=False)
        for row, cut in zip(panels, cuts, strict=True):
            for axes, (name, (title, scale)) in zip(row, PANELS.items(), strict=True):
                for colour, engine in zip(SERIES, engines, strict=False):
                    here = [case for case in cases if (case["engine"], case["pairs_per_forward"]) == (engine, cut)]
                    by = here[0]["cpu"] if name == "cpu" else 1.0
                    points = [(case["ranks"], scale * case[name] / by) for case in here if case[name] is not None]
                    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=engine)
                forwards = report["pairs_per_rank"] // cut
                axes.set_title(f"{title}\n{forwards} forward{'s' * (forwards > 1)} a step")
                axes.set_xticks(sorted({case["ranks"] for case in cases}))
                axes.set_ylim(bottom=0)
                axes.set_xlabel("ranks")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(engines))
        figure.savefig(path, metadata={"Date": None})
