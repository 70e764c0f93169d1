"""One line of mathematics for every method:

    loss = reduce(weight_i · link(reward(y_w) − reward(y_l), target_i)) + λ · regularizer_i

Targets and weights are computed first, without gradient, over a group of pairs (``terms``); the loss of a forward
follows from them (``loss``). The two are apart because a group may span several forwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from src.objective.types import (
    Link,
    MarginGroup,
    Needs,
    PairInputs,
    PairTerms,
    Part,
    Reduce,
    Regularizer,
    Reward,
    State,
    Stateful,
    Target,
    Weight,
    WindowTotals,
)

PAIR_METRICS = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "target/mean",
    "weight/mean",
)
"""Names of the per-pair metrics; a validation metric is one of these or the loss."""

ObjectiveState = Mapping[str, State]
"""State of each stateful part, by slot name."""


@dataclass(frozen=True)
class Objective:
    """A row of parts."""

    reward: Reward
    target: Target
    link: Link
    weight: Weight
    reduce: Reduce
    regularizer: Regularizer

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by slot name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def needs(self) -> Needs:
        """The union of the parts' needs; whether anything is rejected is decided by the link."""
        union = reduce(Needs.__or__, (part.needs for part in self.parts.values()), Needs())
        return Needs(
            rejected=self.link.needs.rejected,
            reference=union.reference and self.link.needs.rejected,
            scores=union.scores,
            statistics=union.statistics,
            state=union.state,
        )

    def initial_state(self) -> ObjectiveState:
        """State before the first step."""
        return {name: part.initial_state() for name, part in self.parts.items() if isinstance(part, Stateful)}

    def rewards(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        """Rewards of the chosen and the rejected responses, [n] each, with gradient."""
        reference = inputs.reference
        return (
            self.reward(inputs.policy.chosen, None if reference is None else reference.chosen),
            self.reward(inputs.policy.rejected, None if reference is None else reference.rejected),
        )

    @torch.no_grad()
    def terms(self, inputs: PairInputs, state: ObjectiveState) -> tuple[PairTerms, ObjectiveState]:
        """Target and weight of each pair of one group, and the state after it; gradients never flow through."""
        inputs = inputs.detach()
        chosen, rejected = self.rewards(inputs)
        group = MarginGroup(chosen - rejected, inputs)
        after = dict(state)
        values = {}
        for name in ("target", "weight"):
            part = getattr(self, name)
            if isinstance(part, Stateful) and name in state:
                values[name], after[name] = part.advance(group, state[name])
            else:
                values[name] = part(group)
        return PairTerms(values["target"], values["weight"]), after

    def loss(self, inputs: PairInputs, terms: PairTerms, totals: WindowTotals) -> Tensor:
        """This forward's share of the window's loss (scalar, with gradient)."""
        regularization = self.regularizer(inputs.policy.chosen, totals)
        if not self.needs.rejected:
            return regularization
        chosen, rejected = self.rewards(inputs)
        losses = self.link(chosen - rejected, terms.target)
        return self.reduce(losses, terms.weight, totals) + regularization

    @torch.no_grad()
    def metrics(self, inputs: PairInputs, terms: PairTerms) -> dict[str, Tensor]:
        """What is logged of each pair, [n] each, under the field's names; ``PAIR_METRICS`` lists them."""
        chosen, rejected = self.rewards(inputs.detach())
        margin = chosen - rejected
        return {
            "logps/chosen": inputs.policy.chosen.summed.detach(),
            "logps/rejected": inputs.policy.rejected.summed.detach(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margin,
            "rewards/accuracies": (margin > 0).to(margin.dtype),
            "target/mean": terms.target,
            "weight/mean": terms.weight,
        }
