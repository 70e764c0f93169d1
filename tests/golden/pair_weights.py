"""Losses in which some pairs count more than others: by their scores, or by the loss itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, ell, vector


def gappo(b: Batch, c: Constants) -> Any:
    gap = np.abs(b.c_w - b.c_l)
    kept = gap >= c.get("min_delta", 0)
    weight = {"linear": gap, "quadratic": gap**2, "exponential": np.exp(gap) - 1, "hard": 1.0 * kept}[c["weight"]]
    if c.get("normalize", False):
        weight = weight / np.mean(weight)
    return np.mean(weight * ell(c["beta"] * (b.d - c["gamma"])))


def dr_dpo(b: Batch, c: Constants) -> Any:
    return -c["beta_prime"] * np.log(np.mean(np.exp(-ell(c["beta"] * b.h) / c["beta_prime"])))


def vectors() -> list[dict[str, Any]]:
    simpo = {"beta": 1.0, "gamma": 0.5}
    return [
        vector("gappo", "A", gappo, simpo | {"weight": "linear"}),
        vector("gappo", "B", gappo, {"beta": 2.0, "gamma": 0.3, "weight": "linear"}),
        vector("gappo_zero_length", "Z", gappo, simpo | {"weight": "linear"}),
        vector("gappo_normalized", "A", gappo, simpo | {"weight": "linear", "normalize": True}),
        vector("gappo_normalized", "B", gappo, simpo | {"weight": "exponential", "normalize": True}),
        vector("gappo_quadratic", "A", gappo, simpo | {"weight": "quadratic"}),
        vector("gappo_exponential", "A", gappo, simpo | {"weight": "exponential"}),
        vector("gappo_hard_filter", "A", gappo, simpo | {"weight": "hard", "min_delta": 3.0}),
        vector("gappo_hard_filter", "B", gappo, simpo | {"weight": "hard", "min_delta": 1.0}),
        vector("dr_dpo", "A", dr_dpo, {"beta": 0.1, "beta_prime": 1.0}),
        vector("dr_dpo", "B", dr_dpo, {"beta": 0.1, "beta_prime": 0.5}),
    ]
