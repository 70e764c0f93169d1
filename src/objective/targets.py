"""Targets: the margin that a pair must clear, always detached, in the unit of the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.objective.types import MarginGroup, Needs


@dataclass(frozen=True)
class NoMargin:
    """target = 0: the chosen response need only be ahead (DPO)."""

    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.zeros_like(group.margins)


@dataclass(frozen=True)
class Constant:
    """target = β · γ/β-ratio, the same for every pair (SimPO Eq. 6; the ratio is SimPO's ``gamma_beta_ratio``)."""

    beta: float
    gamma_beta_ratio: float
    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.full_like(group.margins, self.beta * self.gamma_beta_ratio)
