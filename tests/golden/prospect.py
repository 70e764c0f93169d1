"""Losses of single responses against a reference point."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, Numbers, fixed, sigma, vector

DRIFT_A = [2.4, -0.3, 1.1, 0.0, -1.6, 3.2, 0.7, 0.5]
DRIFT_B = [-2.0, 0.4, -0.6, 1.0, -3.1]
"""Log-ratios of mismatched responses, one a pair: of mean above and below 0."""


def prospect(b: Batch, c: Constants, z_w: Numbers, z_l: Numbers) -> Any:
    """KTO Eq. 8 over the 2n responses of n pairs."""
    gain = c["lambda_w"] * (1 - sigma(c["beta"] * (b.s_w - b.q_w - fixed(z_w))))
    loss = c["lambda_l"] * (1 - sigma(c["beta"] * (fixed(z_l) - (b.s_l - b.q_l))))
    return np.mean(np.concatenate([gain, loss]))


def kto_paired(b: Batch, c: Constants) -> Any:
    z = np.maximum(np.mean(c["kl_logratios"]), 0)
    return prospect(b, c, z, z)


def kto_pair_swapped(b: Batch, c: Constants) -> Any:
    of_chosen, of_rejected = (np.maximum(fixed(np.mean(ratio)), 0) for ratio in (b.s_w - b.q_w, b.s_l - b.q_l))
    return prospect(b, {"lambda_w": 1, "lambda_l": 1} | dict(c), of_rejected, of_chosen)


def vectors() -> list[dict[str, Any]]:
    even = {"lambda_w": 1.0, "lambda_l": 1.0}
    return [
        vector("kto_paired", "A", kto_paired, {"beta": 0.1, **even, "kl_logratios": DRIFT_A}),
        vector("kto_paired", "B", kto_paired, {"beta": 0.05, **even, "kl_logratios": DRIFT_B}),
        vector(
            "kto_paired", "B", kto_paired, {"beta": 0.3, "lambda_w": 1.33, "lambda_l": 0.8, "kl_logratios": DRIFT_A[:5]}
        ),
        vector("kto_pair_swapped", "A", kto_pair_swapped, {"beta": 0.1}),
        vector("kto_pair_swapped", "B", kto_pair_swapped, {"beta": 0.05}),
    ]
