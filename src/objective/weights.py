"""Weights: how much a pair counts, always detached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.objective.adaptive import require_spread
from src.objective.rewards import require_positive
from src.objective.targets import score_leads
from src.objective.types import MarginGroup, Needs, Scope

LARGEST_SCORE_GAP = 40.0
"""exp(40) ≈ 2e17, whose square still fits float32: beyond this gap the exponential weight grows no more. Published
scores lie at most 9 apart."""


@dataclass(frozen=True)
class Uniform:
    """weight = 1."""

    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.ones_like(group.margins)


@dataclass(frozen=True)
class ConstantWeight:
    """weight = ``value`` for every pair: how much the preference term counts beside the regularizer (ORPO Eq. 6, λ)."""

    value: float
    needs = Needs()

    def __post_init__(self) -> None:
        require_positive("value", self.value, "the preference term would vanish or be maximized")

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.full_like(group.margins, self.value)


@dataclass(frozen=True)
class ScoreGap:
    """weight_i = f(δ_i), δ = |s_w − s_l| the gap of the annotated scores (GapPO Eq. 6-8); [n].

    ``linear``: δ (Eq. 7); ``quadratic``: δ² and ``exponential``: exp(δ) − 1 (section 3.1). A pair without a gap counts
    nothing. ``normalized``: divided by the mean over the group (section 3.2 argues against it), so that a group's
    weights average 1, or stay 0 when no pair has a gap; over which pairs is not said: ``statistics``, see ``Scope``.
    """

    weighting: Literal["linear", "quadratic", "exponential"] = "linear"
    normalized: bool = False
    statistics: Scope = "window"

    def __post_init__(self) -> None:
        if self.normalized:
            require_spread(self.statistics, "normalized by itself a pair weighs 1; a mean needs at least 2 pairs")

    @property
    def needs(self) -> Needs:
        statistics = self.statistics if self.normalized else None
        return Needs(rejected=True, scores=True, statistics=statistics, spread=self.normalized)

    def __call__(self, group: MarginGroup) -> Tensor:
        weight = self.weigh(score_gaps(group))
        if self.normalized:
            # weights are never negative, so a mean of 0 means that all are 0: they stay so
            mean = weight.mean()
            weight = weight / torch.where(mean > 0, mean, torch.ones_like(mean))
        return weight.to(group.margins.dtype)

    def weigh(self, gap: Tensor) -> Tensor:
        """f(δ), [n]."""
        if self.weighting == "linear":
            return gap
        if self.weighting == "quadratic":
            return gap.square()
        return torch.expm1(gap.clamp(max=LARGEST_SCORE_GAP))


@dataclass(frozen=True)
class Untied:
    """1, but 0 for the pairs that ``offset=log`` drops: those whose chosen response scores no higher (ODPO); [n].

    The loss stays the mean over all pairs, as if the offset −∞ of a tie had been computed. ``offset``: the target's.
    """

    offset: Literal["log", "identity"] = "log"
    needs = Needs(rejected=True, scores=True)

    def __call__(self, group: MarginGroup) -> Tensor:
        if self.offset == "identity":
            return torch.ones_like(group.margins)
        return (score_leads(group) > 0).to(group.margins.dtype)


def score_gaps(group: MarginGroup) -> Tensor:
    """|s_w − s_l| of each pair, [n], in the unit of the score, in the more precise dtype of scores and log-probs."""
    return score_leads(group).abs()
