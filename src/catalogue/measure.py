"""One test vector through its composed objective: loss, gradient and state after, in a given precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.catalogue.routes import ROUTES, SMALLEST_GAP, route_name, settings
from src.catalogue.rows import objective_of, smallest_gap
from src.errors import UserError
from src.objective.objective import Objective, ObjectiveState
from src.objective.types import (
    MarginGroup,
    Needs,
    PairInputs,
    PairLogProbs,
    ResponseLogProbs,
    State,
    WindowTotals,
)

Vector = Mapping[str, Any]
Batch = Mapping[str, Sequence[float]]

Figures = dict[str, dict[str, list[float]]]
"""What a vector is about, by kind (``loss``, ``gradient``, ``others``) and name."""


@dataclass(frozen=True)
class Arithmetic:
    """In what precision to compute, and whether the inputs are rounded to float32 first."""

    dtype: torch.dtype
    rounded: bool = False

    def tensor(self, values: Any) -> Tensor:
        """``values`` as this arithmetic takes them in."""
        wide = torch.tensor(plain(values), dtype=torch.float64)
        return (wide.float() if self.rounded else wide).to(self.dtype)


EXACT = Arithmetic(torch.float64)
ROUNDED = Arithmetic(torch.float64, rounded=True)
SINGLE = Arithmetic(torch.float32, rounded=True)


def plain(value: Any) -> Any:
    """Numbers of the file, where inf, -inf and nan are texts, and null is nan."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{value!r} is no number") from error


# --- a vector on log-probs --------------------------------------------------------------------------------------------


def expected(vector: Vector) -> Figures:
    """What the file says of a vector."""
    figures: Figures = {
        "loss": {"batch_loss": [plain(vector["batch_loss"])]},
        "gradient": {"dL_ds": plain(vector["dL_ds_w"]) + plain(vector["dL_ds_l"])},
        "others": {},
    }
    for name, value in (vector.get("state_out") or {}).items():
        figures["others"][f"state {name}"] = plain(value) if isinstance(value, list) else [plain(value)]
    return figures


def measured(
    vector: Vector, batch: Batch, arithmetic: Arithmetic, before: ObjectiveState | None
) -> tuple[Figures, ObjectiveState]:
    """The same of our objective, starting from the vector's state (or ``before``), and the state after it."""
    route = ROUTES[route_name(vector.get("method"), str(vector["tag"]))]
    method, values = settings(route, vector["config"])
    smallest = values.pop(SMALLEST_GAP, smallest_gap(method))
    objective = objective_of(method, values)
    pairs = inputs_of(batch, arithmetic, objective.needs, vector["config"].get("kl_logratios"))
    kept = kept_pairs(batch, smallest)
    if vector["config"].get("sample_index") is not None:
        objective = with_sample(objective, vector["config"]["sample_index"])
    if before is None:
        before = state_of(objective, vector.get("state_in"))
    loss, after = loss_of(objective, taken(pairs, kept), before) if kept else (torch.zeros(()), before)
    loss = loss * (len(kept) / len(pairs))  # the file divides by all pairs, a filtered data set by those kept
    leaves = [pairs.policy.chosen.summed, pairs.policy.rejected.summed]
    zero = sum((leaf * 0).sum() for leaf in leaves)
    gradients = torch.autograd.grad(loss + zero, leaves)
    figures: Figures = {
        "loss": {"batch_loss": [loss.item()]},
        "gradient": {"dL_ds": [value for gradient in gradients for value in gradient.tolist()]},
        "others": {f"state {name}": state_value(after, name) for name in vector.get("state_out") or {}},
    }
    return figures, after


def loss_of(objective: Objective, pairs: PairInputs, state: ObjectiveState) -> tuple[Tensor, ObjectiveState]:
    """Loss of ``pairs`` as one window of one forward, and the state after it."""
    terms, after = objective.terms(pairs, state)
    tokens = int(pairs.policy.chosen.tokens.sum())
    return objective.loss(pairs, terms, WindowTotals(len(pairs), tokens)), after


def inputs_of(batch: Batch, arithmetic: Arithmetic, needs: Needs, kl_log_ratios: Sequence[float] | None) -> PairInputs:
    """The pairs of a batch, with what the objective needs; ``kl_log_ratios`` are of mismatched responses."""

    def responses(sums: str) -> PairLogProbs:
        sides = [(f"{sums}_w", "n_w"), (f"{sums}_l", "n_l")]
        return PairLogProbs(
            *(ResponseLogProbs(arithmetic.tensor(batch[s]), arithmetic.tensor(batch[n])) for s, n in sides)
        )

    for flag, words in (("per_token", "log-probs token by token"), ("prompt", "log-probs of prompts")):
        if getattr(needs, flag):
            raise UserError(f"the method needs {words}, which a batch does not hold")
    if needs.mismatched and kl_log_ratios is None:
        raise UserError("the method needs kl_logratios, which the configuration does not give")
    policy = responses("s")
    for side in (policy.chosen, policy.rejected):
        side.summed.requires_grad_()
    pairs = PairInputs(policy, responses("q") if needs.reference else None)
    if needs.scores:
        pairs = replace(
            pairs, chosen_scores=arithmetic.tensor(batch["c_w"]), rejected_scores=arithmetic.tensor(batch["c_l"])
        )
    return pairs if kl_log_ratios is None else with_mismatched(pairs, arithmetic.tensor(kl_log_ratios))


def with_mismatched(pairs: PairInputs, log_ratios: Tensor) -> PairInputs:
    """``pairs`` with mismatched responses of these log-ratios, both of a pair the same; there may be fewer or more."""
    ones, zeros = torch.ones_like(log_ratios), torch.zeros_like(log_ratios)
    drifted, still = ResponseLogProbs(log_ratios, ones), ResponseLogProbs(zeros, ones)
    return replace(pairs, mismatched=PairLogProbs(drifted, drifted), mismatched_reference=PairLogProbs(still, still))


# --- filtered pairs ---------------------------------------------------------------------------------------------------


def kept_pairs(batch: Batch, smallest: float) -> list[int]:
    """Positions of the pairs whose score gap is at least ``smallest``."""
    count = len(batch["s_w"])
    if smallest == 0:
        return list(range(count))
    return [i for i in range(count) if abs(batch["c_w"][i] - batch["c_l"][i]) >= smallest]


def taken(pairs: PairInputs, kept: Sequence[int]) -> PairInputs:
    """The pairs at these positions."""
    return pairs if len(kept) == len(pairs) else pairs[torch.tensor(kept)]  # type: ignore[index]


# --- state ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithSample:
    """A part with state whose draw is given: positions in its queue, or in the group."""

    part: Any
    sample_index: tuple[int, ...]

    @property
    def needs(self) -> Needs:
        needs: Needs = self.part.needs
        return needs

    def initial_state(self) -> State:
        state: State = self.part.initial_state()
        return state

    def __call__(self, group: MarginGroup) -> Tensor:
        return self.advance(group, self.initial_state())[0]

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]:
        values: tuple[Tensor, State] = self.part.advance_with(group, state, self.sample_index)
        return values


def with_sample(objective: Objective, sample_index: Sequence[int]) -> Objective:
    """The objective whose parts with a draw take this one; raises ``UserError`` when none draws."""
    drawing = {name: part for name, part in objective.parts.items() if hasattr(part, "advance_with")}
    if not drawing:
        raise UserError("sample_index is given, but the method draws nothing")
    given: dict[str, Any] = {name: WithSample(part, tuple(sample_index)) for name, part in drawing.items()}
    return replace(objective, **given)


def state_of(objective: Objective, given: Mapping[str, Any] | None) -> ObjectiveState:
    """The initial state with the file's entries in it; raises ``UserError`` for one that no part has."""
    initial = objective.initial_state()
    for name in given or {}:
        if not any(name in state for state in initial.values()):
            raise UserError(f"state_in holds {name}, which the method does not keep")
    return {
        slot: {**state, **{name: as_kept(state[name], value) for name, value in (given or {}).items() if name in state}}
        for slot, state in initial.items()
    }


def as_kept(ours: Any, value: Any) -> Any:
    """An entry of the file in the type in which a part keeps it."""
    return torch.tensor(plain(value), dtype=ours.dtype) if isinstance(ours, Tensor) else type(ours)(plain(value))


def state_value(state: ObjectiveState, name: str) -> list[float]:
    """An entry of the state; parts that keep the same entry must agree on it."""
    found = [part[name] for part in state.values() if name in part]
    if not found:
        raise UserError(f"state_out holds {name}, which the method does not keep")
    values = [value.tolist() if isinstance(value, Tensor) else [float(value)] for value in found]
    if any(value != values[0] for value in values):
        raise UserError(f"the parts of the method disagree on their {name}")
    return [float(value) for value in values[0]]
