"""Temperatures: by what reward margin and target of a pair are multiplied, always detached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.objective.types import MarginGroup, Needs


@dataclass(frozen=True)
class Fixed:
    """temperature = 1: β is what the reward says."""

    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.ones_like(group.margins)
