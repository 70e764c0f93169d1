"""Values of single items behind a metric: what paired comparisons of two models are made of.

A value is in the metric's own unit, and the mean over the items is the metric (or nearly: a mean of bootstraps). Where
a metric is a ratio of sums or a mean of means, values are linearized: their mean is still the metric, their spread that
of the statistic. Ids are those of the questions, equal for all models; ``QUESTION#PART`` for what belongs to one
question (turns of a conversation, pairs of a prompt), which resampling keeps together.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from src.errors import UserError

Items = Mapping[str, Mapping[str, float]]
"""Metric -> item id -> value."""

FOLDER = "items"
"""Beside the records."""

PART = "#"


def cluster_of(item: str) -> str:
    """The question that an item belongs to."""
    return item.partition(PART)[0]


def parted(questions: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Ids of items of which several may belong to one question; a question's own text may hold no ``#``."""
    return [f"{question.replace(PART, '_')}{PART}{part}" for question, part in zip(questions, parts, strict=True)]


def finite_items(ids: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """Id -> value, without those that have none (NaN)."""
    return {name: float(value) for name, value in zip(ids, values, strict=True) if math.isfinite(value)}


def ratio_items(above: npt.ArrayLike, below: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Linearized values [n] of the metric sum(above) / sum(below): metric + (above - metric * below) / mean(below).

    Equal to ``above`` where ``below`` is 1 throughout. NaN where the sum below is 0.
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if not len(b) or not b.sum():
        return np.full(b.shape, np.nan)
    metric = a.sum() / b.sum()
    linear: npt.NDArray[np.float64] = metric + (a - metric * b) / b.mean()
    return linear


def mean_of_means(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Linearized values of the mean of the groups' means, over the items of all groups; {} when one has none."""
    if not groups or not all(groups):
        return {}
    total = sum(map(len, groups))
    means = [sum(group.values()) / len(group) for group in groups]
    metric = sum(means) / len(means)
    return {
        name: metric + (value - mean) * total / (len(groups) * len(group))
        for group, mean in zip(groups, means, strict=True)
        for name, value in group.items()
    }


def content_of(items: Items) -> bytes:
    """The items as one line of JSON, the same for the same values."""
    plain = {metric: dict(values) for metric, values in items.items() if values}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def compressed(content: bytes) -> bytes:
    """As the file holds it; no date in it, so that the same values are the same file."""
    return gzip.compress(content, mtime=0)


def hash_of(content: bytes) -> str:
    """SHA-256 of the content before compression."""
    return hashlib.sha256(content).hexdigest()


def read_items(path: Path, expected_hash: str) -> dict[str, dict[str, float]]:
    """The items of a record; raises ``UserError`` for a file that is missing, damaged or of another record."""
    try:
        content = gzip.decompress(path.read_bytes())
        values = json.loads(content)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or measure again") from error
    if hash_of(content) != expected_hash:
        raise UserError(f"{path} is not what its record was made with (hash {hash_of(content)[:12]}); restore it")
    return {str(metric): {str(k): float(v) for k, v in found.items()} for metric, found in values.items()}
