"""Which pairs make up each optimizer step: a pure function of the step, so resuming needs no position but the step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from src.errors import UserError


@dataclass(frozen=True)
class WindowSampler:
    """Cuts an endless stream of shuffled passes over ``pairs`` pairs into windows of ``global_batch_size``.

    A window may reach over the end of a pass, so nothing is dropped between passes and no batch is short. The order
    does not depend on ``micro_batch_size``.
    """

    pairs: int
    global_batch_size: int
    micro_batch_size: int
    seed: int

    def window(self, step: int) -> list[list[int]]:
        """Indices of the micro-batches of optimizer step ``step`` (from 0)."""
        first = step * self.global_batch_size
        stream = [self.at(position) for position in range(first, first + self.global_batch_size)]
        size = self.micro_batch_size
        return [stream[start : start + size] for start in range(0, len(stream), size)]

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
