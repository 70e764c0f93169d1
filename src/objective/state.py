"""What parts with a state share: draws that a checkpoint can repeat, running statistics, refusals of constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.errors import UserError
from src.objective.types import Scope

INITIAL, HISTORY, KEPT = 1, 2, 3
"""What a draw is for; draws for different purposes are independent."""


def generator(seed: int, purpose: int, draws: int) -> np.random.Generator:
    """The generator of draw number ``draws``.

    A function of its arguments alone: every rank draws the same, and a checkpoint need only keep the number.
    """
    return np.random.Generator(np.random.PCG64([seed, purpose, draws]))


def on_cpu(values: Tensor) -> Tensor:
    """``values`` in float64 on the CPU, where statistics are taken; one synchronization with the accelerator."""
    return values.detach().to(dtype=torch.float64).cpu()


def running_statistics(values: Tensor, mean: float, std: float, decay: float) -> tuple[float, float]:
    """Exponential moving averages of the mean and the unbiased standard deviation of groups, with ``values`` [n] added.

    A group of one has no standard deviation, so it leaves both as they are.
    """
    if values.shape[0] < 2:
        return mean, std
    share = 1 - decay
    return decay * mean + share * values.mean().item(), decay * std + share * values.std().item()


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``UserError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name}={value} is unknown; choose one of: {', '.join(choices)}")


def require_decay(decay: float) -> None:
    """Raise ``UserError`` for a share of the past that leaves no room for the past or for the present."""
    if not 0 < decay < 1:
        raise UserError(
            f"decay={decay}: it is the share of the past in a running average, and at 0 nothing would run while at 1 "
            "no batch would count; give a value between 0 and 1, such as 0.9"
        )


def require_seed(seed: int) -> None:
    """Raise ``UserError`` for a seed that no generator takes."""
    if seed < 0:
        raise UserError(f"seed={seed}: generators take no negative seed; give 0 or more")


def require_pairs(statistics: Scope) -> None:
    """Raise ``UserError`` for a scope of no pairs."""
    if isinstance(statistics, int) and statistics < 1:
        raise UserError(
            f"statistics={statistics}: a group needs at least 1 pair; give a number of pairs, 'forward' or 'window'"
        )
