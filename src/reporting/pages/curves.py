"""Panels of curves and distributions, of one run or of several."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from src.evaluation.records import Record
from src.reporting.charts import Histogram, Line, binned, histogram_chart, line_chart
from src.reporting.panels import Panel, curves_once
from src.reporting.plots import RAW_OF_RUNS, smooth, thin
from src.reporting.runs import Curve, Run

POINTS = 4000
"""Points of one overlay, shared among its curves, so that a page of many runs stays small."""

FEWEST = 24


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its title; ``key``: what its colours mean, (colour number, text)."""

    title: str
    drawing: Markup
    key: Sequence[tuple[int, str]] = ()
    note: str = ""


def run_charts(run: Run) -> dict[str, list[Chart]]:
    """Section -> charts of one run, with the parts of a metric that were logged."""
    found: dict[str, list[Chart]] = {}
    for section, panel in curves_once():
        lines, key = panel_lines(run, panel)
        drawing = line_chart(lines, spoken(panel, run), panel.chance)
        if drawing:
            found.setdefault(section, []).append(Chart(panel.title, Markup(drawing), key))
    return found


def panel_lines(run: Run, panel: Panel) -> tuple[list[Line], list[tuple[int, str]]]:
    """The curves of one panel, and its key."""
    lines: list[Line] = []
    key: list[tuple[int, str]] = []
    for split in panel.splits:
        curve = run.curves.get((split, panel.metric))
        if curve:
            number = 0 if split == "train" else 1
            lines += split_lines(curve, number, split, raw=True)
            key.append((number, split))
    for offset, metric in enumerate(panel.parts, 2):
        if curve := run.curves.get(("train", metric)):
            name = metric.rpartition("/")[2]
            name = f"{name.removeprefix('accuracies_')} pairs" if "accuracies" in name else f"{name} reward"
            lines.append(Line(smooth(thin(curve)), offset, label=name))
            key.append((offset, name))
    return lines, key


def split_lines(curve: Curve, series: int, label: str, *, raw: bool, hidable: bool = False) -> list[Line]:
    """Training: raw values faint behind the running mean. Validation: dots."""
    if label.endswith("validation"):
        return [Line(thin(curve), series, "dots", label, hidable)]
    mean = smooth(thin(curve))
    behind = [Line(thin(curve), series, "raw", "", hidable)] if raw and mean[1] != thin(curve)[1] else []
    return [*behind, Line(mean, series, "mean", label, hidable)]


def spoken(panel: Panel, run: Run) -> str:
    """The panel in words: where each curve ends."""
    ends = [
        f"{split} {run.curves[split, panel.metric][1][-1]:.4g} at step {run.curves[split, panel.metric][0][-1]}"
        for split in panel.splits
        if (split, panel.metric) in run.curves
    ]
    return f"{panel.title}: {', '.join(ends)}"


def overlay_charts(runs: Sequence[tuple[Run, str, int]], name: str) -> dict[str, list[Chart]]:
    """Section -> charts of several runs, given as (run, label, series)."""
    room = max(FEWEST, POINTS // max(1, 2 * len(runs)))
    found: dict[str, list[Chart]] = {}
    for section, panel in curves_once():
        lines: list[Line] = []
        for run, label, series in runs:
            for split in panel.splits:
                if curve := run.curves.get((split, panel.metric)):
                    raw = len(runs) <= RAW_OF_RUNS
                    lines += split_lines(curve, series, f"{label}, {split}", raw=raw, hidable=True)
        lines = [Line(fewer(one.curve, room), one.series, one.style, one.label, one.hidable) for one in lines]
        drawing = line_chart(lines, f"{panel.title} of {len(runs)} runs on {name}", panel.chance)
        if drawing:
            found.setdefault(section, []).append(Chart(panel.title, Markup(drawing)))
    return found


def fewer(curve: Curve, room: int) -> Curve:
    """At most about so many points, the last one among them."""
    steps, values = curve
    if len(steps) <= room:
        return curve
    places = sorted({round(number * (len(steps) - 1) / (room - 1)) for number in range(room)})
    return [steps[place] for place in places], [values[place] for place in places]


TITLES = {
    "rewards/margins": "Reward margins (chosen − rejected)",
    "weight/mean": "Weights of the pairs",
    "weight/gradient": "How hard the update pushes a pair (−∂loss/∂reward)",
    "target/mean": "Target margins",
}


AXES = {"rewards/margins": "margin", "weight/mean": "weight", "weight/gradient": "push", "target/mean": "target margin"}


def distribution_charts(run: Run, records: Iterable[Record]) -> list[Chart]:
    """Histograms over pairs: of the last validation, kept by training, and of ranked pairs, kept by evaluation."""
    charts = []
    kept = run.distributions.get("metrics")
    for metric, one in (kept if isinstance(kept, Mapping) else {}).items():
        title = f"{TITLES.get(metric, metric)}, validation at step {run.distributions.get('step')}"
        try:
            charts.append(kept_chart(title, metric, one))
        except (TypeError, KeyError, ValueError):
            run.notes.append(f"distributions.json: {metric} is no histogram and was left out")
    ranked = (ranked_chart(record) for record in records if record.benchmark == "ranking")
    return [*charts, *(chart for chart in ranked if chart is not None)]


def kept_chart(title: str, metric: str, kept: Mapping[str, Any]) -> Chart:
    """A histogram that training kept; a single value is said in words."""
    edges = tuple(float(edge) for edge in kept["edges"])
    counts = {str(name): tuple(int(count) for count in values) for name, values in kept["counts"].items()}
    if len(edges) < 2:
        value = f"All {sum(map(sum, counts.values()))} pairs have {edges[0]:.4g}." if edges else "No finite value."
        return Chart(title, Markup(f'<p class="lead">{html.escape(value)}</p>'))
    return histogram_of(Histogram(edges, counts), title, AXES.get(metric, metric))


def histogram_of(found: Histogram, title: str, axis: str) -> Chart:
    """A histogram with its key."""
    shares = {name: total for name, total in found.totals.items() if total}
    key = [(number, f"{name} ({total})") for number, (name, total) in enumerate(shares.items())]
    label = f"{title}: {', '.join(text for _, text in key)} pairs"
    note = "Percent of the pairs of each kind; the outermost bars hold the tails."
    return Chart(title, Markup(histogram_chart(found, label, axis)), key, note)


def ranked_chart(record: Record) -> Chart | None:
    """Margins of the pairs behind a ranking record; ``None`` where its rows are not here or hold no rewards."""
    source = record.sources.get("samples") or record.sources.get("rewards")
    path = Path(str(source["path"])) if isinstance(source, Mapping) and "path" in source else None
    if path is None or not path.is_file():
        return None
    groups: dict[str, list[float]] = {"as labelled": [], "flipped": []}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            margin = float(row["chosen_reward"]) - float(row["rejected_reward"])
            if math.isfinite(margin):
                groups["flipped" if row.get("flipped") else "as labelled"].append(margin)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = binned({name: values for name, values in groups.items() if values})
    if found is None:
        return None
    data = f"{record.data.split} split, checkpoint {record.run.checkpoint}"
    return histogram_of(found, f"Reward margins of ranked pairs, {data}", "margin")
