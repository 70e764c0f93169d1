"""Reductions: from the weighted losses of a group of pairs to one number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.objective.adaptive import require_spread
from src.objective.rewards import require_positive
from src.objective.types import Needs, Scope


@dataclass(frozen=True)
class Mean:
    """mean_i loss_i: over the window this is the mean over the global batch, however the window was cut."""

    needs = Needs()

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def linearize(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(losses), torch.zeros_like(losses)


@dataclass(frozen=True)
class LogMeanExp:
    """−β' · log mean_i exp(−loss_i/β') over each group (Dr.DPO, Wu et al. 2024, Eq. 9).

    Pairs of large loss count exponentially less; β' → ∞ is the mean. The released code takes the pairs of one forward
    on one device (``statistics=forward``); over ranks that is all pairs of the forward. The window's loss is the mean
    of its groups' values, each counting as many times as it has pairs. ``statistics``: see ``Scope``.
    """

    beta_prime: float
    statistics: Scope = "forward"

    def __post_init__(self) -> None:
        require_positive("beta_prime", self.beta_prime, "1/beta_prime is how fast pairs of large loss fade")
        require_spread(
            self.statistics, "the log-mean-exp of 1 pair is its loss, which is DPO; it needs at least 2 pairs"
        )

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics, spread=True)

    def __call__(self, losses: Tensor) -> Tensor:
        # A log-sum-exp around the smallest loss; as log1p of expm1, its distance from the mean survives β' → ∞, where
        # log n and logsumexp would cancel and β' blow up what rounding leaves.
        smallest = losses.detach().amin()
        excess = torch.expm1((smallest - losses) / self.beta_prime).mean()
        return smallest - self.beta_prime * torch.log1p(excess)

    def linearize(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = losses.shape[0] * torch.softmax(-losses / self.beta_prime, 0)
        return coefficients, (self(losses) - (coefficients * losses).mean()).expand_as(losses)
