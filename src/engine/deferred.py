"""Gradients of a window made after its pairs' weights are known, from one forward and backward (``src/model/tape.py``).

Forwards of several ranks are shared out as every other: each rank records its own pairs, log-probs are gathered, and a
weighted gradient is summed over ranks once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from src.engine.gather import gathered_rows
from src.engine.ranks import Ranks
from src.model.sketch import Sketches
from src.model.tape import Recording, weighted_gradients
from src.objective.types import PairLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Observed:
    """A forward of ``pairs`` pairs: the log-probs of all of them, without gradient, and what this rank recorded of its
    own; ``None`` where nothing was to be learned."""

    log_probs: PairLogProbs
    pairs: int
    recording: Recording | None


def own_factors(observed: Sequence[Observed], factors: Tensor | None, ranks: Ranks) -> list[Tensor | None]:
    """The factors of this rank's pairs of each forward, from those of all [n]; 0 for one that only stands in."""
    found: list[Tensor | None] = []
    start = 0
    for one in observed:
        own = ranks.share(one.pairs)
        if not own:
            found.append(one.log_probs.chosen.summed.new_zeros(1))
        else:
            found.append(None if factors is None else factors[start + own.start : start + own.stop])
        start += one.pairs
    return found


@torch.no_grad()
def add_weighted(model: PreTrainedModel, observed: Sequence[Observed], factors: Tensor | None, ranks: Ranks) -> None:
    """Add the gradient of Σ f_i·m_i over the pairs of all ranks to the parameters' gradients; ``factors`` [n], or 1."""
    recordings = [one.recording for one in observed if one.recording is not None]
    for parameter, gradient in weighted_gradients(model, recordings, own_factors(observed, factors, ranks)):
        if ranks.size > 1:
            dist.all_reduce(gradient)
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.grad_dtype or parameter.dtype)
        else:
            parameter.grad.add_(gradient)


@contextmanager
def gradients_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block there are no gradients yet; after it those from before, whatever the block left."""
    held = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@dataclass(frozen=True, slots=True)
class Sketched:
    """Sketches of this rank's pairs, [k, entries] each, of a forward of ``pairs`` pairs."""

    sketches: Sketches
    pairs: int


@torch.no_grad()
def slopes_of(sketched: Sequence[Sketched], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Estimates of ⟨∇m_i, g⟩ [n] and ‖g‖ (scalar), g = the mean of ∇m_i over the n pairs of all forwards."""
    pairs = sum(one.pairs for one in sketched)
    own = [ranks.share(one.pairs) for one in sketched]
    products: list[Tensor] = []
    square = torch.zeros(())
    for place in sorted(sketched[0].sketches):
        rows = torch.cat([one.sketches[place][: len(mine)] for one, mine in zip(sketched, own, strict=True)])
        mean = ranks.total(rows.sum(0)) / pairs
        products.append(rows @ mean)
        square = mean @ mean + square.to(mean)
    slopes = torch.stack(products).sum(0)
    found, start = [], 0
    for one, mine in zip(sketched, own, strict=True):
        part = slopes[start : start + len(mine)]
        start += len(mine)
        # a rank without pairs takes part with a row that nobody reads
        found += gathered_rows([part if mine else slopes.new_zeros(1)], one.pairs, ranks)
    return torch.cat(found), square.sqrt()
