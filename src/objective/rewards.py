"""Rewards: the scalar a response earns, in nats × β."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from src.errors import UserError
from src.objective.types import Needs, ResponseLogProbs


def require_positive(name: str, value: float, because: str) -> None:
    """Raise ``UserError`` unless ``value`` > 0."""
    if not value > 0:
        raise UserError(f"{name}={value}: {because}; give a value above 0")


@dataclass(frozen=True)
class SummedLogProb:
    """r(y) = β · log π(y|x), summed over tokens (CPO, SLiC)."""

    beta: float
    needs = Needs(rejected=True)

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the reward would vanish or change sign")

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        return self.beta * policy.summed


@dataclass(frozen=True)
class AverageLogProb:
    """r(y) = β/|y| · log π(y|x), length-normalized (SimPO Eq. 4; AMaPO, γ-PO, GapPO, GAPO build on it)."""

    beta: float
    needs = Needs(rejected=True)

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the reward would vanish or change sign")

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        return self.beta * policy.average


@dataclass(frozen=True)
class ReferenceLogRatio:
    """r(y) = β · log π(y|x)/π_ref(y|x), summed over tokens, or averaged when ``average`` (DPO Eq. 5)."""

    beta: float
    average: bool = False
    needs = Needs(rejected=True, reference=True)

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the reward would vanish or change sign")

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor:
        if reference is None:
            raise ValueError("a reference log-ratio needs reference log-probs")
        if self.average:
            return self.beta * (policy.average - reference.average)
        return self.beta * (policy.summed - reference.summed)
