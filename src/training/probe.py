"""What a step learns by moving the parameters: anchor gaps (GAPO), gradient norms, sharpness-aware updates (SAM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.errors import UserError
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe, GradientNorms, Sharpness
from src.objective.types import PairInputs
from src.training.inputs import Window, pair_inputs

SMALLEST_NORM = 1e-12
"""A gradient below it has no direction: the group is not perturbed, its gaps are 0."""

SMALLEST_FRACTION = 0.9
"""Below this applied fraction a perturbation is mostly rounding, and the run stops."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found of each pair of a window, [n] each; ``diagnostics`` by metric name."""

    anchor_gaps: Tensor | None
    gradient_norms: Tensor | None
    diagnostics: Mapping[str, Tensor]


def probe_parameters(engine: Engine, objective: Objective, window: Window) -> Probed | None:
    """Carry out the objective's perturbation, if it looks at the window before the loss; no gradient is left behind."""
    perturbation = objective.perturbation
    if isinstance(perturbation, AnchorProbe):
        return anchored(engine, objective, window, perturbation)
    if isinstance(perturbation, GradientNorms):
        return with_norms(engine, objective, window, perturbation)
    return None


def with_probed(inputs: PairInputs, probed: Probed | None, pairs: slice) -> PairInputs:
    """``inputs`` with what was found of these ``pairs`` of the window."""
    found: dict[str, Any] = dict(probed_values(probed, pairs))
    return replace(inputs, **found)


def probed_values(probed: Probed | None, pairs: slice) -> dict[str, Tensor]:
    """What was found of these ``pairs`` of the window, by its name in ``PairInputs``."""
    if probed is None:
        return {}
    found = {"anchor_gaps": probed.anchor_gaps, "gradient_norms": probed.gradient_norms}
    return {name: value[pairs] for name, value in found.items() if value is not None}


def anchored(engine: Engine, objective: Objective, window: Window, anchor: AnchorProbe) -> Probed:
    """Gap of every pair's reward margin between θ and the anchor of its group (GAPO Eq. 5-7)."""
    size = sum(map(len, window)) if anchor.anchor_pairs == "window" else anchor.anchor_pairs
    gaps, applied, norms = [], [], []
    for group in grouped(window, size):
        gap, norm, fraction = gaps_of_group(engine, objective, group, anchor)
        gaps.append(gap)
        norms.append(norm.expand_as(gap))
        applied.append(fraction.to(gap.dtype).expand_as(gap))
    found = torch.cat(gaps)
    diagnostics = {
        "anchor/gap": found,
        "anchor/gradient_norm": torch.cat(norms),
        "anchor/applied": torch.cat(applied),
        "anchor/skipped": (torch.cat(applied) == 0).to(found.dtype),
    }
    return Probed(found, None, diagnostics)


def gaps_of_group(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaps [n] of the pairs that share one direction, the norm of that direction, and the applied fraction.

    Both margins come from the same forward of the same pairs, so that rounding does not enter the gap.
    """
    before = margin_gradient(engine, objective, group, anchor.pulls)
    norm = engine.gradient_norm(anchor.scope, adaptive=anchor.adaptive)
    if not bool(torch.isfinite(norm) & (norm >= SMALLEST_NORM)):
        engine.discard_gradients()
        return torch.zeros_like(before), norm.to(before.dtype), before.new_zeros(())
    if anchor.probe == "first_order":
        slopes = [margin_slopes(engine, objective, batch, anchor) for batch in group]
        engine.discard_gradients()
        return torch.cat(slopes) * (anchor.rho / norm), norm.to(before.dtype), before.new_ones(())
    with torch.no_grad(), engine.perturbed(-anchor.rho / norm, anchor.scope, adaptive=anchor.adaptive) as applied:
        refuse_vanished(applied)
        after = torch.cat([margins(engine, objective, batch) for batch in group])
    return before - after, norm.to(before.dtype), applied


def margin_gradient(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], pulls: Callable[[Tensor], Tensor]
) -> Tensor:
    """Reward margins [n] of the group; the gradient of their mean, weighted by ``pulls``, is left in the engine."""
    count, found = sum(map(len, group)), []
    for batch in engine.forwards(group):
        margin = margins(engine, objective, batch)
        engine.backward((pulls(margin) * margin).sum() / count)
        found.append(margin.detach())
    return torch.cat(found)


def margins(engine: Engine, objective: Objective, batch: PairBatch) -> Tensor:
    """Reward margins of a forward, [n], with gradient."""
    inputs = pair_inputs(engine, objective, batch, for_terms=False)
    return objective.rewards(inputs.policy, inputs.reference).margins


def margin_slopes(engine: Engine, objective: Objective, batch: PairBatch, anchor: AnchorProbe) -> Tensor:
    """⟨∇m_i, gradient in the engine⟩ of every pair, [n]."""
    per_token = objective.needs.per_token
    policy, slopes = engine.slopes(batch, anchor.scope, adaptive=anchor.adaptive, per_token=per_token)
    return objective.margin_slopes(policy, slopes, batch.reference if objective.needs.reference else None)


def with_norms(engine: Engine, objective: Objective, window: Window, perturbation: GradientNorms) -> Probed:
    """Norm of the gradient of every pair's reward margin, one backward each."""
    norms = []
    for group in grouped(window, 1):
        margin_gradient(engine, objective, group, torch.ones_like)
        norms.append(engine.gradient_norm(perturbation.scope))
        engine.discard_gradients()
    found = torch.stack(norms)
    return Probed(None, found, {"anchor/gradient_norm": found})


@contextmanager
def sharpened(engine: Engine, sharpness: Sharpness) -> Iterator[dict[str, Tensor]]:
    """Within the block the weights stand at θ + ρ·g/‖g‖, g the gradient that the engine holds, which is forgotten.

    The gradient taken within the block stays. Yields what is logged of the perturbation, scalars by metric name. A
    gradient without a direction moves nothing.
    """
    norm = engine.gradient_norm(sharpness.scope)
    fine = bool(torch.isfinite(norm) & (norm >= SMALLEST_NORM))
    scale = sharpness.rho / norm if fine else torch.zeros_like(norm)
    with engine.perturbed(scale, sharpness.scope) as applied:
        if fine:
            refuse_vanished(applied)
        yield {"anchor/gradient_norm": norm, "anchor/applied": applied if fine else torch.zeros_like(norm)}


def refuse_vanished(applied: Tensor) -> None:
    """Raise ``UserError`` when rounding swallowed the perturbation."""
    if not float(applied) >= SMALLEST_FRACTION:
        raise UserError(
            f"only {float(applied):.1%} of the perturbation survives rounding (at least {SMALLEST_FRACTION:.0%} must), "
            "so what it shows would be noise; use model.dtype=float32, or method.probe=first_order where the method "
            "has it (GAPO), which moves no weight"
        )


def grouped(window: Window, size: int) -> Iterator[list[PairBatch]]:
    """The pairs of the window in order, ``size`` at a time (the last group may be smaller), cut along forwards."""
    group: list[PairBatch] = []
    room = size
    for batch in window:
        start = 0
        while start < len(batch):
            stop = min(start + room, len(batch))
            group.append(batch if (start, stop) == (0, len(batch)) else batch[start:stop])
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group
