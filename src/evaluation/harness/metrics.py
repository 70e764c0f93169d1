"""lm-eval's results as metrics of ours: value, standard error and interval, and the averages of suites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from src.evaluation.harness.suites import Member, Suite
from src.evaluation.statistics import Metric, missing

Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""

Results = Mapping[str, Any]
"""What lm-eval gives for a task or group: ``"acc,none"``, ``"acc_stderr,none"``, ``"sample_len"``, …"""


def metric_name(task: str, key: str) -> str:
    """``gsm8k/exact_match/strict-match`` of lm-eval's ``exact_match,strict-match``; the filter ``none`` is left out."""
    metric, _, kept = key.partition(",")
    return "/".join([task, metric, *([kept] if kept != "none" else [])])


def metrics_of(task: str, results: Results) -> dict[str, Metric]:
    """Every metric of a task or group, and the standard error of each as ``…_stderr``, in lm-eval's order.

    lm-eval's units: fractions of 1 for accuracies. ``low`` and ``high`` are the value ± 1.96 standard errors; lm-eval
    has no standard error for a single document and for some metrics.
    """
    found: dict[str, Metric] = {}
    n = int(results.get("sample_len") or 0)
    for key, value in results.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not is_number(value):
            continue
        stderr = results.get(f"{metric}_stderr,{kept}")
        name = metric_name(task, key)
        found[name] = with_interval(float(value), float(stderr) if is_number(stderr) else None, n)
        found[f"{name}_stderr"] = stderr_metric(stderr, n)
    return found


def with_interval(value: float, stderr: float | None, n: int) -> Metric:
    """A value with the interval that its standard error gives."""
    if not math.isfinite(value):
        return missing("not a finite number", n)
    if stderr is None or not math.isfinite(stderr):
        return {"value": value, "low": None, "high": None, "n": n, "reason": "lm-eval gives no standard error"}
    return {"value": value, "low": value - Z * stderr, "high": value + Z * stderr, "n": n}


def stderr_metric(stderr: Any, n: int) -> Metric:
    """A standard error as a metric of its own."""
    if not is_number(stderr) or not math.isfinite(stderr):
        return missing("lm-eval gives no standard error", n)
    return {"value": float(stderr), "low": None, "high": None, "n": n, "reason": "a standard error has no interval"}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether lm-eval gives a number (and not "N/A" or a name)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def suite_average(suite: Suite, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """``<suite>/average``: the plain mean over its members, with the standard error of a mean of independent values.

    Nothing is averaged over less than all members: the reason names those that are missing.
    """
    values = [member_value(member, metrics) for member in suite.members]
    absent = [member.wanted.task for member, found in zip(suite.members, values, strict=True) if found is None]
    name = f"{suite.name}/average"
    if absent:
        present = len(values) - len(absent)
        return {name: missing(f"{len(absent)} of {len(values)} members are missing: {', '.join(absent)}", present)}
    means, stderrs = zip(*(found for found in values if found is not None), strict=True)
    mean = sum(means) / len(means)
    stderr = None if None in stderrs else math.sqrt(sum(error**2 for error in stderrs)) / len(means)
    return {name: with_interval(mean, stderr, len(means)), f"{name}_stderr": stderr_metric(stderr, len(means))}


def absent_averages(metrics: Mapping[str, Metric]) -> list[str]:
    """What to say of averages that could not be made."""
    return [
        f"{name}: {metric.get('reason')}"
        for name, metric in metrics.items()
        if name.endswith("/average") and metric["value"] is None
    ]


def member_value(member: Member, metrics: Mapping[str, Metric]) -> tuple[float, float | None] | None:
    """(value, standard error) of what counts of a member; ``None`` where any part of it is missing."""
    names = [f"{member.wanted.task}/{metric}" for metric in member.metric]
    values = [metrics[name]["value"] for name in names if name in metrics]
    if len(values) < len(names) or any(value is None for value in values):
        return None
    stderrs = [metrics[f"{name}_stderr"]["value"] if f"{name}_stderr" in metrics else None for name in names]
    mean = sum(value for value in values if value is not None) / len(values)
    if len(stderrs) > 1 or stderrs[0] is None:
        return mean, None  # several metrics of the same answers are not independent
    return mean, stderrs[0]


def all_metrics(
    results: Sequence[tuple[str, Mapping[str, Results]]], suites: Sequence[Suite]
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """(metrics to show, metrics of the members of lm-eval's groups).

    ``results``: for each thing that was asked for its name and what lm-eval gives for it and everything in it.
    """
    shown: dict[str, Metric] = {}
    inner: dict[str, dict[str, Metric]] = {}
    for name, found in results:
        own = metrics_of(name, found[name]) if name in found else {}
        rest = {task: metrics_of(task, of_task) for task, of_task in found.items() if task != name}
        if own:
            shown |= own
            inner |= rest
        else:  # a tag, or a group that its owners do not average
            for of_task in rest.values():
                shown |= of_task
    for suite in suites:
        if suite.average:
            shown |= suite_average(suite, shown)
    return shown, inner
