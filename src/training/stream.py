"""GAPO's gaps one pair after the other (``method.probe=stream``): no pair's gradient is looked at twice.

Wanted is Γ_i = ρ·⟨∇m_i, G⟩/‖G‖, G = Σ_j ∇m_j over the n pairs of a group. At pair k its own norm and its product with
the sum of those before are known; each of the n − k pairs to come is taken to have the mean product c of all two pairs
seen so far, and the mean square q:

    ⟨∇m_k, G⟩ ≈ ‖∇m_k‖² + ⟨∇m_k, Σ_{j<k} ∇m_j⟩ + (n − k)·c        ‖G‖² ≈ n·q + n·(n − 1)·c

For the last pair both are exact. Nothing is carried from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.engine.stream import GradientStream
from src.objective.objective import Objective, ObjectiveState
from src.objective.perturbations import AnchorProbe
from src.objective.types import PairLogProbs
from src.training.groups import SMALLEST_NORM, group_size, grouped
from src.training.inputs import KnownInputs, known_inputs
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
    """A pair whose ∇m is in the engine: the pair, its log-probs, its gap and the estimated norm of g (scalars)."""

    batch: PairBatch
    known: KnownInputs
    log_probs: PairLogProbs
    gap: Tensor
    norm: Tensor


def streamed(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe, stream: GradientStream
) -> Iterator[Streamed]:
    """The pairs of a group; the caller takes each one's gradient before it asks for the next."""
    products = Products(sum(map(len, group)))
    stream.start()
    for [batch] in grouped(group, 1):
        known = known_inputs(engine, objective, batch)

        def share(policy: PairLogProbs, pairs: slice, known: KnownInputs = known) -> Tensor:
            inputs = known.with_policy(policy, pairs)
            return objective.rewards(inputs.policy, inputs.reference).margins.sum()

        found = engine.pair_loss(batch, share, per_token=objective.needs.per_token)
        engine.backward(found.loss)
        slope, norm = products.slope(*stream.measured())
        fine = torch.isfinite(norm) & (norm >= SMALLEST_NORM)
        gap = torch.where(fine, anchor.rho * slope / norm, torch.zeros_like(slope))
        yield Streamed(batch, known, found.log_probs, gap, norm)


def streamed_gaps(
    engine: Engine, objective: Objective, group: Sequence[PairBatch], anchor: AnchorProbe
) -> tuple[Tensor, Tensor]:
    """Gaps of the pairs of a group and norms of its direction as they were estimated, [n] each."""
    gaps, norms = [], []
    for one in streamed(engine, objective, group, anchor, engine.stream(anchor.scope)):
        engine.discard_gradients()
        gaps.append(one.gap)
        norms.append(one.norm)
    return torch.stack(gaps), torch.stack(norms)


def streamed_pass(
    engine: Engine, objective: Objective, state: ObjectiveState, window: Window, anchor: AnchorProbe
) -> StepOutput:
    """Loss of the window, and its gradient: each pair's, times what its weight is, as it comes."""
    totals, losses, collected = totals_of(window), [], []
    stream = engine.stream(anchor.scope)
    for group in grouped(window, group_size(anchor, window)):
        for one in streamed(engine, objective, group, anchor, stream):
            inputs = replace(one.known.with_policy(one.log_probs), anchor_gaps=one.gap[None])
            terms, _ = objective.terms(inputs, state)
            stream.add(objective.pulls(inputs, terms, totals)[0])
            with torch.no_grad():
                losses.append(objective.loss(inputs, terms, totals))
            found = {"anchor/gap": one.gap[None], "anchor/gradient_norm": one.norm[None]}
            found |= {
                "anchor/applied": torch.ones_like(one.gap[None]),
                "anchor/skipped": torch.zeros_like(one.gap[None]),
            }
            collected.append(objective.metrics(inputs, terms) | found)
    stream.finish()
    return output_of(window, losses, collected, state)
