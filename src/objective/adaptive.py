"""AMaPO: a target margin that adapts to the statistics of the group of pairs, whole or with one component taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import MarginGroup, Needs, Scope

SMALLEST_DEVIATION = 1e-6
"""Below this standard deviation (nats per token; a share of the mean when that is above 1) z-scores are rounding
noise, so there is no margin."""

LARGEST_EXPONENT = 20.0
"""exp(20) already gives the pair weight 1 to 1e-9; larger exponents only make the loss value overflow."""

Ablation = Literal[
    "none",
    "without_zero",
    "without_exp",
    "without_z_norm",
    "without_adaptive_linear",
    "without_adaptive_eq8",
]
"""Rows of AMaPO Table 5; ``without_adaptive`` has two readings."""

NOT_IN_PAPER = {
    "without_zero": "the max of Eq. 9 and the first case of Eq. 10 both make margins 0, and the paper does not say "
    "which of them its ablation drops",
    "without_z_norm": "the paper prints no Eq. 9 without its z-score: μ_r would multiply a difference of rewards",
    "without_adaptive_linear": "the paper names this ablation without a formula; ours follows the released gate",
    "without_adaptive_eq8": "Eq. 8 with γ* = max(μ_r, 0) is the same formula in both",
}
"""Why an ablation goes with ``fidelity=released`` alone."""


def require_spread(statistics: Scope, because: str = "a standard deviation needs at least 2 pairs") -> None:
    """Raise ``UserError`` for a scope of so few pairs that there is nothing to compare."""
    if isinstance(statistics, int) and statistics < 2:
        raise UserError(f"statistics={statistics}: {because}; give a number of pairs above 1, 'forward' or 'window'")


@dataclass(frozen=True)
class Adaptive:
    """AMaPO's margin from batch statistics (AMaPO Eq. 8-11 and its released trainer), [n], in the unit of the reward.

    With d = margin/β, μ and σ (unbiased) over the group, z = (μ − d)/σ, r = βd and μ_r = βμ:

    * ``released``: 1[d < μ] · β · exp(z·μ), what the authors' code computes;
    * ``paper``: γ = max(z·μ_r, 0), then β · exp(γ) where γ > 0, else 0. For μ < 0 these are the pairs above the mean.

    ``ablation`` takes a component out (Table 5; the paper gives names, the formulas are the released code's or ours):

    * ``without_zero``: β · exp(z·μ) for every pair;
    * ``without_exp``: released 1[d < μ] · 2β · z·μ (a line left in the code; below 0 when μ is), paper max(z·μ_r, 0);
    * ``without_z_norm``: 1[d < μ] · β · exp(μ − d);
    * ``without_adaptive_linear``, neither exponential nor z-score: β · max(μ − d, 0);
    * ``without_adaptive_eq8``, Eq. 8 with the mean for its oracle: 1[r < μ_r] · max(μ_r, 0).

    A group of one, or one whose margins are all equal, gets no margin, whatever the ablation. The exponent is clamped
    (the gradient does not change, the loss value stays finite). ``statistics``: see ``Scope``.
    """

    beta: float
    fidelity: Literal["released", "paper"] = "released"
    statistics: Scope = "forward"
    ablation: Ablation = "none"

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the margin would vanish or change sign")
        require_spread(self.statistics)
        if self.fidelity == "paper" and self.ablation in NOT_IN_PAPER:
            raise UserError(
                f"ablation={self.ablation} with fidelity=paper: {NOT_IN_PAPER[self.ablation]}; "
                "write fidelity=released, or ablation=without_exp, which has a form of either kind"
            )

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics, spread=True)

    def __call__(self, group: MarginGroup) -> Tensor:
        gap, mean, deviation = self.measured(group)
        difficulty = self.difficulty(gap, mean, deviation)
        chosen = self.gate(gap, mean, difficulty) & has_spread(mean, deviation)
        margin = torch.where(chosen, self.scale(difficulty, mean), torch.zeros_like(gap))
        return margin.to(group.margins.dtype)

    def diagnostics(self, group: MarginGroup) -> dict[str, Tensor]:
        """``target/active``: 1 for pairs with a margin above 0; ``target/clamped``: for those whose exponent is cut."""
        gap, mean, deviation = self.measured(group)
        margin = self(group)
        active = margin > 0
        cut = active & self.exponential & (self.difficulty(gap, mean, deviation) > LARGEST_EXPONENT)
        return {"target/active": active.to(margin.dtype), "target/clamped": cut.to(margin.dtype)}

    @property
    def exponential(self) -> bool:
        return self.ablation in ("none", "without_zero", "without_z_norm")

    def measured(self, group: MarginGroup) -> tuple[Tensor, Tensor, Tensor]:
        """d, [n], and its μ and σ (scalars; σ of a single pair is 0), in float32 at least."""
        margins = group.margins
        gap = margins.to(torch.promote_types(margins.dtype, torch.float32)) / self.beta
        deviation = gap.std() if gap.shape[0] > 1 else gap.new_zeros(())
        return gap, gap.mean(), deviation

    def difficulty(self, gap: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """How far below the mean each pair is, [n], in the measure that is then scaled."""
        if self.ablation in ("without_z_norm", "without_adaptive_linear"):
            return mean - gap
        # where there is no spread the margin is 0 anyway; the clamp only keeps what is dropped there finite
        z = (mean - gap) / deviation.clamp(min=SMALLEST_DEVIATION)
        return z * mean * (self.beta if self.fidelity == "paper" else 1.0)

    def gate(self, gap: Tensor, mean: Tensor, difficulty: Tensor) -> Tensor:
        """Which pairs get a margin, [n]."""
        if self.ablation == "without_zero":
            return torch.ones_like(gap, dtype=torch.bool)
        return difficulty > 0 if self.fidelity == "paper" else gap < mean

    def scale(self, difficulty: Tensor, mean: Tensor) -> Tensor:
        """Margins of the pairs that get one, [n]."""
        if self.exponential:
            return self.beta * torch.exp(difficulty.clamp(max=LARGEST_EXPONENT))
        if self.ablation == "without_exp":
            return difficulty if self.fidelity == "paper" else 2 * self.beta * difficulty
        if self.ablation == "without_adaptive_linear":
            return self.beta * difficulty
        return (self.beta * mean.clamp(min=0)).expand_as(difficulty)


def has_spread(mean: Tensor, deviation: Tensor) -> Tensor:
    """Whether the group's deviation is more than what rounding leaves of equal margins."""
    return deviation >= SMALLEST_DEVIATION * mean.abs().clamp(min=1)
