"""AMaPO: a target margin that adapts to the statistics of the group of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import MarginGroup, Needs, Scope

SMALLEST_DEVIATION = 1e-6
"""Below this standard deviation (nats per token) z-scores are rounding noise, so the margin is 0."""

LARGEST_EXPONENT = 20.0
"""exp(20) already gives the pair weight 1 to 1e-9; larger exponents only make the loss value overflow."""


def require_spread(statistics: Scope) -> None:
    """Raise ``UserError`` for a scope of so few pairs that they have no standard deviation."""
    if isinstance(statistics, int) and statistics < 2:
        raise UserError(
            f"statistics={statistics}: a standard deviation needs at least 2 pairs; "
            "give a number of pairs above 1, 'forward' or 'window'"
        )


@dataclass(frozen=True)
class Adaptive:
    """AMaPO's margin from batch statistics (AMaPO Eq. 9-11 and its released trainer).

    With d = margin/β, μ and σ (unbiased) over the group and z = (μ − d)/σ:

    * ``released``: 1[d < μ] · β · exp(z·μ), what the authors' code computes;
    * ``paper``: γ = max(z·βμ, 0), then β · exp(γ) where γ > 0, else 0. For μ < 0 this favours the pairs above the mean.

    A group of one, or one whose margins are all equal, gets no margin. The exponent is clamped (the gradient does
    not change, the loss value stays finite). ``statistics``: see ``Scope``.
    """

    beta: float
    fidelity: Literal["released", "paper"] = "released"
    statistics: Scope = "forward"

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the margin would vanish or change sign")
        require_spread(self.statistics)

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics)

    def __call__(self, group: MarginGroup) -> Tensor:
        gap = group.margins / self.beta
        if gap.shape[0] < 2:
            return torch.zeros_like(gap)
        mean, deviation = gap.mean(), gap.std()
        z = (mean - gap) / deviation.clamp(min=SMALLEST_DEVIATION)
        if self.fidelity == "released":
            exponent, gate = z * mean, gap < mean
        else:
            exponent = z * self.beta * mean
            gate = exponent > 0
        margin = self.beta * torch.exp(exponent.clamp(max=LARGEST_EXPONENT))
        return torch.where(gate & (deviation >= SMALLEST_DEVIATION), margin, torch.zeros_like(margin))
