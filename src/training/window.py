"""A window and its groups of statistics, whatever way it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.objective.objective import Objective, ObjectiveState
from src.objective.types import PairInputs, PairTerms, Scope, WindowTotals

Window = Sequence[PairBatch]
"""The micro-batches of one optimizer step."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step (or one validation) gave: the loss, per-pair metrics and flipped flags [n], the state after it."""

    loss: Tensor
    pair_metrics: dict[str, Tensor]
    flipped: Tensor
    gradient_norm: Tensor | None
    state: ObjectiveState


def output_of(
    window: Window, losses: list[Tensor], metrics: Sequence[dict[str, Tensor]], state: ObjectiveState
) -> StepOutput:
    """What a pass over the window gave: of each part of it, in order, its share of the loss and its pairs' metrics."""
    pair_metrics = {name: torch.cat([part[name] for part in metrics]) for name in metrics[0]}
    flipped = torch.cat([batch.flipped for batch in window])
    return StepOutput(torch.stack(losses).sum(), pair_metrics, flipped, None, state)


def totals_of(window: Window) -> WindowTotals:
    """Global sizes of the window."""
    return WindowTotals(
        pairs=sum(map(len, window)),
        chosen_tokens=sum(batch.chosen_tokens for batch in window),
        prompt_tokens=sum(batch.prompt_tokens for batch in window),
    )


def fits_in_forwards(scope: Scope | None, window: Window) -> bool:
    """Whether every group of statistics lies within one forward."""
    if scope is None or scope == "forward" or len(window) == 1:
        return True
    return scope != "window" and all(len(batch) % scope == 0 for batch in window)


def grouped_terms(
    objective: Objective, inputs: PairInputs, state: ObjectiveState, evolving: bool
) -> tuple[PairTerms, ObjectiveState]:
    """Terms of ``inputs``, group of statistics by group, in order; the state moves on only when ``evolving``."""
    scope = objective.needs.statistics
    size = scope if isinstance(scope, int) else max(len(inputs), 1)
    parts = []
    for start in range(0, len(inputs), size):
        terms, after = objective.terms(inputs[start : start + size], state)
        state = after if evolving else state
        parts.append(terms)
    return PairTerms.concatenate(parts), state
