"""Stateless losses on log-probs without a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, ell, fixed, vector


def simpo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * (b.d - c["gamma_ratio"])))


def amapo(b: Batch, c: Constants) -> Any:
    beta, d = c["beta"], fixed(b.d)
    mean, deviation = np.mean(d), np.std(d, ddof=1)
    z = (mean - d) / deviation
    if c["variant"] == "code":
        margin = np.where(d < mean, beta * np.exp(z * mean), 0)
    else:
        gamma = np.maximum(z * beta * mean, 0)
        margin = np.where(gamma > 0, beta * np.exp(gamma), 0)
    return np.mean(ell(beta * b.d - margin))


def vectors() -> list[dict[str, Any]]:
    return [
        vector("simpo", "A", simpo, {"beta": 2.0, "gamma_ratio": 0.5}),
        vector("simpo", "B", simpo, {"beta": 2.5, "gamma_ratio": 0.1}),
        vector("simpo_zero_length", "Z", simpo, {"beta": 2.0, "gamma_ratio": 0.5}),
        vector("amapo_code", "A", amapo, {"beta": 3.0, "variant": "code"}),
        vector("amapo_code", "B", amapo, {"beta": 2.0, "variant": "code"}),
        vector("amapo_paper", "A", amapo, {"beta": 3.0, "variant": "paper"}),
        vector("amapo_paper", "B", amapo, {"beta": 2.0, "variant": "paper"}),
        vector("amapo_zero_length", "Z", amapo, {"beta": 2.0, "variant": "code"}),
    ]
