"""GAPO's gaps one pair after the other (``method.probe=stream``): no pair's gradient is looked at twice.

Wanted is Γ_i = ρ·⟨∇m_i, G⟩/‖G‖, G = Σ_j ∇m_j over the n pairs of a group. At pair k its own norm and its product with
the sum of those before are known; each of the n − k pairs to come is taken to have the mean product c of all two pairs
seen so far, and the mean square q:

    ⟨∇m_k, G⟩ ≈ ‖∇m_k‖² + ⟨∇m_k, Σ_{j<k} ∇m_j⟩ + (n − k)·c        ‖G‖² ≈ n·q + n·(n − 1)·c

For the last pair both are exact. Nothing is carried from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.engine.stream import GradientStream
from src.objective.objective import Objective, ObjectiveState
from src.objective.perturbations import AnchorProbe
from src.objective.types import PairInputs
from src.training.groups import group_size, grouped
from src.training.inputs import known_inputs, margin_share
from src.training.probed import Gaps, diagnosed, has_direction, with_probed
from src.training.window import StepOutput, Window, output_of, totals_of


@dataclass
class Products:
    """Squares and products of the gradients seen so far, of a group of ``pairs``."""

    pairs: int
    seen: int = 0
    squares: Tensor | float = 0.0
    crosses: Tensor | float = 0.0

    def slope(self, square: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of ⟨∇m_k, g⟩ and ‖g‖, g = G/n, with the next pair's ‖∇m_k‖² and ⟨∇m_k, Σ_{j<k} ∇m_j⟩."""
        self.seen += 1
        self.squares, self.crosses = self.squares + square, self.crosses + product
        twos = self.seen * (self.seen - 1) // 2
        cross = self.crosses / max(twos, 1)
        whole = square + product + (self.pairs - self.seen) * cross
        norm = self.pairs * self.squares / self.seen + self.pairs * (self.pairs - 1) * cross
        # estimated products may add up to less than nothing; G is at least as long as one gradient by itself
        norm = torch.maximum(norm, square if self.seen < self.pairs else torch.zeros_like(square))
        return whole / self.pairs, norm.sqrt() / self.pairs


@dataclass(frozen=True)
class Streamed:
    """A pair whose ∇m is in the engine: its inputs, and its gap and the norm of g as they are estimated, [1] each."""

    inputs: PairInputs
    gaps: Gaps


def streamed(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe, stream: GradientStream
) -> Iterator[Streamed]:
    """The pairs of a group; the caller takes each one's gradient before it asks for the next."""
    products = Products(sum(map(len, group)))
    stream.start()
    for [batch] in grouped(group, 1):
        known = known_inputs(engine, objective, batch)
        found = engine.pair_loss(batch, margin_share(objective, known), per_token=objective.needs.per_token)
        engine.backward(found.loss)
        slope, norm = products.slope(*stream.measured())
        gap = torch.where(has_direction(norm), anchor.rho * slope / norm, torch.zeros_like(slope))[None]
        yield Streamed(known.with_policy(found.log_probs), Gaps(gap, norm[None], torch.ones_like(gap)))


def streamed_gaps(engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe) -> Gaps:
    """Gaps of the pairs of a group and norms of its direction as they were estimated, [n] each."""
    found = []
    for one in streamed(engine, objective, group, anchor, engine.stream(anchor.scope)):
        engine.discard_gradients()
        found.append(one.gaps)
    gaps, norms = torch.cat([one.gaps for one in found]), torch.cat([one.norm for one in found])
    return Gaps(gaps, norms, torch.ones_like(gaps))


def streamed_pass(
    engine: Engine, objective: Objective, state: ObjectiveState, window: Window, anchor: AnchorProbe
) -> StepOutput:
    """Loss of the window, and its gradient: each pair's, times what its weight is, as it comes."""
    totals, losses, collected = totals_of(window), [], []
    stream = engine.stream(anchor.scope)
    for group in grouped(window, group_size(anchor, window)):
        for one in streamed(engine, objective, group, anchor, stream):
            probed = diagnosed([one.gaps])
            inputs = with_probed(one.inputs, probed)
            terms, _ = objective.terms(inputs, state)
            stream.add(objective.pulls(inputs, terms, totals)[0])
            with torch.no_grad():
                losses.append(objective.loss(inputs, terms, totals))
            collected.append(objective.metrics(inputs, terms) | dict(probed.diagnostics))
    stream.finish()
    return output_of(window, losses, collected, state)
