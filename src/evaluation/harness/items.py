"""Values of single documents behind lm-eval's metrics, from the per-sample logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.evaluation.harness.metrics import is_number, metric_name
from src.evaluation.harness.samples import Row, read_logs
from src.evaluation.harness.suites import Suite
from src.evaluation.items import mean_of_means
from src.evaluation.statistics import Metric

TOLERANCE = 1e-6


def items_of(
    files: Mapping[str, Mapping[str, Path]], suites: Sequence[Suite], metrics: Mapping[str, Metric]
) -> dict[str, dict[str, float]]:
    """Metric -> ``task:document`` -> value, for every metric that is a mean over documents.

    ``files``: task or group -> its tasks -> file of their samples. A metric that is no mean of its documents' values
    (a perplexity, an F1 of the corpus) has no items.
    """
    found: dict[str, dict[str, float]] = {}
    for name, logs in files.items():
        single = read_values(logs)
        found |= {metric: values for metric, values in single.items() if agrees(values, metrics.get(metric))}
        found |= group_items(name, single, metrics)
    for suite in suites:
        members = [
            averaged([found.get(f"{member.wanted.task}/{name}", {}) for name in member.metric])
            for member in suite.members
        ]
        values = mean_of_means(members)
        if suite.average and agrees(values, metrics.get(f"{suite.name}/average")):
            found[f"{suite.name}/average"] = values
    return found


def read_values(logs: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Every number of every document of some tasks, by metric."""
    found: dict[str, dict[str, float]] = {}
    for task, path in logs.items():
        for log in read_logs([path], [task]):
            for row in log.rows:
                for name, value in values_of(task, row).items():
                    found.setdefault(name, {})[f"{task}:{row.doc_id}"] = value
    return found


def values_of(task: str, row: Row) -> dict[str, float]:
    """The numbers of one document under one filter."""
    numbers = {
        name: float(value)
        for name, value in row.values.items()
        if isinstance(value, bool) or (is_number(value) and math.isfinite(value))
    }
    return {metric_name(task, f"{name},{row.filter}"): value for name, value in numbers.items()}


def group_items(
    group: str, single: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Metric]
) -> dict[str, dict[str, float]]:
    """Items of a group's metrics: those of its tasks, pooled or (where tasks count alike) linearized."""
    found: dict[str, dict[str, float]] = {}
    for name, metric in metrics.items():
        head, _, rest = name.partition("/")
        if head != group or name in single or name.endswith("_stderr"):
            continue
        parts = [values for other, values in single.items() if other.partition("/")[2] == rest]
        pooled = {item: value for values in parts for item, value in values.items()}
        for values in (pooled, mean_of_means(parts)):
            if agrees(values, metric):
                found[name] = values
                break
    return found


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several metrics of the same documents; {} where one of them has other documents."""
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        return {}
    return {item: sum(part[item] for part in parts) / len(parts) for item in parts[0]}


def agrees(values: Mapping[str, float], metric: Metric | None) -> bool:
    """Whether the metric is the mean of ``values``."""
    if metric is None or metric["value"] is None or not values:
        return False
    return abs(sum(values.values()) / len(values) - metric["value"]) <= TOLERANCE * max(1.0, abs(metric["value"]))
