"""One line of mathematics for every method:

    loss = reduce(weight_i · link(t_i · (reward(y_w) − reward(y_l)), t_i · target_i)) + λ · regularizer_i

with t_i the temperature, 1 but for β-DPO and β-SimPO.

Temperatures, targets and weights are computed first, without gradient, over a group of pairs (``terms``); the loss of
a forward follows from them (``loss``). The two are apart because a group may span several forwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.perturbations import NoPerturbation
from src.objective.temperatures import Fixed
from src.objective.types import (
    Diagnosed,
    Link,
    MarginGroup,
    Needs,
    Observed,
    PairInputs,
    PairLogProbs,
    PairRewards,
    PairTerms,
    Part,
    Reduce,
    Regularizer,
    Reward,
    State,
    Stateful,
    Target,
    Temperature,
    Weight,
    WindowTotals,
    each_tensor,
    tensors_of,
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
    "weight/gradient",
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
    temperature: Temperature = field(default_factory=Fixed)
    perturbation: Part = field(default_factory=NoPerturbation)

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by slot name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def needs(self) -> Needs:
        """The union of the parts' needs; whether anything is rejected is decided by the link."""
        union = reduce(Needs.__or__, (part.needs for part in self.parts.values()), Needs())
        rejected = self.link.needs.rejected
        return replace(union, rejected=rejected, reference=union.reference and rejected)

    @cached_property
    def separable(self) -> bool:
        """Whether a forward's loss is the sum of the losses of its pairs, each with terms found from itself alone.

        So it is where no part looks at a group of pairs and none carries anything from pair to pair. With terms
        that are given, ``loss`` is such a sum for every method.
        """
        return self.needs.statistics is None and not self.initial_state()

    @cached_property
    def rescales(self) -> bool:
        """Whether, with terms that are given, the gradient of the loss is Σ f_i·∇m_i, m_i the pairs' reward margins.

        So it is where the link looks at margins alone and no regularizer adds to it; ``pulls`` gives the f_i.
        """
        return getattr(self.link, "of_margin", False) and getattr(self.regularizer, "vanishes", False)

    def pulls(self, inputs: PairInputs, terms: PairTerms, totals: WindowTotals) -> Tensor:
        """f_i = ∂loss/∂m_i of each pair, [n], where the loss ``rescales``."""
        rewards = self.rewards(inputs.policy, inputs.reference).detach()
        return -self.gradient_weight(rewards, terms) / totals.pairs

    def __post_init__(self) -> None:
        refuse_one_margin_for_two_points(self)
        refuse_unserved_readers(self)
        refuse_stream_of_groups(self)

    def initial_state(self) -> ObjectiveState:
        """State before the first step."""
        return {name: part.initial_state() for name, part in self.parts.items() if isinstance(part, Stateful)}

    def rewards(self, policy: PairLogProbs, reference: PairLogProbs | None) -> PairRewards:
        """Rewards of the chosen and the rejected responses, [n] each, with gradient."""
        return PairRewards(
            self.reward(policy.chosen, None if reference is None else reference.chosen),
            self.reward(policy.rejected, None if reference is None else reference.rejected),
        )

    def margin_slopes(self, policy: PairLogProbs, slopes: PairLogProbs, reference: PairLogProbs | None) -> Tensor:
        """[n]: by how much each reward margin changes, to first order, where the log-probs change by ``slopes``."""
        with torch.enable_grad():
            policy = each_tensor(policy, lambda tensor: tensor.detach().requires_grad_())
            margins = self.rewards(policy, reference).margins
            leaves = tensors_of(policy)
            # a margin depends on the log-probs of its own pair alone, so one backward gives every pair's row
            gradients = torch.autograd.grad(margins.sum(), leaves, allow_unused=True)
        terms = zip(gradients, tensors_of(slopes), strict=True)
        products = [gradient * slope for gradient, slope in terms if gradient is not None]
        return torch.stack([product.reshape(len(policy), -1).sum(1) for product in products]).sum(0)

    def group(self, inputs: PairInputs) -> MarginGroup:
        """What temperatures, targets and weights look at, without gradient."""
        inputs = inputs.detach()
        mismatched = None
        if inputs.mismatched is not None:
            mismatched = self.rewards(inputs.mismatched, inputs.mismatched_reference)
        return MarginGroup(self.rewards(inputs.policy, inputs.reference), inputs, mismatched)

    @torch.no_grad()
    def terms(self, inputs: PairInputs, state: ObjectiveState) -> tuple[PairTerms, ObjectiveState]:
        """The numbers of each pair of one group, and the state after it; gradients never flow through."""
        group = self.group(inputs)
        after = dict(state)
        values: dict[str, Tensor] = {}
        diagnostics: dict[str, Tensor] = {}
        for name in ("temperature", "target", "weight"):
            part = getattr(self, name)
            if isinstance(part, Stateful):
                values[name], after[name] = part.advance(group, state[name])
            else:
                values[name] = part(group)
            if isinstance(part, Diagnosed):
                diagnostics |= part.diagnostics(group)
            if isinstance(part, Observed):
                diagnostics |= part.observations(values[name])
        losses = values["weight"] * self.linked(group.rewards, values["target"], values["temperature"])
        coefficient, offset = self.reduce.linearize(losses)
        return PairTerms(**values, coefficient=coefficient, offset=offset, diagnostics=diagnostics), after

    def linked(self, rewards: PairRewards, target: Tensor, temperature: Tensor) -> Tensor:
        """Loss of each pair before its weight, [n]."""
        scale = temperature if target.ndim == 1 else temperature[:, None]
        return self.link(rewards.scaled(temperature), target * scale)

    def loss(self, inputs: PairInputs, terms: PairTerms, totals: WindowTotals) -> Tensor:
        """This forward's share of the window's loss (scalar, with gradient)."""
        regularization = self.regularizer(inputs.policy, totals)
        if not self.needs.rejected:
            return regularization
        rewards = self.rewards(inputs.policy, inputs.reference)
        losses = terms.weight * self.linked(rewards, terms.target, terms.temperature)
        return (terms.coefficient * losses + terms.offset).sum() / totals.pairs + regularization

    @torch.no_grad()
    def metrics(self, inputs: PairInputs, terms: PairTerms) -> dict[str, Tensor]:
        """What is logged of each pair, [n] each, under the field's names; ``PAIR_METRICS`` lists them."""
        inputs = inputs.detach()
        rewards = self.rewards(inputs.policy, inputs.reference)
        margin, target = rewards.margins, terms.target
        return {
            "logps/chosen": inputs.policy.chosen.summed.detach(),
            "logps/rejected": inputs.policy.rejected.summed.detach(),
            "rewards/chosen": rewards.chosen,
            "rewards/rejected": rewards.rejected,
            "rewards/margins": margin,
            "rewards/accuracies": (margin > 0).to(margin.dtype),
            "target/mean": target if target.ndim == 1 else target.mean(1),
            "weight/mean": terms.weight,
            "weight/gradient": self.gradient_weight(rewards, terms),
            **terms.diagnostics,
        }

    @torch.enable_grad()
    def gradient_weight(self, rewards: PairRewards, terms: PairTerms) -> Tensor:
        """−∂(n · loss)/∂reward(y_w) of each pair, [n]: how hard the update pushes it, whatever the parts are named."""
        chosen = rewards.chosen.detach().requires_grad_()
        losses = self.linked(PairRewards(chosen, rewards.rejected), terms.target, terms.temperature)
        total = (terms.coefficient * terms.weight * losses).sum()
        return -torch.autograd.grad(total, chosen)[0] if total.requires_grad else torch.zeros_like(chosen)


def refuse_one_margin_for_two_points(row: Objective) -> None:
    """Raise ``UserError`` where the target gives each response a point of its own and the link reads one margin."""
    if getattr(row.target, "two_points", False) and not getattr(row.link, "two_points", False):
        raise UserError(
            f"target={type(row.target).__name__} gives chosen and rejected rewards a point each, but "
            f"link={type(row.link).__name__} holds their difference against one margin; "
            "take src.objective.prospect.Prospect for the link, or a target of one margin"
        )


def refuse_unserved_readers(row: Objective) -> None:
    """Raise ``UserError`` where a part reads what no perturbation finds, or a perturbation finds what no part reads."""
    name = type(row.perturbation).__name__
    given = getattr(row.perturbation, "gives", Needs())
    for finding, giver in (("anchor_gaps", "AnchorProbe"), ("gradient_norms", "GradientNorms")):
        spoken = finding.replace("_", " ")
        if getattr(row.needs, finding) and not getattr(given, finding):
            slot, reader = next((slot, one) for slot, one in row.parts.items() if getattr(one.needs, finding))
            raise UserError(
                f"the {slot} {type(reader).__name__} reads {spoken}, which perturbation={name} does not give; "
                f"take src.objective.perturbations.{giver} for the perturbation"
            )
        if getattr(given, finding) and not getattr(row.needs, finding):
            raise UserError(
                f"perturbation={name} finds {spoken} that no part reads, at the cost of a backward pass; "
                "leave it out, or choose a part that reads them"
            )


def refuse_stream_of_groups(row: Objective) -> None:
    """Raise ``UserError`` where pairs are weighed one by one as they come, and a part looks at several of them."""
    if getattr(row.perturbation, "probe", None) == "stream" and not (row.separable and row.rescales):
        raise UserError(
            "method.probe=stream weighs each pair before it has seen the next, but a part of this method takes "
            "statistics over several pairs, or adds a term of its own to the loss; use method.probe=sketch"
        )
