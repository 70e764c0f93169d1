"""Reductions: from per-pair losses to this forward's share of the window's loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from src.objective.types import Needs, WindowTotals


@dataclass(frozen=True)
class Mean:
    """Σ weight_i · loss_i over this forward, divided by the pairs of the whole window.

    Summed over the window's forwards this is the mean over the global batch, however the window was cut.
    """

    needs = Needs()

    def __call__(self, losses: Tensor, weights: Tensor, totals: WindowTotals) -> Tensor:
        return (weights * losses).sum() / totals.pairs
