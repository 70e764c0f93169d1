"""Links: the loss of one pair from its reward margin and its target margin.

``of_margin`` marks those that look at rewards through their margin alone, so that a pair's gradient is a number times
that of its margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import UserError
from src.objective.types import Needs, PairRewards

SOFTPLUS_THRESHOLD = 40.0
"""Where softplus goes over into the identity: they differ by 4e-18 there, and by 2e-9 at the default, 20."""

Flipped = Literal["complement", "must_clear"]
"""What the margin of a pair is, were its label wrong: ``complement`` −(margin − target), the margin of the other label
against the target that this one leaves (conservative DPO, SimPO's trainer); ``must_clear`` −margin − target, so that
the other order has to clear the target as well (γ-PO Eq. 13). Without a target they are the same."""


def logistic_loss(x: Tensor) -> Tensor:
    """ℓ(x) = −log σ(x), [n], as softplus."""
    return F.softplus(-x, threshold=SOFTPLUS_THRESHOLD)


def flipped_excess(margins: Tensor, target: Tensor, flipped: Flipped) -> Tensor:
    """By how much a pair clears its target were its label wrong, [n]; see ``Flipped``."""
    return target - margins if flipped == "complement" else -margins - target


@dataclass(frozen=True)
class Logistic:
    """ℓ(x) = −log σ(x), x = margin − target, as softplus; [n], in nats (DPO Eq. 7, SimPO Eq. 6).

    With ``label_smoothing`` ε: (1−ε)·ℓ(x) + ε·ℓ(x′), x′ as ``flipped`` says. That is conservative DPO (γ-PO Eq. 5,
    where it is called robust), and γ-PO Eq. 13 with ``must_clear``. The gradient turns round beyond x = log((1−ε)/ε).
    """

    label_smoothing: float = 0.0
    flipped: Flipped = "complement"
    needs = Needs(rejected=True)
    of_margin = True

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing={self.label_smoothing}: it is the share of labels taken to be wrong; "
                "give a value from 0 to below 0.5"
            )

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        kept = logistic_loss(rewards.margins - target)
        if self.label_smoothing == 0:
            return kept
        wrong = logistic_loss(flipped_excess(rewards.margins, target, self.flipped))
        return (1 - self.label_smoothing) * kept + self.label_smoothing * wrong


@dataclass(frozen=True)
class UnbiasedLogistic:
    """[(1−ε)·ℓ(x) − ε·ℓ(x′)] / (1−2ε), ℓ(x) = −log σ(x), x = margin − target (Chowdhury et al. 2024); [n], in nats.

    Over labels of which a share ε = ``label_smoothing`` is wrong, its mean is ℓ(x) on the right labels. x′ as
    ``flipped`` says (``must_clear`` takes the margins of γ-PO Eq. 13). It has no lower bound: the pull never falls
    below ε/(1−2ε), however far the pair is ahead.
    """

    label_smoothing: float
    flipped: Flipped = "complement"
    needs = Needs(rejected=True)
    of_margin = True

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing={self.label_smoothing}: the unbiased loss divides by 1 - 2 * label_smoothing, the "
                "information that is left in the labels: none at 0.5, and beyond it the labels say the opposite; "
                "give a value from 0 to below 0.5"
            )

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        kept = logistic_loss(rewards.margins - target)
        wrong = logistic_loss(flipped_excess(rewards.margins, target, self.flipped))
        share = self.label_smoothing
        return ((1 - share) * kept - share * wrong) / (1 - 2 * share)


@dataclass(frozen=True)
class Squared:
    """(margin − target)², [n]: a pair beyond its target is pulled back to it (IPO Eq. 17; GapPO Eq. 4)."""

    needs = Needs(rejected=True)
    of_margin = True

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        return (rewards.margins - target).square()


@dataclass(frozen=True)
class Hinge:
    """max(0, target − margin), [n]; no gradient at the kink or beyond it (SLiC, Zhao et al. 2023; AMaPO B.1)."""

    needs = Needs(rejected=True)
    of_margin = True

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        return torch.relu(target - rewards.margins)


@dataclass(frozen=True)
class Focal:
    """−p^g · log p, p = σ(margin − target), g = ``exponent`` (FocalPO, Liu et al. 2025; AMaPO B.1); [n], in nats.

    g = 0 is ``Logistic``. ``factor=gradient`` differentiates the factor too: the pull p^g·(1−p)·(1 + g·log p) turns
    against pairs with p < exp(−1/g), so from p = 1/2, where training starts, g must be below 1/ln 2 ≈ 1.44.
    ``stop_gradient`` takes the factor as a constant, and the pull p^g·(1−p) never turns.
    """

    exponent: float
    factor: Literal["gradient", "stop_gradient"] = "gradient"
    needs = Needs(rejected=True)
    of_margin = True

    def __post_init__(self) -> None:
        if self.exponent < 0:
            raise UserError(
                f"exponent={self.exponent}: below 0 the factor p^exponent is unbounded for misranked pairs; "
                "give 0 (the logistic loss) or above, such as 0.05"
            )

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        surprise = logistic_loss(rewards.margins - target)
        factor = torch.exp(-self.exponent * surprise)
        return (factor if self.factor == "gradient" else factor.detach()) * surprise


@dataclass(frozen=True)
class Linear:
    """target − margin, [n]: every pair is pulled alike; its weight alone says how hard (GAPO's GradNorm-Reweight)."""

    needs = Needs(rejected=True)
    of_margin = True

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        return target - rewards.margins


@dataclass(frozen=True)
class NoPreference:
    """0 for every pair: the loss is the regularizer alone (supervised fine-tuning), and rejected is never computed."""

    needs = Needs()

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        return torch.zeros_like(rewards.chosen)
