"""Each instruction's part in the length-controlled win rate, so that its uncertainty can be drawn again.

The win rate is the mean of p_i = sigmoid(x_i0 theta), the regression's preference at equal lengths, and theta is itself
fitted to the preferences. The p_i alone differ by the instructions' difficulty and hardly at all by what was answered:
resampled, they would give intervals many times too narrow. By the infinitesimal jackknife (Jaeckel 1972; Efron 1982)
the value of instruction i is

    p_i + n g' J^-1 w_i x_i (y_i - s_i),    g = mean of p (1 - p) x_0,    J = sum over all rows of w s (1 - s) x x'

less the mean of the second term, with preference y_i, fitted s_i at the actual lengths and weight w_i. The mean of the
values is the win rate, and their spread its own. Coefficients that the L1 penalty holds at 0 are left out; C, and what
lengths are divided by, are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from src.evaluation.alpaca.package import Fit

Floats = npt.NDArray[np.float64]
TARGET = "preference"


def linear_values(fitted: Sequence[float], answered: Sequence[bool], fit: Fit) -> Floats:
    """Values of the instructions, as shares. ``fitted``: p of each; ``answered``: whether each has a preference, in
    whose order the last rows of the regression's data are."""
    values, known = np.array(fitted, dtype=np.float64), np.array(answered, dtype=bool)
    data = fit.data
    x = data.drop(columns=[TARGET]).to_numpy(dtype=np.float64)
    y = data[TARGET].to_numpy(dtype=np.float64)
    weights = np.ones(len(y)) if fit.weights is None else np.asarray(fit.weights, dtype=np.float64)
    theta = np.asarray(fit.model.coef_[0], dtype=np.float64)
    active = theta != 0
    count = int(known.sum())
    if not active.any() or not count:
        return values
    s = 1.0 / (1.0 + np.exp(-(x @ theta)))
    x = x[:, active]
    information = (x * (weights * s * (1.0 - s))[:, None]).T @ x
    own = slice(len(y) - count, len(y))
    at_equal = equal_lengths(data)[own][:, active]
    slope = (values[known] * (1.0 - values[known])) @ at_equal / count
    moved = count * (weights[own] * (y[own] - s[own])) * (x[own] @ np.linalg.pinv(information) @ slope)
    values[known] += moved - moved.mean()
    return values


def equal_lengths(data: Any) -> Floats:
    """The regression's data as it would be at equal lengths."""
    plain = data.drop(columns=[TARGET])
    lengths = [name for name in plain.columns if "std_delta_len" in str(name)]
    at_equal: Floats = plain.assign(**dict.fromkeys(lengths, 0.0)).to_numpy(dtype=np.float64)
    return at_equal
