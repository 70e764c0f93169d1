"""Targets: the margin that a pair must clear, always detached, in the unit of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import MarginGroup, Needs


@dataclass(frozen=True)
class NoMargin:
    """target = 0: the chosen response need only be ahead (DPO)."""

    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.zeros_like(group.margins)


@dataclass(frozen=True)
class Constant:
    """target = β · γ/β-ratio, the same for every pair (SimPO Eq. 6; the ratio is SimPO's ``gamma_beta_ratio``)."""

    beta: float
    gamma_beta_ratio: float
    needs = Needs()

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.full_like(group.margins, self.beta * self.gamma_beta_ratio)


@dataclass(frozen=True)
class FixedMargin:
    """target = ``value`` for every pair, in the unit of the reward (δ of SLiC, Zhao et al. 2023; AMaPO B.1)."""

    value: float
    needs = Needs()

    def __post_init__(self) -> None:
        if self.value < 0:
            raise UserError(
                f"value={self.value}: with a margin below 0 the rejected response may lead; give 0 or above"
            )

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.full_like(group.margins, self.value)


@dataclass(frozen=True)
class InverseTemperature:
    """target = 1/(2τ) for every pair, in nats of log-ratio: where IPO's square is 0 (IPO Eq. 17; GapPO Eq. 4)."""

    tau: float
    needs = Needs()

    def __post_init__(self) -> None:
        require_positive("tau", self.tau, "the target is 1/(2 tau), which must be a margin that the chosen leads by")

    def __call__(self, group: MarginGroup) -> Tensor:
        return torch.full_like(group.margins, 1 / (2 * self.tau))


@dataclass(frozen=True)
class LengthPenalty:
    """target = −sign·α·(|y_w| − |y_l|), in nats × β: lengths are in tokens, α per token (R-DPO, Park et al.).

    So the loss is ℓ(βh + sign·α·(|y_w| − |y_l|)). ``sign`` 1: a longer chosen response has less to clear, as follows
    from a reward r − α·|y| under KL control; −1 is what γ-PO Table 6 prints, and rewards length.
    """

    alpha: float
    sign: Literal[1, -1] = 1
    needs = Needs(rejected=True)

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise UserError(
                f"alpha={self.alpha}: it is how much a token costs, and its direction is sign's; give 0 or above"
            )

    def __call__(self, group: MarginGroup) -> Tensor:
        policy = group.inputs.policy
        longer = policy.chosen.tokens - policy.rejected.tokens
        return (-self.sign * self.alpha * longer).to(group.margins.dtype)


@dataclass(frozen=True)
class ScoreOffset:
    """target = α·f(s_w − s_l) of the annotated scores, in nats × β (ODPO, Amini et al. 2024; AMaPO Table 6).

    ``offset`` is f, ``log`` or ``identity``. The logarithm drops the pairs whose chosen response scores no higher: the
    offset of a tie is −∞, where loss and gradient are 0, and a negative gap has none. Such a pair gets target 0 here
    and weight 0 from ``weights.Untied``. Under ``identity`` every pair stays; a negative gap lets the rejected lead.
    """

    alpha: float
    offset: Literal["log", "identity"] = "log"
    needs = Needs(rejected=True, scores=True)

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise UserError(
                f"alpha={self.alpha}: better pairs would have less to clear; give 0 (no offset) or above, such as 1"
            )

    def __call__(self, group: MarginGroup) -> Tensor:
        lead = score_leads(group)
        if self.offset == "log":
            lead = torch.where(lead > 0, lead, torch.ones_like(lead)).log()
        return (self.alpha * lead).to(group.margins.dtype)


def score_leads(group: MarginGroup) -> Tensor:
    """s_w − s_l of each pair, [n], in the unit of the score, in the more precise dtype of scores and log-probs."""
    chosen, rejected = group.inputs.chosen_scores, group.inputs.rejected_scores
    if chosen is None or rejected is None:
        raise ValueError("an offset or a weight by scores needs scores")
    dtype = torch.promote_types(chosen.dtype, group.margins.dtype)
    return chosen.to(dtype) - rejected.to(dtype)
