"""Stateless losses on log-ratios to a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, ell, vector


def dpo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * b.h))


def vectors() -> list[dict[str, Any]]:
    return [
        vector("dpo", "A", dpo, {"beta": 0.1}),
        vector("dpo", "B", dpo, {"beta": 0.01}),
    ]
