"""Response curves of a sweep: a metric against each swept key, which setting wins, and whether seeds allow to say so.

Read from run directories and records alone. Runs that differ in nothing but the seed are one setting.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from scipy.stats import t as student

from src.errors import UserError
from src.evaluation.records import Record
from src.reporting.panels import bars_of
from src.reporting.runs import Run
from src.reporting.trials import (
    Trial,
    Value,
    is_number,
    key_of,
    missing,
    order,
    presets,
    read_preset,
    shown,
    trials_of,
    varying,
)

CURVES = {"validation/rewards/accuracies": ("Validation accuracy of the best checkpoint", True)}
"""Metrics of training that every sweep shows: title, and whether higher is better."""

LEVEL = 0.05
"""Chance of calling a difference real that is none, over all comparisons with the best setting."""


@dataclass(frozen=True)
class Metric:
    """What is compared. ``lower`` values win where ``higher_is_better`` is false."""

    name: str
    title: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Setting:
    """Trials that differ in the seed alone. ``swept``: values of the swept keys; ``label``: what else sets it apart."""

    swept: Mapping[str, Value]
    label: str
    numbers: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.numbers.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None with one seed."""
        return stdev(self.numbers.values()) if len(self.numbers) > 1 else None

    @property
    def text(self) -> str:
        """The setting as one types it."""
        said = [f"{key}={shown(value)}" for key, value in self.swept.items()]
        return " ".join([*said, *([f"({self.label})"] if self.label else [])])


@dataclass(frozen=True)
class Verdict:
    """Who wins. ``tied``: settings that the seed noise does not tell from the best; ``noise``: pooled standard
    deviation over seeds, None where no setting has two; ``edges``: swept keys whose best value is an end of the range.
    """

    metric: Metric
    best: Setting
    second: Setting | None
    tied: tuple[Setting, ...]
    noise: float | None
    margin: float | None
    edges: tuple[str, ...]

    @property
    def text(self) -> str:
        """The verdict in a sentence or three."""
        best = f"{self.best.text}: {number(self.best)}"
        if self.second is None:
            return f"{best}; no other setting to compare it with."
        ahead = abs(self.best.mean - self.second.mean)
        side = "above" if self.metric.higher_is_better else "below"
        lead = f"{best}, {f'{ahead:.4g} {side}' if ahead else 'level with'} {self.second.text}"
        if self.noise is None or self.margin is None:
            said = f"{lead}. One seed a setting: how much of that is seed noise is unknown; repeat with seed=0,1,2."
        elif self.tied:
            others = ", ".join(setting.text for setting in self.tied)
            said = f"{lead}, **within the seed noise** (needs {self.margin:.4g}): not told from {others}."
        else:
            said = f"{lead}, beyond the seed noise (needs {self.margin:.4g}): it wins."
        edges = "".join(f" {key}={shown(self.best.swept[key])} is an end of its range." for key in self.edges)
        return said + edges


@dataclass(frozen=True)
class Line:
    """One curve: the settings along the swept key that agree in everything else."""

    label: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Sweep:
    """Everything that is known of a sweep. ``settings`` by metric name; ``notes``: what is missing or was left out."""

    name: str
    keys: tuple[str, ...]
    metrics: tuple[Metric, ...]
    settings: Mapping[str, tuple[Setting, ...]]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    def lines(self, metric: Metric, key: str) -> list[Line]:
        """The curves of a metric against ``key``, one per value of everything else."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings[metric.name]:
            rest = [f"{name}={shown(value)}" for name, value in setting.swept.items() if name != key]
            found.setdefault(", ".join([*rest, *([setting.label] if setting.label else [])]), []).append(setting)
        return [Line(label, tuple(sorted(group, key=lambda s: order(s.swept[key])))) for label, group in found.items()]

    def values(self, key: str) -> list[Value]:
        """The values of a swept key that were run, in order."""
        found = {setting.swept[key] for settings in self.settings.values() for setting in settings}
        return sorted(found, key=order)


def number(setting: Setting) -> str:
    """Mean ± standard deviation (seeds)."""
    count = len(setting.numbers)
    spread = "" if setting.deviation is None else f" ± {setting.deviation:.2g}"
    return f"{setting.mean:.4g}{spread} ({count} seed{'s' if count > 1 else ''})"


def is_geometric(values: Sequence[Value]) -> bool:
    """Whether positive numbers that reach over more than a factor of five lie more evenly by their ratios than by their
    differences (0.1, 0.3, 1); so, drawn on a logarithmic axis."""
    numbers = sorted({float(value) for value in values if is_number(value)})
    if len(numbers) < max(2, len(set(values))) or numbers[0] <= 0 or numbers[-1] / numbers[0] <= 5:
        return False
    ratios = [math.log(after / before) for before, after in pairwise(numbers)]
    steps = [after - before for before, after in pairwise(numbers)]
    return len(steps) == 1 or max(ratios) / min(ratios) < max(steps) / min(steps)


def sweep_of(what: Sequence[str], runs: Iterable[Run], records: Iterable[Record], metrics: Sequence[str] = ()) -> Sweep:
    """The sweep that ``what`` names: presets of conf/sweep, or keys (``method.beta``) that differ among the runs.

    ``metrics``: names such as ``ranking/accuracy/reward``; empty: validation accuracy and the benchmarks' own numbers.
    Raises ``UserError`` where nothing differs or nothing was measured, naming what does.
    """
    chosen = [read_preset(name) for name in what if name in presets()]
    given = [key_of(name) for name in what if name not in presets()]
    trials, notes = trials_of(runs, records)
    refuse_unknown(what, given, trials)
    if chosen:
        trials = [trial for trial in trials if any(preset.has(trial.settings) for preset in chosen)]
    candidates = list(dict.fromkeys([*given, *(key for preset in chosen for key in [*preset.fixed, *preset.swept])]))
    keys = tuple(key for key in candidates if key in varying(trials))
    if not keys:
        raise UserError(nothing_differs(what, candidates, trials))
    name = "+".join(what)
    compared = chosen_metrics(metrics, trials)
    settings = {metric.name: tuple(settings_of(trials, keys, metric.name)) for metric in compared}
    verdicts = tuple(verdict_of(metric, settings[metric.name], keys) for metric in compared)
    return Sweep(name, keys, compared, settings, verdicts, (*notes, *missing(chosen, trials)))


def refuse_unknown(what: Sequence[str], given: Sequence[str], trials: Sequence[Trial]) -> None:
    """Raise ``UserError`` for a name that is neither a preset nor a key of any run."""
    known = {key for trial in trials for key in trial.settings}
    for name, key in zip([name for name in what if name not in presets()], given, strict=True):
        if trials and key not in known:
            raise UserError(
                f"sweep={name} is neither a preset nor a key of the runs; presets: {', '.join(presets())}; "
                f"keys that differ among the runs: {', '.join(sorted(varying(trials))) or 'none'}"
            )


def nothing_differs(what: Sequence[str], candidates: Sequence[str], trials: Sequence[Trial]) -> str:
    """Why there is no curve, and what would give one."""
    name = " ".join(what)
    run = f"python -m src.train -m sweep={what[0]} seed=0,1,2" if what and what[0] in presets() else "more settings"
    if not trials:
        return f"sweep={name}: no finished run of it was found; run {run} first, or give runs=DIRECTORY"
    others = ", ".join(sorted(varying(trials))) or "nothing"
    return (
        f"sweep={name}: {len(trials)} finished runs, but none of {', '.join(candidates)} differs among them "
        f"(what does: {others}); run {run}"
    )


def chosen_metrics(names: Sequence[str], trials: Sequence[Trial]) -> tuple[Metric, ...]:
    """The metrics to compare, of those that were measured; raises ``UserError`` for others."""
    known = Counter(name for trial in trials for name in trial.numbers)
    bars = {bar.logged: bar for bar in bars_of()}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"sweep_metrics={unknown[0]} was not measured; there are: {', '.join(sorted(known))}")
    usual = [name for name in known if name in CURVES or (bar_of(name) in bars and bars[bar_of(name)].higher_is_better)]
    wanted = list(names) or sorted(usual, key=lambda name: (name not in CURVES, name))
    if not wanted:
        raise UserError(
            f"nothing was measured of these runs that has a better end; there are: {', '.join(sorted(known))}"
        )
    found = []
    for name in wanted:
        bar = bars.get(bar_of(name))
        way = name.partition("[")[2].partition("]")[0]
        title, higher = CURVES.get(name, (bar.title if bar else name, lower_wins(name) is False))
        higher = higher if bar is None or bar.higher_is_better is None else bar.higher_is_better
        found.append(Metric(name, f"{title} ({way})" if way else title, higher))
    return tuple(found)


def bar_of(name: str) -> str:
    """A metric's name without the way it was measured."""
    head, bracket, rest = name.partition("[")
    return head + rest.partition("]")[2] if bracket else name


def lower_wins(name: str) -> bool:
    """Whether less of a metric is better: of losses."""
    return name.rsplit("/", 1)[-1] == "loss"


def settings_of(trials: Sequence[Trial], keys: Sequence[str], metric: str) -> list[Setting]:
    """The settings of all trials that have the metric, in order of the swept values."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if metric in trial.numbers:
            groups.setdefault(json.dumps(trial.settings, sort_keys=True), []).append(trial)
    labels = labels_of([group[0] for group in groups.values()], keys)
    found = [
        Setting(
            {key: group[0].settings.get(key) for key in keys},
            label,
            {trial.seed: trial.numbers[metric] for trial in group},
        )
        for group, label in zip(groups.values(), labels, strict=True)
    ]
    return sorted(found, key=lambda setting: ([order(value) for value in setting.swept.values()], setting.label))


def labels_of(trials: Sequence[Trial], keys: Sequence[str]) -> list[str]:
    """What tells each apart from others of the same swept values; "" where there are none."""
    swept = [tuple(shown(trial.settings.get(key)) for key in keys) for trial in trials]
    labels = []
    for trial, own in zip(trials, swept, strict=True):
        rivals = [other for other, values in zip(trials, swept, strict=True) if values == own]
        differs = sorted(varying(rivals)) or sorted(of_some(rivals))
        labels.append(", ".join(f"{key}={shown(trial.settings.get(key))}" for key in differs))
    return labels


def of_some(trials: Sequence[Trial]) -> set[str]:
    """Keys that some of the runs have, and others have not."""
    counts = Counter(key for trial in trials for key in trial.settings)
    return {key for key, count in counts.items() if count < len(trials)}


def verdict_of(metric: Metric, settings: Sequence[Setting], keys: Sequence[str]) -> Verdict:
    """Best setting, and which others the seeds do not tell from it.

    Noise is the standard deviation over seeds, pooled over settings. A setting is behind the best when the difference
    of means exceeds Student's t times its standard error, at 5 % over all comparisons (Bonferroni).
    """
    sign = 1 if metric.higher_is_better else -1
    ranked = sorted(settings, key=lambda setting: -sign * setting.mean)
    best, others = ranked[0], ranked[1:]
    freedom = sum(len(setting.numbers) - 1 for setting in settings)
    noise = None
    margins: list[float] = []
    if freedom and others:
        squares = sum((s.deviation or 0.0) ** 2 * (len(s.numbers) - 1) for s in settings)
        noise = math.sqrt(squares / freedom)
        quantile = float(student.ppf(1 - LEVEL / (2 * len(others)), freedom))
        margins = [quantile * noise * math.sqrt(1 / len(best.numbers) + 1 / len(s.numbers)) for s in others]
    tied = tuple(s for s, needed in zip(others, margins, strict=False) if sign * (best.mean - s.mean) <= needed)
    return Verdict(
        metric,
        best,
        others[0] if others else None,
        tied,
        noise,
        margins[0] if margins else None,
        edges_of(best, settings, keys),
    )


def edges_of(best: Setting, settings: Sequence[Setting], keys: Sequence[str]) -> tuple[str, ...]:
    """Swept numbers whose best value is the smallest or largest of three or more."""
    found = []
    for key in keys:
        values = sorted({float(v) for s in settings if is_number(v := s.swept[key])})
        if len(values) > 2 and best.swept[key] in (values[0], values[-1]):
            found.append(key)
    return tuple(found)
