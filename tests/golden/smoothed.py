"""Losses that take a share of the labels to be wrong: conservative and unbiased, on DPO's and on SimPO's margins."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, Numbers, ell, vector


def conservative(right: Numbers, wrong: Numbers, share: float) -> Any:
    return np.mean((1 - share) * ell(right) + share * ell(wrong))


def unbiased(right: Numbers, wrong: Numbers, share: float) -> Any:
    return np.mean((1 - share) * ell(right) - share * ell(wrong)) / (1 - 2 * share)


def cdpo(b: Batch, c: Constants) -> Any:
    return conservative(c["beta"] * b.h, -c["beta"] * b.h, c["eps"])


def rdpo_unbiased(b: Batch, c: Constants) -> Any:
    return unbiased(c["beta"] * b.h, -c["beta"] * b.h, c["eps"])


def simpo_smoothed(b: Batch, c: Constants) -> Any:
    x = c["beta"] * (b.d - c["gamma_ratio"])
    return conservative(x, -x, c["eps"])


def rsimpo(b: Batch, c: Constants) -> Any:
    """gamma-PO Eq. 13: both orders of the pair are held against the margin."""
    return conservative(c["beta"] * (b.d - c["gamma_ratio"]), c["beta"] * (-b.d - c["gamma_ratio"]), c["eps"])


def rsimpo_unbiased(b: Batch, c: Constants) -> Any:
    return unbiased(c["beta"] * (b.d - c["gamma_ratio"]), c["beta"] * (-b.d - c["gamma_ratio"]), c["eps"])


def vectors() -> list[dict[str, Any]]:
    entries = []
    for tag, formula in (("cdpo", cdpo), ("rdpo_unbiased", rdpo_unbiased)):
        entries += [
            vector(tag, "A", formula, {"beta": 0.1, "eps": 0.1}),
            vector(tag, "B", formula, {"beta": 0.01, "eps": 0.3}),
        ]
    on_simpo = (("simpo_ls", simpo_smoothed), ("rsimpo_eq13", rsimpo), ("rsimpo_unbiased", rsimpo_unbiased))
    for tag, formula in on_simpo:
        entries += [
            vector(tag, "A", formula, {"beta": 2.0, "gamma_ratio": 0.5, "eps": 0.1}),
            vector(tag, "B", formula, {"beta": 2.5, "gamma_ratio": 0.1, "eps": 0.3}),
        ]
    return entries
