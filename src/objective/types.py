"""What parts are given, what they give back, and what they declare to need.

Shapes: every tensor is [n], one entry per pair; log-probs in nats, rewards in nats × β.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from src.errors import UserError

Scope = int | Literal["forward", "window"]
"""Over which pairs a statistic is taken: those of one forward pass (over all ranks), all of the window (the global
batch), or a number of pairs taken in order from the window. But for ``forward``, micro-batch size, accumulation and
world size do not matter."""

State = Mapping[str, Any]
"""Cross-step state of one part: JSON-like values and tensors, returned anew and never mutated."""


@dataclass(frozen=True, slots=True)
class ResponseLogProbs:
    """Log-probs of one response per pair.

    ``summed``: [n], nats, summed over the supervised tokens. ``tokens``: [n], how many those are, as a float tensor.
    ``per_token``: [n, time], the terms of that sum, 0 where nothing is supervised; ``None`` unless a part needs them.
    """

    summed: Tensor
    tokens: Tensor
    per_token: Tensor | None = None

    @property
    def average(self) -> Tensor:
        """[n], nats per token; an empty response scores 0 (GapPO section 3.6 clamps the count to 1)."""
        return self.summed / self.tokens.clamp(min=1)

    def to(self, device: torch.device) -> ResponseLogProbs:
        return each_tensor(self, lambda tensor: tensor.to(device))

    def detach(self) -> ResponseLogProbs:
        return each_tensor(self, torch.Tensor.detach)

    def __getitem__(self, index: slice) -> ResponseLogProbs:
        return each_tensor(self, lambda tensor: tensor[index])


@dataclass(frozen=True, slots=True)
class PairLogProbs:
    """Log-probs of the chosen and the rejected response of each pair.

    ``prompt``: those of the prompt's own tokens; ``None`` unless a part needs them (ORPO's released NLL).
    """

    chosen: ResponseLogProbs
    rejected: ResponseLogProbs
    prompt: ResponseLogProbs | None = None

    def __len__(self) -> int:
        return self.chosen.summed.shape[0]

    def to(self, device: torch.device) -> PairLogProbs:
        return each_tensor(self, lambda tensor: tensor.to(device))

    def detach(self) -> PairLogProbs:
        return each_tensor(self, torch.Tensor.detach)

    def __getitem__(self, index: slice) -> PairLogProbs:
        return each_tensor(self, lambda tensor: tensor[index])

    @staticmethod
    def concatenate(parts: Sequence[PairLogProbs]) -> PairLogProbs:
        """The pairs of all ``parts``, in order."""
        return concatenate(parts)


@dataclass(frozen=True, slots=True)
class PairInputs:
    """Everything a part may look at; all but ``policy`` is ``None`` unless some part needs it.

    ``mismatched``: log-probs of another pair's responses after this pair's prompt (no gradient), and of the reference.
    ``anchor_gaps``: [n], by how much the reward margin falls under the adversarial perturbation: m(θ) − m(θ_adv).
    ``gradient_norms``: [n], L2 norm of the reward margin's gradient with respect to the perturbed parameters.
    """

    policy: PairLogProbs
    reference: PairLogProbs | None = None
    chosen_scores: Tensor | None = None
    rejected_scores: Tensor | None = None
    mismatched: PairLogProbs | None = None
    mismatched_reference: PairLogProbs | None = None
    anchor_gaps: Tensor | None = None
    gradient_norms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.policy)

    def detach(self) -> PairInputs:
        return each_tensor(self, torch.Tensor.detach)

    def __getitem__(self, index: slice) -> PairInputs:
        return each_tensor(self, lambda tensor: tensor[index])


@dataclass(frozen=True, slots=True)
class PairRewards:
    """Rewards of both responses of each pair, [n] each, in nats × β."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        """[n], chosen − rejected."""
        return self.chosen - self.rejected

    def scaled(self, factor: Tensor) -> PairRewards:
        return PairRewards(self.chosen * factor, self.rejected * factor)

    def detach(self) -> PairRewards:
        return each_tensor(self, torch.Tensor.detach)


@dataclass(frozen=True, slots=True)
class MarginGroup:
    """The pairs over which one statistic is taken: their detached rewards and the inputs behind them.

    ``mismatched``: rewards of another pair's responses after this pair's prompt; ``None`` unless a part needs them.
    """

    rewards: PairRewards
    inputs: PairInputs
    mismatched: PairRewards | None = None

    @property
    def margins(self) -> Tensor:
        """[n], reward margins."""
        return self.rewards.margins


@dataclass(frozen=True, slots=True)
class WindowTotals:
    """Global sizes of the window (all micro-batches, all ranks) by which sums become means.

    ``prompt_tokens``: predicted tokens of the prompts (every one but the first), once per pair.
    """

    pairs: int
    chosen_tokens: int
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PairTerms:
    """The detached numbers of each pair, [n] each.

    ``target``: margin to clear; [n, 2] where chosen and rejected are held against different points (KTO).
    ``weight``: how much the pair counts. ``temperature``: by what reward margin and target are multiplied.
    ``coefficient``, ``offset``: the reduction, linear in the weighted losses around their present values.
    ``diagnostics``: what parts have to say of each pair, by metric name.
    """

    target: Tensor
    weight: Tensor
    temperature: Tensor
    coefficient: Tensor
    offset: Tensor
    diagnostics: Mapping[str, Tensor]

    def __getitem__(self, index: slice) -> PairTerms:
        return each_tensor(self, lambda tensor: tensor[index])

    @staticmethod
    def concatenate(parts: Sequence[PairTerms]) -> PairTerms:
        """The pairs of all ``parts``, in order."""
        return concatenate(parts)


Record = TypeVar("Record", ResponseLogProbs, PairLogProbs, PairInputs, PairRewards, PairTerms)


def each_tensor(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """``record`` with every tensor in it changed."""

    def changed(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {name: change(tensor) for name, tensor in value.items()}
        return change(value) if isinstance(value, Tensor) else each_tensor(value, change)

    return replace(record, **{spec.name: changed(getattr(record, spec.name)) for spec in fields(record)})


def tensors_of(record: Record) -> list[Tensor]:
    """Every tensor of ``record``, in the order of its fields."""
    found: list[Tensor] = []
    each_tensor(record, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def concatenate(records: Sequence[Record]) -> Record:
    """The pairs of all ``records``, in order; what one lacks, the whole lacks."""

    def joined(values: list[Any]) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], Mapping):
            return {name: joined([value[name] for value in values]) for name in values[0]}
        if not isinstance(values[0], Tensor):
            return concatenate(values)
        if values[0].ndim == 2:  # per-token values: forwards differ in their longest response
            time = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(value, (0, time - value.shape[1])) for value in values]
        return torch.cat(values)

    return replace(
        records[0], **{spec.name: joined([getattr(one, spec.name) for one in records]) for spec in fields(records[0])}
    )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a part asks of the step; an objective's needs are the union (``|``).

    ``spread``: its statistics say nothing of a single pair (a deviation, a comparison), so a configuration whose
    groups hold one pair is refused before training.
    """

    rejected: bool = False
    reference: bool = False
    scores: bool = False
    statistics: Scope | None = None
    spread: bool = False
    state: bool = False
    mismatched: bool = False
    per_token: bool = False
    prompt: bool = False
    anchor_gaps: bool = False
    gradient_norms: bool = False

    def __or__(self, other: Needs) -> Needs:
        if None not in (self.statistics, other.statistics) and self.statistics != other.statistics:
            raise UserError(
                f"two parts of the method want statistics over different pairs: {self.statistics} and "
                f"{other.statistics}; give both the same, since a window is cut into groups once"
            )
        either = {spec.name: getattr(self, spec.name) or getattr(other, spec.name) for spec in fields(self)}
        return Needs(**either)


class Part(Protocol):
    """A frozen dataclass of constants that declares its needs."""

    @property
    def needs(self) -> Needs: ...


class Reward(Part, Protocol):
    """Scalar reward of one response per pair, [n], in nats × β."""

    def __call__(self, policy: ResponseLogProbs, reference: ResponseLogProbs | None) -> Tensor: ...


class Target(Part, Protocol):
    """The margin each pair of the group must clear, [n], in the unit of the reward; the objective detaches it."""

    def __call__(self, group: MarginGroup) -> Tensor: ...


class Temperature(Part, Protocol):
    """By what the reward margin and the target of each pair are multiplied, [n]; the objective detaches it."""

    def __call__(self, group: MarginGroup) -> Tensor: ...


class Link(Part, Protocol):
    """Loss per pair, [n], of rewards (most look at their margin alone) and target margin."""

    def __call__(self, rewards: PairRewards, target: Tensor) -> Tensor: ...


class Weight(Part, Protocol):
    """Weight per pair of the group, [n]; the objective detaches it."""

    def __call__(self, group: MarginGroup) -> Tensor: ...


class Reduce(Part, Protocol):
    """From the weighted losses of a group, [n], to one number; ``linearize`` says how each forward takes its share."""

    def __call__(self, losses: Tensor) -> Tensor:
        """Loss of the group (scalar)."""
        ...

    def linearize(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients c and offsets o, [n] each, with loss = mean(c·losses + o) and c = n · ∂loss/∂losses."""
        ...


class Regularizer(Part, Protocol):
    """Extra term on the chosen response: this forward's share of the window's term (scalar)."""

    def __call__(self, policy: PairLogProbs, totals: WindowTotals) -> Tensor: ...


@runtime_checkable
class Diagnosed(Protocol):
    """A part of a group that has more to say of each pair than the value it gives."""

    def diagnostics(self, group: MarginGroup) -> Mapping[str, Tensor]:
        """[n] each, by metric name (``target/clamped``)."""
        ...


@runtime_checkable
class Observed(Protocol):
    """A part that has more to say of the values it gave: one with state could not compute them from the group alone."""

    def observations(self, values: Tensor) -> Mapping[str, Tensor]:
        """[n] each, by metric name (``target/deviation``), of the ``values`` it gave."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A temperature, target or weight that carries state from group to group.

    ``advance`` replaces ``__call__``, in validation too, where the state after it is dropped.
    """

    def initial_state(self) -> State: ...

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]: ...
