"""Weights: how much a pair counts, always detached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.objective.types import MarginGroup, Needs


@dataclass(frozen=True)
class Uniform:
    """weight = 1."""

    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.ones_like(group.margins)
