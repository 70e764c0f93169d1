"""What parts are given, what they give back, and what they declare to need.

Shapes: every tensor is [n], one entry per pair; log-probs in nats, rewards in nats × β.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Scope = int | Literal["forward"]
"""Over which pairs a statistic is taken: those of one forward pass (over all ranks), or a number of pairs
taken in order from the window, so that micro-batch size, accumulation and world size do not matter."""

State = Mapping[str, Any]
"""Cross-step state of one part: JSON-like values and tensors, returned anew and never mutated."""


@dataclass(frozen=True, slots=True)
class ResponseLogProbs:
    """Log-probs of one response per pair.

    ``summed``: [n], nats, summed over the supervised tokens. ``tokens``: [n], how many those are, as a float tensor.
    """

    summed: Tensor
    tokens: Tensor

    @property
    def average(self) -> Tensor:
        """[n], nats per token; an empty response scores 0 (GapPO section 3.6 clamps the count to 1)."""
        return self.summed / self.tokens.clamp(min=1)

    def to(self, device: torch.device) -> ResponseLogProbs:
        return ResponseLogProbs(self.summed.to(device), self.tokens.to(device))

    def detach(self) -> ResponseLogProbs:
        return ResponseLogProbs(self.summed.detach(), self.tokens)

    def __getitem__(self, index: slice) -> ResponseLogProbs:
        return ResponseLogProbs(self.summed[index], self.tokens[index])


@dataclass(frozen=True, slots=True)
class PairLogProbs:
    """Log-probs of the chosen and the rejected response of each pair."""

    chosen: ResponseLogProbs
    rejected: ResponseLogProbs

    def __len__(self) -> int:
        return self.chosen.summed.shape[0]

    def to(self, device: torch.device) -> PairLogProbs:
        return PairLogProbs(self.chosen.to(device), self.rejected.to(device))

    def detach(self) -> PairLogProbs:
        return PairLogProbs(self.chosen.detach(), self.rejected.detach())

    def __getitem__(self, index: slice) -> PairLogProbs:
        return PairLogProbs(self.chosen[index], self.rejected[index])

    @staticmethod
    def concatenate(parts: Sequence[PairLogProbs]) -> PairLogProbs:
        """The pairs of all ``parts``, in order."""

        def join(side: str, name: str) -> Tensor:
            return torch.cat([getattr(getattr(part, side), name) for part in parts])

        return PairLogProbs(
            ResponseLogProbs(join("chosen", "summed"), join("chosen", "tokens")),
            ResponseLogProbs(join("rejected", "summed"), join("rejected", "tokens")),
        )


@dataclass(frozen=True, slots=True)
class PairInputs:
    """Everything a part may look at. ``reference`` and the scores are ``None`` unless some part needs them."""

    policy: PairLogProbs
    reference: PairLogProbs | None = None
    chosen_scores: Tensor | None = None
    rejected_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.policy)

    def detach(self) -> PairInputs:
        return PairInputs(self.policy.detach(), self.reference, self.chosen_scores, self.rejected_scores)

    def __getitem__(self, index: slice) -> PairInputs:
        return PairInputs(
            self.policy[index],
            None if self.reference is None else self.reference[index],
            None if self.chosen_scores is None else self.chosen_scores[index],
            None if self.rejected_scores is None else self.rejected_scores[index],
        )


@dataclass(frozen=True, slots=True)
class MarginGroup:
    """The pairs over which one statistic is taken: detached reward margins [n] and the inputs behind them."""

    margins: Tensor
    inputs: PairInputs


@dataclass(frozen=True, slots=True)
class WindowTotals:
    """Global sizes of the window (all micro-batches, all ranks) by which sums become means."""

    pairs: int
    chosen_tokens: int


@dataclass(frozen=True, slots=True)
class PairTerms:
    """The detached numbers of each pair: its target margin and its weight, [n] each."""

    target: Tensor
    weight: Tensor

    def __getitem__(self, index: slice) -> PairTerms:
        return PairTerms(self.target[index], self.weight[index])

    @staticmethod
    def concatenate(parts: Sequence[PairTerms]) -> PairTerms:
        """The pairs of all ``parts``, in order."""
        return PairTerms(torch.cat([part.target for part in parts]), torch.cat([part.weight for part in parts]))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a part asks of the step; an objective's needs are the union (``|``)."""

    rejected: bool = False
    reference: bool = False
    scores: bool = False
    statistics: Scope | None = None
    state: bool = False

    def __or__(self, other: Needs) -> Needs:
        if None not in (self.statistics, other.statistics) and self.statistics != other.statistics:
            raise ValueError(f"parts want statistics over different scopes: {self.statistics} and {other.statistics}")
        return Needs(
            rejected=self.rejected or other.rejected,
            reference=self.reference or other.reference,
            scores=self.scores or other.scores,
            statistics=self.statistics if self.statistics is not None else other.statistics,
            state=self.state or other.state,
        )


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


class Link(Part, Protocol):
    """Loss per pair, [n], of reward margin and target margin."""

    def __call__(self, margin: Tensor, target: Tensor) -> Tensor: ...


class Weight(Part, Protocol):
    """Weight per pair of the group, [n]; the objective detaches it."""

    def __call__(self, group: MarginGroup) -> Tensor: ...


class Reduce(Part, Protocol):
    """From per-pair losses and weights, [n] each, to this forward's share of the window's loss (scalar)."""

    def __call__(self, losses: Tensor, weights: Tensor, totals: WindowTotals) -> Tensor: ...


class Regularizer(Part, Protocol):
    """Extra term on the chosen response: this forward's share of the window's term (scalar)."""

    def __call__(self, chosen: ResponseLogProbs, totals: WindowTotals) -> Tensor: ...


@runtime_checkable
class Stateful(Protocol):
    """A target or weight that carries state from group to group; ``advance`` replaces ``__call__`` in training."""

    def initial_state(self) -> State: ...

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]: ...
