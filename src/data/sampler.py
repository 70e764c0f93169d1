"""Which pairs make up each optimizer step: a pure function of the step, so resuming needs no position but the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from src.errors import UserError


@dataclass(frozen=True)
class WindowSampler:
    """Cuts an endless stream of shuffled passes over ``pairs`` pairs into windows of ``global_batch_size``.

    A window may reach over the end of a pass, so nothing is dropped between passes and no batch is short. The order
    does not depend on ``micro_batch_size``.

    ``micro_batch_size``: pairs of a forward over all ``ranks``, at most. ``max_tokens``: likewise tokens of one rank's
    part of it, of which pair i has ``tokens[i]``; a pair that has more is alone in its part.
    """

    pairs: int
    global_batch_size: int
    micro_batch_size: int
    seed: int
    ranks: int = 1
    max_tokens: int | None = None
    tokens: Sequence[int] = field(default=(), compare=False, repr=False)

    def window(self, step: int) -> list[list[int]]:
        """Indices of the micro-batches of optimizer step ``step`` (from 0), the same on every rank."""
        first = step * self.global_batch_size
        stream = [self.at(position) for position in range(first, first + self.global_batch_size)]
        forwards = []
        while stream:
            size = self.fitting(stream[: self.micro_batch_size])
            forwards.append(stream[:size])
            stream = stream[size:]
        return forwards

    def fitting(self, pairs: Sequence[int]) -> int:
        """How many of ``pairs``, from the first, one forward takes: as many for each rank as have room in every part.

        They stay in the window's order, which says whose statistics are taken together. Sorted by length they would
        save nothing, since packed rows have no padding.
        """
        if self.max_tokens is None:
            return len(pairs)
        for each in range(len(pairs) // self.ranks, 1, -1):
            parts = [pairs[rank * each : (rank + 1) * each] for rank in range(self.ranks)]
            if all(sum(self.tokens[index] for index in part) <= self.max_tokens for part in parts):
                return each * self.ranks
        return min(self.ranks, len(pairs))

    def at(self, position: int) -> int:
        """Index of the pair at ``position`` of the endless stream."""
        epoch, offset = divmod(position, self.pairs)
        return permutation(self.pairs, self.seed, epoch)[offset]

    def steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of a run; raises ``UserError`` when the pairs do not fill one batch."""
        full = int(epochs * self.pairs / self.global_batch_size + 1e-9)
        if full == 0 and max_steps is None:
            raise UserError(
                f"{epochs:g} epochs over {self.pairs} training pairs do not fill one batch of "
                f"training.global_batch_size={self.global_batch_size}; lower it, or raise training.epochs"
            )
        return full if max_steps is None else max_steps


@lru_cache(maxsize=4)
def permutation(pairs: int, seed: int, epoch: int) -> list[int]:
    """The order of pass ``epoch``."""
    order: list[int] = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(pairs).tolist()
    return order
