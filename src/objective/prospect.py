"""KTO on pairs (Ethayarajh et al. 2024): each response is held against a reference point, not against the other one.

The reference point z ≥ 0 estimates KL(π ‖ π_ref): how far the policy has moved on responses that are nobody's
preference. It is in the unit of the reward, so β · z where the paper writes z, and always detached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.objective.rewards import require_positive
from src.objective.types import MarginGroup, Needs, PairRewards, Scope


@dataclass(frozen=True)
class Prospect:
    """[λ_w · (1 − σ(r_w − t_w)) + λ_l · (1 − σ(t_l − r_l))] / 2 (KTO Eq. 8 on both responses of a pair).

    The target is (t_w, t_l), [n, 2], or one point for both, [n]. The half makes the mean over pairs that over
    responses. AMaPO B.1 and γ-PO Table 6 print the second term as +λ_l · σ(t_l − r_l), by which minimizing would raise
    the rejected reward; here, as in the authors' code, it lowers it. Pairs hold as many chosen as rejected
    responses, so λ_w = λ_l = 1 needs no correction for unequal classes.
    """

    lambda_chosen: float = 1.0
    lambda_rejected: float = 1.0
    needs = Needs(rejected=True)
    two_points = True

    def __post_init__(self) -> None:
        require_positive("lambda_chosen", self.lambda_chosen, "chosen responses would count nothing or be pushed down")
        require_positive("lambda_rejected", self.lambda_rejected, "rejected ones would count nothing or be pushed up")

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor:
        of_chosen, of_rejected = (target, target) if target.ndim == 1 else target.unbind(-1)
        # 1 − σ(x) as σ(−x): exact where σ(x) rounds to 1
        gain = self.lambda_chosen * torch.sigmoid(of_chosen - rewards.chosen)
        loss = self.lambda_rejected * torch.sigmoid(rewards.rejected - of_rejected)
        return (gain + loss) / 2


@dataclass(frozen=True)
class MismatchedPoint:
    """target = max(0, mean of the rewards of mismatched responses), one number for the group (KTO Eq. 7).

    A mismatched response is another prompt's, read after this pair's prompt (``data/mismatch.py`` says whose): neither
    good nor bad there, so its log-ratio measures drift alone. Both responses of a pair count, so a group of one pair
    has a mean of two. The KL cannot be negative, its estimate can, hence the clamp. ``statistics``: see ``Scope``.
    """

    statistics: Scope = "forward"

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, mismatched=True, statistics=self.statistics)

    def __call__(self, group: MarginGroup) -> Tensor:
        if group.mismatched is None:
            raise ValueError("a mismatched reference point needs mismatched responses")
        point = torch.cat([group.mismatched.chosen, group.mismatched.rejected]).mean().clamp(min=0)
        return point.expand_as(group.margins)


@dataclass(frozen=True)
class SwappedPoint:
    """(t_w, t_l) = (max(0, mean rejected reward), max(0, mean chosen reward)), [n, 2].

    The estimate of TRL's former ``kto_pair`` and of γ-PO's and α-DPO's code: no further forward, but the drift is read
    off responses that training pushes apart. Those let gradients flow through the means; here, as KTO says, none do.
    ``statistics``: see ``Scope``.
    """

    statistics: Scope = "forward"
    two_points = True

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics)

    def __call__(self, group: MarginGroup) -> Tensor:
        rewards = group.rewards
        points = torch.stack([rewards.rejected.mean(), rewards.chosen.mean()]).clamp(min=0)
        return points.expand(len(group.inputs), 2)
