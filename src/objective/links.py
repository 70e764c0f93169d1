"""Links: the loss of one pair from its reward margin and its target margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import UserError
from src.objective.types import Needs, PairRewards


@dataclass(frozen=True)
class Logistic:
    """−log σ(margin − target), as softplus; with ``label_smoothing`` ε: (1−ε)·ℓ(x) + ε·ℓ(−x), x = margin − target.

    The smoothed form is conservative DPO's (methods that name it robust mean this one or its unbiased cousin).
    """

    label_smoothing: float = 0.0
    needs = Needs(rejected=True)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing={self.label_smoothing}: it is the share of labels taken to be wrong; "
                "give a value from 0 to below 0.5"
            )

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        x = rewards.margins - target
        if self.label_smoothing == 0:
            return F.softplus(-x)
        return (1 - self.label_smoothing) * F.softplus(-x) + self.label_smoothing * F.softplus(x)


@dataclass(frozen=True)
class NoPreference:
    """0 for every pair: the loss is the regularizer alone (supervised fine-tuning), and rejected is never computed."""

    needs = Needs()

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        return torch.zeros_like(rewards.chosen)
