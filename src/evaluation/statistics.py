"""Ranking metrics and bootstrap intervals, in plain numpy.

A bootstrap resample is a vector of non-negative integer weights, one per pair: how often the pair was drawn.
Prompts, not pairs, are drawn when prompt ids are given, because pairs of one prompt are not independent.
Every statistic below is a function of such weights, so all resamples are computed at once, without copying or
sorting data again. Metrics: PWA and Spearman of GapPO section 4, ranking accuracy of AMaPO Eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from src.errors import UserError

Floats = npt.NDArray[np.float64]
ArrayLike = Sequence[float] | npt.NDArray[Any]
Clusters = Sequence[Hashable] | npt.NDArray[Any] | None
Statistic = Callable[[Floats], Floats]
"""Weights [resamples, pairs] -> values [resamples]; NaN where the statistic is undefined."""

RESAMPLES = 2000
CHUNK_ELEMENTS = 4_000_000  # weights held at a time, about 32 MB


class Metric(TypedDict):
    """A number with its 95 % interval; ``value`` is None, with a ``reason``, where it cannot be computed.

    ``n`` counts the pairs (Spearman: the responses) behind it. ``low``/``high`` are None, with a ``reason``,
    where there is a value but no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: NotRequired[str]


def missing(reason: str, n: int = 0) -> Metric:
    """The metric that cannot be computed, and why."""
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


def bootstrap_weights(n: int, clusters: Clusters, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield bootstrap weights [some resamples, n], ``resamples`` rows in all; the same for the same seed."""
    if clusters is None:
        inverse, count = np.arange(n), n
    else:
        codes: dict[Hashable, int] = {}
        inverse = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters], dtype=np.int64)
        if len(inverse) != n:
            raise ValueError(f"{len(inverse)} cluster ids for {n} values")
        count = len(codes)
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK_ELEMENTS // max(n, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(draws.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)[:, inverse]


def estimate(
    statistic: Statistic, n: int, clusters: Clusters = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Metric:
    """A statistic with its 95 % percentile bootstrap interval over ``n`` values (or their clusters).

    Resamples in which the statistic is undefined (all drawn values equal) are left out of the percentiles.
    With one cluster there is nothing to resample, hence no interval. An accuracy of exactly 0 or 1 has an interval
    of zero width, a known limit of the method.
    """
    value = float(statistic(np.ones((1, n)))[0])
    if not np.isfinite(value):
        return missing("undefined for these values", n)
    clusters_seen = n if clusters is None else len(set(clusters))
    if clusters_seen < 2:
        return {"value": value, "low": None, "high": None, "n": n, "reason": "one prompt only: no interval"}
    samples = np.concatenate([statistic(weights) for weights in bootstrap_weights(n, clusters, resamples, seed)])
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def mean_estimate(values: ArrayLike, clusters: Clusters = None, *, resamples: int = RESAMPLES, seed: int = 0) -> Metric:
    """The mean of ``values`` [n] with its interval; a missing metric when there are none."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return missing("no pairs")
    return estimate(lambda w: w @ array / w.sum(1), len(array), clusters, resamples=resamples, seed=seed)


def paired_difference(
    first: ArrayLike, second: ArrayLike, clusters: Clusters = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Metric:
    """Mean of ``first - second`` [n], both measured on the same pairs, with its paired bootstrap interval.

    An interval that excludes 0 says that the two differ. Raises ``ValueError`` when the lengths differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must have one length, not {len(a)} and {len(b)}")
    return mean_estimate(a - b, clusters, resamples=resamples, seed=seed)


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float | None:
    """Share of pairs with ``chosen > rejected``; strict, so a tie counts as wrong; None without pairs."""
    right = np.asarray(chosen, dtype=np.float64) > np.asarray(rejected, dtype=np.float64)
    return float(right.mean()) if len(right) else None


def spearman(rewards: ArrayLike, scores: ArrayLike) -> float | None:
    """Pearson correlation of the average ranks; None when either side is constant (or fewer than two values)."""
    rewards, scores = np.asarray(rewards, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(rewards) < 2 or np.ptp(rewards) == 0 or np.ptp(scores) == 0:
        return None
    return float(np.corrcoef(rankdata(rewards), rankdata(scores))[0, 1])


def spearman_d2(rewards: ArrayLike, scores: ArrayLike) -> float | None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) on average ranks: GapPO Eq. 10 as printed, exact only without ties.

    For comparison with published figures; None when either side is constant.
    """
    if spearman(rewards, scores) is None:
        return None
    d = rankdata(np.asarray(rewards)) - rankdata(np.asarray(scores))
    n = len(d)
    return float(1.0 - 6.0 * (d @ d) / (n * (n * n - 1.0)))


def _weighted_ranks(values: Floats) -> Callable[[Floats], Floats]:
    """Average ranks under repetition: weights [r, n] -> rank of each value in the sample they describe [r, n]."""
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        group = np.add.reduceat(weights[:, order], starts, axis=1)
        result: Floats = (np.cumsum(group, axis=1) - group + (group + 1.0) / 2.0)[:, inverse]
        return result

    return ranks


def _spearman_statistic(rewards: Floats, scores: Floats) -> Statistic:
    reward_ranks, score_ranks = _weighted_ranks(rewards), _weighted_ranks(scores)

    def statistic(pair_weights: Floats) -> Floats:
        w = np.concatenate([pair_weights, pair_weights], axis=1)  # both responses of a pair are drawn together
        n = w.sum(1, keepdims=True)
        x, y = reward_ranks(w) - (n + 1.0) / 2.0, score_ranks(w) - (n + 1.0) / 2.0
        xx, yy = (w * x * x).sum(1), (w * y * y).sum(1)
        values: Floats = np.full(len(w), np.nan)
        np.divide((w * x * y).sum(1), np.sqrt(xx * yy), out=values, where=(xx > 0) & (yy > 0))
        return values

    return statistic


def spearman_estimate(
    rewards: tuple[Floats, Floats], scores: tuple[Floats, Floats], clusters: Clusters = None, *, seed: int = 0
) -> Metric:
    """Spearman of reward and score pooled over (chosen, rejected), each [pairs]; ``n`` counts responses.

    Responses of different prompts are pooled (as GapPO does), so it mixes prompt difficulty with quality.
    """
    x, y = np.concatenate(rewards), np.concatenate(scores)
    if spearman(x, y) is None:
        return missing(_why_no_spearman(x, y), len(x))
    metric = estimate(_spearman_statistic(x, y), len(rewards[0]), clusters, seed=seed)
    return {**metric, "n": len(x)}


def _why_no_spearman(rewards: Floats, scores: Floats) -> str:
    if len(rewards) < 2:
        return "no scored pairs"
    return "all scores are equal" if np.ptp(scores) == 0 else "all rewards are equal"


def ranking_metrics(
    *,
    chosen_sum: ArrayLike | None = None,
    rejected_sum: ArrayLike | None = None,
    chosen_tokens: ArrayLike | None = None,
    rejected_tokens: ArrayLike | None = None,
    chosen_reward: ArrayLike | None = None,
    rejected_reward: ArrayLike | None = None,
    reference_chosen_sum: ArrayLike | None = None,
    reference_rejected_sum: ArrayLike | None = None,
    chosen_scores: Sequence[float | None] | npt.NDArray[Any] | None = None,
    rejected_scores: Sequence[float | None] | npt.NDArray[Any] | None = None,
    flipped: Sequence[bool] | npt.NDArray[Any] | None = None,
    prompt_ids: Sequence[Hashable] | None = None,
    min_score_gap: float = 0.0,
    seed: int = 0,
) -> dict[str, Metric]:
    """Every ranking metric of a set of pairs. All arrays are [pairs]; log-probs are sums in nats over response tokens.

    ``accuracy/reward`` (by the rewards given, which are those of the run's own method), ``accuracy/sum``,
    ``accuracy/average``, ``accuracy/reference`` (log-ratio margin h > 0; its sign, and so this
    metric, does not depend on beta > 0), ``spearman/{average,reference}``, ``spearman/average_eq10``,
    ``lengths/{chosen,rejected}_mean`` (tokens). With ``flipped`` pairs, each accuracy
    also as ``..._clean`` and ``..._flipped``. A missing score is None or NaN. ``min_score_gap`` > 0 keeps the pairs
    with ``abs(chosen_score - rejected_score) >= min_score_gap``; unscored pairs go. Equal ``prompt_ids`` are drawn
    together in the bootstrap. Without log-probs (then rewards must be given) what is made of them has no value, and
    ``spearman/reward`` takes its place.

    Raises ``UserError`` for log-probs that are not finite, ``ValueError`` for arrays that do not belong together.
    """
    columns = _columns(
        s_w=chosen_sum, s_l=rejected_sum, n_w=chosen_tokens, n_l=rejected_tokens,
        r_w=chosen_reward, r_l=rejected_reward, q_w=reference_chosen_sum, q_l=reference_rejected_sum,
        c_w=chosen_scores, c_l=rejected_scores,
        flipped=flipped, ids=None if prompt_ids is None else _codes(prompt_ids),
    )  # fmt: skip
    for name in ("s_w", "s_l", "q_w", "q_l", "r_w", "r_l"):
        _require_finite(columns.get(name))
    if min_score_gap > 0:
        if "c_w" not in columns:
            return _all_missing(f"min_score_gap={min_score_gap} needs scores, and these pairs have none")
        keep = np.abs(columns["c_w"] - columns["c_l"]) >= min_score_gap  # False where a score is NaN
        if not keep.any():
            return _all_missing(f"no pair has a score gap of {min_score_gap} or more")
        columns = {name: values[keep] for name, values in columns.items()}
    return _metrics(columns, seed)


METRICS = (
    "accuracy/reward",
    "accuracy/average",
    "accuracy/sum",
    "accuracy/reference",
    "spearman/average",
    "spearman/average_eq10",
    "spearman/reference",
    "lengths/chosen_mean",
    "lengths/rejected_mean",
)
"""The metrics of every ranking record, in the order of the tables."""


def _all_missing(reason: str) -> dict[str, Metric]:
    return {name: missing(reason) for name in METRICS}


def _metrics(columns: Mapping[str, Floats], seed: int) -> dict[str, Metric]:
    ids = columns.get("ids")
    summed = "s_w" in columns
    rewards: dict[str, tuple[Floats, Floats]] = {}
    if summed:
        chosen, rejected = (columns[f"s_{side}"] / np.maximum(columns[f"n_{side}"], 1.0) for side in "wl")
        rewards = {"average": (chosen, rejected), "sum": (columns["s_w"], columns["s_l"])}
    if "r_w" in columns:
        rewards["reward"] = (columns["r_w"], columns["r_l"])
    if "q_w" in columns:
        rewards["reference"] = (columns["s_w"] - columns["q_w"], columns["s_l"] - columns["q_l"])
    metrics = dict.fromkeys(METRICS, missing("no reference log-probs given" if summed else "no log-probs given"))
    metrics["accuracy/reward"] = missing("no rewards given")
    flipped = columns.get("flipped", np.zeros(len(next(iter(columns.values()))))) > 0
    for name, (chosen, rejected) in rewards.items():
        right = (chosen > rejected).astype(np.float64)
        metrics[f"accuracy/{name}"] = mean_estimate(right, ids, seed=seed)
        if flipped.any():
            for part, keep in (("clean", ~flipped), ("flipped", flipped)):
                part_ids = None if ids is None else ids[keep]
                metrics[f"accuracy/{name}_{part}"] = mean_estimate(right[keep], part_ids, seed=seed)
    metrics |= _spearman_metrics(columns, rewards, seed)
    if summed:
        metrics["lengths/chosen_mean"] = mean_estimate(columns["n_w"], ids, seed=seed)
        metrics["lengths/rejected_mean"] = mean_estimate(columns["n_l"], ids, seed=seed)
    return metrics


def _spearman_metrics(
    columns: Mapping[str, Floats], rewards: Mapping[str, tuple[Floats, Floats]], seed: int
) -> dict[str, Metric]:
    scored = np.zeros(0, dtype=bool)
    if "c_w" in columns:
        scored = np.isfinite(columns["c_w"]) & np.isfinite(columns["c_l"])
    if not scored.any():
        return {name: missing("the pairs have no scores") for name in METRICS if name.startswith("spearman/")}
    scores = (columns["c_w"][scored], columns["c_l"][scored])
    kept = {name: (chosen[scored], rejected[scored]) for name, (chosen, rejected) in rewards.items()}
    ids = columns["ids"][scored] if "ids" in columns else None
    metrics = {
        f"spearman/{name}": spearman_estimate(kept[name], scores, ids, seed=seed)
        for name in (("average", "reference") if "average" in kept else ("reward",))
        if name in kept
    }
    if "average" not in kept:
        return metrics
    rewards_pooled, scores_pooled = np.concatenate(kept["average"]), np.concatenate(scores)
    value = spearman_d2(rewards_pooled, scores_pooled)
    if value is None:
        metrics["spearman/average_eq10"] = missing(_why_no_spearman(rewards_pooled, scores_pooled), len(scores_pooled))
    else:  # resampling adds ties, which this formula does not allow for: an interval would mislead
        reason = "formula as printed, for comparison only: no interval"
        n = len(scores_pooled)
        metrics["spearman/average_eq10"] = {"value": value, "low": None, "high": None, "n": n, "reason": reason}
    return metrics


def _codes(ids: Sequence[Hashable]) -> Floats:
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(i, len(codes)) for i in ids], dtype=np.float64)


def _columns(**arrays: Any) -> dict[str, Floats]:
    """The given arrays as float64 of one length; None arguments are left out, None entries become NaN."""
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items() if values is not None}
    for first, second in (
        ("s_w", "s_l"),
        ("n_w", "n_l"),
        ("s_w", "n_w"),
        ("q_w", "q_l"),
        ("c_w", "c_l"),
        ("r_w", "r_l"),
    ):
        if (first in columns) != (second in columns):
            raise ValueError("log-probs, tokens, rewards and scores are given for chosen and rejected or for neither")
    if "s_w" not in columns and ("r_w" not in columns or "q_w" in columns):
        raise ValueError("there are no log-probs, and no rewards alone")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of different length: {lengths}")
    return columns


def _require_finite(values: Floats | None) -> None:
    if values is not None and not np.isfinite(values).all():
        where = np.flatnonzero(~np.isfinite(values))
        raise UserError(
            f"the log-probs of {len(where)} of {len(values)} responses are not finite (first: pair {where[0]}), so "
            "they cannot be ranked: the weights have diverged, or the dtype is too narrow; evaluate an earlier "
            "checkpoint or with model.dtype=float32"
        )
