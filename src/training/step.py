"""One optimizer step over one window: probe, weigh, update.

The only place where an objective's needs become work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.errors import UserError
from src.objective.objective import Objective, ObjectiveState
from src.objective.types import PairInputs, PairLogProbs, PairTerms, Scope, WindowTotals, concatenate

Window = Sequence[PairBatch]
"""The micro-batches of one optimizer step."""


class NonFiniteError(UserError):
    """Loss or gradient is no finite number; the update was not made."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step (or one validation) gave: the loss, per-pair metrics and flipped flags [n], the state after it."""

    loss: Tensor
    pair_metrics: dict[str, Tensor]
    flipped: Tensor
    gradient_norm: Tensor | None
    state: ObjectiveState


def training_step(
    engine: Engine, objective: Objective, state: ObjectiveState, window: Window, max_grad_norm: float
) -> StepOutput:
    """Update the weights by one window; raises ``NonFiniteError`` (naming its pairs) instead of a broken update."""
    totals = WindowTotals(sum(map(len, window)), sum(batch.chosen_tokens for batch in window))
    probed, state = probe(engine, objective, state, window)
    losses, collected, start = [], [], 0
    for batch in window:
        inputs = pair_inputs(objective, engine.log_probs(batch), batch)
        if probed is None:
            terms, state = grouped_terms(objective, inputs, state)
        else:
            terms = probed[start : start + len(batch)]
        loss = objective.loss(inputs, terms, totals)
        engine.backward(loss)
        losses.append(loss.detach())
        collected.append(objective.metrics(inputs, terms) if batch.has_rejected else chosen_only(inputs))
        start += len(batch)
    norm, loss = engine.gradient_norm(), torch.stack(losses).sum()
    if not bool(torch.isfinite(norm) & torch.isfinite(loss)):
        engine.discard_gradients()
        raise NonFiniteError(non_finite_message(loss, norm, window, collected), exit_code=1)
    engine.clip_and_step(norm, max_grad_norm)
    metrics = {name: torch.cat([part[name] for part in collected]) for name in collected[0]}
    return StepOutput(loss, metrics, torch.cat([batch.flipped for batch in window]), norm, state)


def probe(
    engine: Engine, objective: Objective, state: ObjectiveState, window: Window
) -> tuple[PairTerms | None, ObjectiveState]:
    """Targets and weights of all pairs of the window, when a group of statistics reaches over several forwards.

    ``None`` when every group lies within one forward, which then gives the statistics itself.
    """
    if fits_in_forwards(objective.needs.statistics, window):
        return None, state
    with torch.no_grad():
        parts = [pair_inputs(objective, engine.log_probs(batch), batch) for batch in window]
    return grouped_terms(objective, concatenate(parts), state)


def fits_in_forwards(scope: Scope | None, window: Window) -> bool:
    """Whether every group of statistics lies within one forward."""
    if scope is None or scope == "forward" or len(window) == 1:
        return True
    return scope != "window" and all(len(batch) % scope == 0 for batch in window)


def grouped_terms(objective: Objective, inputs: PairInputs, state: ObjectiveState) -> tuple[PairTerms, ObjectiveState]:
    """Targets and weights of ``inputs``, group of statistics by group, in order."""
    scope = objective.needs.statistics
    size = scope if isinstance(scope, int) else max(len(inputs), 1)
    parts = []
    for start in range(0, len(inputs), size):
        terms, state = objective.terms(inputs[start : start + size], state)
        parts.append(terms)
    return PairTerms.concatenate(parts), state


def pair_inputs(objective: Objective, policy: PairLogProbs, batch: PairBatch) -> PairInputs:
    """What the parts may look at, and no more than they declared to need."""
    needs = objective.needs
    return PairInputs(
        policy,
        batch.reference if needs.reference else None,
        batch.chosen_scores if needs.scores else None,
        batch.rejected_scores if needs.scores else None,
    )


@torch.no_grad()
def validate(engine: Engine, objective: Objective, state: ObjectiveState, batches: Sequence[PairBatch]) -> StepOutput:
    """Loss and metrics over ``batches`` without an update; the state it returns is the one it was given.

    The mean over all pairs, with statistics over the declared scope (a forward, a number of pairs in order, or all).
    """
    totals = WindowTotals(sum(map(len, batches)), sum(batch.chosen_tokens for batch in batches))
    inputs = [pair_inputs(objective, engine.log_probs(batch), batch) for batch in batches]
    if objective.needs.statistics not in (None, "forward"):
        inputs = [concatenate(inputs)]
    losses, collected = [], []
    for part in inputs:
        terms, _ = grouped_terms(objective, part, state)
        losses.append(objective.loss(part, terms, totals))
        collected.append(objective.metrics(part, terms))
    metrics = {name: torch.cat([part[name] for part in collected]) for name in collected[0]}
    flipped = torch.cat([batch.flipped for batch in batches])
    return StepOutput(torch.stack(losses).sum(), metrics, flipped, None, state)


def chosen_only(inputs: PairInputs) -> dict[str, Tensor]:
    """Metrics of demonstrations, which have no rejected response."""
    return {"logps/chosen": inputs.policy.chosen.summed.detach()}


def non_finite_message(loss: Tensor, norm: Tensor, window: Window, collected: Sequence[dict[str, Tensor]]) -> str:
    """Which pairs the broken window held, and which of them have non-finite log-probs."""
    broken = []
    for batch, metrics in zip(window, collected, strict=True):
        finite = torch.stack([torch.isfinite(value) for value in metrics.values()]).all(0).tolist()
        broken += [name for name, fine in zip(batch.ids, finite, strict=True) if not fine]
    ids = ", ".join(name for batch in window for name in batch.ids)
    what = f"pairs with non-finite log-probs or rewards: {', '.join(broken)}" if broken else "every pair is finite"
    return (
        f"loss={loss.item():g}, gradient norm={norm.item():g}: no update was made, since it would ruin the weights. "
        f"The window holds {ids}; {what}. The last checkpoint is intact; "
        "lower training.learning_rate, or look at these pairs"
    )
