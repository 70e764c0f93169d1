"""Many means over prompts at once, each with its bootstrap interval; the resamples are drawn once for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from src.evaluation.lists.metrics import Floats
from src.evaluation.statistics import RESAMPLES, Metric, bootstrap_weights, missing


@dataclass(frozen=True)
class Ratio:
    """The statistic sum of ``above`` over sum of ``below``, both [prompts]; a prompt that does not count has 0 in both.

    ``counted``: [prompts], which do. ``reason``: why there is no value where ``below`` sums to 0.
    """

    above: Floats
    below: Floats
    counted: np.ndarray[tuple[int], np.dtype[np.bool_]]
    reason: str


def mean_of(values: Floats, reason: str) -> Ratio:
    """The mean of ``values`` [prompts]; NaN where a prompt does not count."""
    counted = np.isfinite(values)
    return Ratio(np.where(counted, values, 0.0), counted.astype(np.float64), counted, reason)


def ratio_of(above: Floats, below: Floats, reason: str) -> Ratio:
    """The ratio of the two means, over the prompts where neither is NaN."""
    counted = np.isfinite(above) & np.isfinite(below)
    return Ratio(np.where(counted, above, 0.0), np.where(counted, below, 0.0), counted, reason)


def estimates(ratios: Mapping[str, Ratio], seed: int = 0) -> dict[str, Metric]:
    """Every ratio with its 95 % percentile interval over prompts; ``n`` counts those that count.

    A resample in which a ratio is undefined is left out of its percentiles; with one prompt there is no interval.
    """
    if not ratios:
        return {}
    above = np.stack([ratio.above for ratio in ratios.values()], axis=1)
    below = np.stack([ratio.below for ratio in ratios.values()], axis=1)
    prompts = len(above)
    drawn = [divided(weights @ above, weights @ below) for weights in bootstrap_weights(prompts, None, RESAMPLES, seed)]
    samples = np.concatenate(drawn)
    values = divided(above.sum(0), below.sum(0))
    found: dict[str, Metric] = {}
    for place, (name, ratio) in enumerate(ratios.items()):
        value, n = float(values[place]), int(ratio.counted.sum())
        usable = samples[:, place][np.isfinite(samples[:, place])]
        if not np.isfinite(value):
            found[name] = missing(ratio.reason, n)
        elif n < 2 or not len(usable):
            found[name] = {"value": value, "low": None, "high": None, "n": n, "reason": "one prompt only: no interval"}
        else:
            low, high = np.percentile(usable, [2.5, 97.5])
            found[name] = {"value": value, "low": float(low), "high": float(high), "n": n}
    return found


def divided(above: Floats, below: Floats) -> Floats:
    """``above / below``; NaN where ``below`` is 0 (but for what rounding leaves of it)."""
    values: Floats = np.full(above.shape, np.nan)
    np.divide(above, below, out=values, where=np.abs(below) > 1e-12)
    return values
