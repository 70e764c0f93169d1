"""What a step learns by moving the parameters: anchor gaps (GAPO), gradient norms, sharpness-aware updates (SAM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.engine.deferred import Observed, Sketched
from src.errors import UserError
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe, GradientNorms, Sharpness
from src.training.groups import group_size, grouped
from src.training.inputs import KnownInputs, known_inputs, margin_share, pair_inputs
from src.training.probed import Gaps, Probed, diagnosed, has_direction, no_gaps
from src.training.stream import streamed_gaps
from src.training.window import Window

SMALLEST_FRACTION = 0.9
"""Below this applied fraction a perturbation is mostly rounding, and the run stops."""


def probe_parameters(engine: Engine, objective: Objective, window: Window) -> Probed | None:
    """Carry out the objective's perturbation, if it looks at the window before the loss; no gradient is left behind."""
    perturbation = objective.perturbation
    if isinstance(perturbation, AnchorProbe):
        return anchored(engine, objective, window, perturbation)
    if isinstance(perturbation, GradientNorms):
        return with_norms(engine, objective, window, perturbation)
    return None


def anchored(engine: Engine, objective: Objective, window: Window, anchor: AnchorProbe) -> Probed:
    """Gap of every pair's reward margin between θ and the anchor of its group (GAPO Eq. 5-7)."""
    groups = grouped(window, group_size(anchor, window))
    return diagnosed([gaps_of_group(engine, objective, group, anchor) for group in groups])


def gaps_of_group(engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe) -> Gaps:
    """Gaps of the pairs that share one direction.

    Both margins come from the same forward of the same pairs, so that rounding does not enter the gap.
    """
    if anchor.probe == "stream":
        return streamed_gaps(engine, objective, group, anchor)
    if anchor.probe == "sketch":
        return sketched_gaps(engine, [sketch_of(engine, objective, batch, anchor) for batch in group], anchor)
    before = margin_gradient(engine, objective, group, anchor.pulls)
    norm = engine.gradient_norm(anchor.scope, adaptive=anchor.adaptive)
    if not has_direction(norm):
        engine.discard_gradients()
        return no_gaps(before, norm)
    if anchor.probe == "first_order":
        slopes = [margin_slopes(engine, objective, batch, anchor) for batch in group]
        engine.discard_gradients()
        return Gaps(torch.cat(slopes) * (anchor.rho / norm), norm, before.new_ones(()))
    with torch.no_grad(), engine.perturbed(-anchor.rho / norm, anchor.scope, adaptive=anchor.adaptive) as applied:
        refuse_vanished(applied)
        after = torch.cat([margins(engine, objective, batch) for batch in group])
    return Gaps(before - after, norm, applied)


def observed_margins(
    engine: Engine,
    objective: Objective,
    batch: PairBatch,
    known: KnownInputs,
    *,
    learning: bool = True,
    summed: bool = False,
) -> Observed:
    """A forward recorded for its reward margins; ``summed``: with the gradient of their sum."""
    share, per_token = margin_share(objective, known), objective.needs.per_token
    return engine.record(batch, share, per_token=per_token, learning=learning, summed=summed)


def sketch_of(engine: Engine, objective: Objective, batch: PairBatch, anchor: AnchorProbe) -> Sketched:
    """Projections of the gradients of a forward's pairs, of which nothing else is kept."""
    reason = engine.unrecordable()
    if reason is not None:
        raise UserError(
            f"method.probe=sketch looks at the inputs of layers, which cannot be had here: {reason}; "
            "use method.probe=perturb, or method.probe=stream"
        )
    known = known_inputs(engine, objective, batch, for_terms=False)
    return engine.sketched(observed_margins(engine, objective, batch, known), anchor.scope, anchor.sketch_size)


def sketched_gaps(engine: Engine, sketched: Sequence[Sketched], anchor: AnchorProbe) -> Gaps:
    """Estimated first-order gaps of the pairs of a group; no weight moves."""
    slopes, norm = engine.sketched_slopes(sketched)
    if not has_direction(norm):
        return no_gaps(slopes, norm)
    return Gaps(slopes * (anchor.rho / norm), norm, slopes.new_ones(()))


def finite_gaps(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], observed: Sequence[Observed], anchor: AnchorProbe
) -> Gaps:
    """The exact gaps, as ``gaps_of_group`` finds them, from forwards of ``group`` that were ``observed``."""
    known = [known_inputs(engine, objective, batch, for_terms=False) for batch in group]

    def margins_of(found: Sequence[Observed]) -> Tensor:
        inputs = [one.with_policy(forward.log_probs) for one, forward in zip(known, found, strict=True)]
        return torch.cat([objective.rewards(one.policy, one.reference).margins for one in inputs])

    before = margins_of(observed)
    # the sum in place of the mean, from which pairs that count alike need no factors
    engine.weigh(observed, None if anchor.along_mean else anchor.pulls(before))
    norm_of_sum = engine.gradient_norm(anchor.scope, adaptive=anchor.adaptive)
    norm = norm_of_sum / len(before)
    if not has_direction(norm):
        return no_gaps(before, norm)
    scale = -anchor.rho / norm_of_sum
    with torch.no_grad(), engine.perturbed(scale, anchor.scope, adaptive=anchor.adaptive) as applied:
        refuse_vanished(applied)
        pairs = zip(group, known, strict=True)
        after = margins_of([observed_margins(engine, objective, *one, learning=False) for one in pairs])
    return Gaps(before - after, norm, applied)


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
    fine = bool(has_direction(norm))
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
