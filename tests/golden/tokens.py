"""Losses of the chosen responses alone, and AlphaPO on log-probs of single tokens beside its form on sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import BATCHES, Numbers, ell

TOKENS = [
    {"w": [-0.75, -0.1, -2.5, -1.0], "l": [-3.25, -0.6]},
    {"w": [-1.4], "l": [-0.9, -0.2, -0.05]},
    {"w": [-0.3, -5.5], "l": [-1.1, -1.3, -0.7, -0.7, -2.0]},
]


def supervised() -> list[dict[str, Any]]:
    return [
        {
            "batch": name,
            "token_mean": -np.sum(b.s_w) / np.sum(b.n_w),
            "seq_mean": -np.mean(b.a_w),
            "seq_sum": -np.mean(b.s_w),
        }
        for name, b in BATCHES.items()
    ]


def alphapo(beta: float, alpha: float, gamma: float) -> dict[str, Any]:
    """GapPO prints mean (p_t^alpha - 1)/alpha; AlphaPO has (1 - p^-alpha)/alpha of the geometric mean p."""

    def printed(side: str) -> Numbers:
        return np.array([np.mean((np.exp(row[side]) ** alpha - 1) / alpha) for row in TOKENS])

    def sequence(side: str) -> Numbers:
        return np.array([(1 - np.exp(np.mean(row[side])) ** -alpha) / alpha for row in TOKENS])

    found: dict[str, Any] = {"tokens": TOKENS, "beta": beta, "alpha": alpha, "gamma": gamma}
    for suffix, reward in (("", printed), ("_seq_form", sequence)):
        chosen, rejected = reward("w"), reward("l")
        found[f"r_w{suffix}"], found[f"r_l{suffix}"] = chosen.tolist(), rejected.tolist()
        found[f"loss{suffix}"] = ell(beta * (chosen - rejected - gamma)).tolist()
    return found


def extra() -> dict[str, Any]:
    return {
        "sft": supervised(),
        "alphapo_gappo_token_form": [alphapo(1.0, 0.5, 0.5), alphapo(2.5, 0.25, 0.1), alphapo(2.0, -0.4, 0.3)],
    }
