"""Rewards: the scalar a response earns, in nats × β."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.types import Needs, ResponseLogProbs


def require_positive(name: str, value: float, because: str) -> None:
    """Raise ``UserError`` unless ``value`` > 0."""
    if not value > 0:
        raise UserError(f"{name}={value}: {because}; give a value above 0")


LARGEST_LOG_ODDS_AVERAGE = -1e-6
"""Nats per token; above it log(1 − p) leaves float32's reach (p rounds to 1), so log-odds stop growing there."""

LARGEST_SHAPE_EXPONENT = 30.0
"""exp(30) ≈ 1e13: the square of a gradient that large, which its norm takes, still fits float32. At α = 0.5 it is
reached at −60 nats per token."""

SMALLEST_ALPHA = 1e-18
"""Below this |α| the shape differs from the identity by less than float64 resolves (and α itself may round to 0)."""


@dataclass(frozen=True)
class Scaled:
    """What every reward has: its scale β > 0."""

    beta: float

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the reward would vanish or change sign")


@dataclass(frozen=True)
class SummedLogProb(Scaled):
    """r(y) = β · log π(y|x), summed over tokens (CPO, SLiC)."""

    needs = Needs(rejected=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        return self.beta * policy.summed


@dataclass(frozen=True)
class AverageLogProb(Scaled):
    """r(y) = β/|y| · log π(y|x), length-normalized (SimPO Eq. 4; AMaPO, γ-PO, GapPO, GAPO build on it)."""

    needs = Needs(rejected=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        return self.beta * policy.average


@dataclass(frozen=True)
class ReferenceLogRatio(Scaled):
    """r(y) = β · log π(y|x)/π_ref(y|x), summed over tokens, or averaged when ``average`` (DPO Eq. 5)."""

    average: bool = False
    needs = Needs(rejected=True, reference=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        if reference is None:
            raise ValueError("a reference log-ratio needs reference log-probs")
        if self.average:
            return self.beta * (policy.average - reference.average)
        return self.beta * (policy.summed - reference.summed)


@dataclass(frozen=True)
class LogOdds(Scaled):
    """r(y) = β · log(p/(1 − p)), p = exp(log π(y|x)/|y|), the odds of an average token (ORPO Eq. 4 and 7; there β = 1).

    With a = log p: a − log(1 − eᵃ), whose slope is 1/(1 − p). In probabilities this would underflow below −87 nats and
    divide by 0 at p = 1. Above ``LARGEST_LOG_ODDS_AVERAGE`` (an empty response has a = 0) the reward is constant.
    """

    beta: float = 1.0
    needs = Needs(rejected=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        average = policy.average.clamp(max=LARGEST_LOG_ODDS_AVERAGE)
        # 1 − p as −expm1 keeps every digit near p = 1; far from there the log is ~0 beside a: one branch is enough.
        return self.beta * (average - torch.log(-torch.expm1(average)))


@dataclass(frozen=True)
class AlphaShaped(Scaled):
    """r(y) = β · (1 − p^−α)/α, p = exp(log π(y|x)/|y|), a shaped average log-prob (AlphaPO; TRL's form, its sign of α).

    α > 0 moves improbable responses more, α < 0 less; α → 0 is ``AverageLogProb``. See ``alpha_shape``.
    """

    alpha: float
    needs = Needs(rejected=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        return self.beta * alpha_shape(policy.average, self.alpha)


@dataclass(frozen=True)
class AlphaShapedTokens(Scaled):
    """r(y) = β/|y| · Σ_t (π_t^α − 1)/α, every token shaped by itself (AlphaPO as GapPO section 2.3 prints it).

    Neither the place nor the sign of α is that of ``AlphaShaped``: there the average is shaped, here shapes are
    averaged, and α > 0 mutes improbable tokens (slope π_t^α). α → 0 is ``AverageLogProb``. A token that is not
    supervised has log-prob 0 and so shape 0.
    """

    alpha: float
    needs = Needs(rejected=True, per_token=True)

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        if policy.per_token is None:
            raise ValueError("a reward of shaped tokens needs log-probs token by token")
        shaped = alpha_shape(policy.per_token, -self.alpha).sum(-1)
        return self.beta * shaped / policy.tokens.clamp(min=1)


def alpha_shape(log_probs: Tensor, alpha: float) -> Tensor:
    """(1 − exp(−α·a))/α of log-probs a, elementwise; its slope is exp(−α·a), and α → 0 gives a.

    Beyond ``LARGEST_SHAPE_EXPONENT`` the curve goes on as its tangent: loss and gradient stay finite, and a response
    that improbable is still pulled, which a clamp (slope 0) would end.
    """
    if abs(alpha) < SMALLEST_ALPHA:
        return log_probs
    exponent = -alpha * log_probs
    within = torch.expm1(exponent.clamp(max=LARGEST_SHAPE_EXPONENT))
    beyond = torch.relu(exponent - LARGEST_SHAPE_EXPONENT) * math.exp(LARGEST_SHAPE_EXPONENT)
    return -(within + beyond) / alpha
