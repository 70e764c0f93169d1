"""Ranking metrics of pairs, and γ-PO's margins for given reward margins: after so many updates and at the optimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.golden.common import BATCHES, Batch, Numbers, sigma
from tests.golden.with_state import descended


def ranks(values: Numbers) -> Numbers:
    """Average ranks: how many are smaller, and half of how many are equal (with itself) and one more."""
    return np.array([np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values])


def metrics(name: str, b: Batch, smallest: float) -> dict[str, Any]:
    """Of the pairs whose scores differ by at least ``smallest``."""
    kept = np.abs(b.c_w - b.c_l) >= smallest
    average = np.concatenate([b.a_w[kept], b.a_l[kept]])
    x, y = ranks(average), ranks(np.concatenate([b.c_w[kept], b.c_l[kept]]))
    n, dx, dy = len(x), x - np.mean(x), y - np.mean(y)
    wins = np.mean(b.d[kept] > 0)
    return {
        "batch": name,
        "min_delta": smallest,
        "n_pairs": int(np.sum(kept)),
        "pwa_strict": wins,
        "pwa_ties_half": wins + np.mean(b.d[kept] == 0) / 2,
        "ranking_accuracy_sum_logp": np.mean((b.s_w - b.s_l)[kept] > 0),
        "dpo_reward_accuracy": np.mean(b.h[kept] > 0),
        "spearman_eq10_on_average_ranks": 1 - 6 * np.sum((x - y) ** 2) / (n * (n**2 - 1)),
        "spearman_pearson_on_average_ranks": np.sum(dx * dy) / np.sqrt(np.sum(dx**2) * np.sum(dy**2)),
    }


def root(increasing: Callable[[Numbers], Numbers], low: Numbers, high: Numbers) -> Numbers:
    """Where each entry of an increasing function is 0, by halving the interval until it is one number."""
    for _ in range(200):
        middle = (low + high) / 2
        below = increasing(middle) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def optimum(margins: Numbers, gamma0: float, tau: float) -> Numbers:
    """tau·log(gamma_i/gamma0) + gamma0·sigma(gamma_i − m_i) is the same for all i, and the mean of gamma is gamma0.

    With the code's guard of the logarithm, which moves the tenth digit.
    """
    count = len(margins)
    guard = 1e-10 * count

    def at(level: Numbers) -> Numbers:
        return root(
            lambda gamma: tau * np.log(gamma / gamma0 + guard) + gamma0 * sigma(gamma - margins) - level,
            np.full(count, 1e-9),
            np.full(count, gamma0 * count),
        )

    return at(root(lambda level: np.mean(at(level)) - gamma0, np.array(-50.0), np.array(50.0)))


def solver(gamma0: float, tau: float) -> dict[str, Any]:
    margins = np.array([-5.0, -0.5, 0.0, 0.25, 3.0, 12.0])
    return {
        "reward_margin": margins.tolist(),
        "gamma0": gamma0,
        "tau": tau,
        "eta": min(0.5 / tau, 1.0),
        "gamma_19": descended(margins, gamma0, tau, 19).tolist(),
        "gamma_20": descended(margins, gamma0, tau, 20).tolist(),
        "gamma_fixed_point": optimum(margins, gamma0, tau).tolist(),
        "mean_gamma": gamma0,
    }


def extra() -> dict[str, Any]:
    return {
        "metrics": [metrics(name, BATCHES[name], smallest) for name in ("A", "B") for smallest in (0.0, 1.0)],
        "gamma_md": [solver(4.0, 10.0), solver(0.375, 10.0), solver(3.0, 3.0)],
    }
