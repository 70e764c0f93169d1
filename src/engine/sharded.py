"""What engines share whose ranks each hold a part of weights, gradients and optimizer states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from src.combinations import OFFLOAD
from src.data.collate import PairBatch
from src.engine.distributed import DdpEngine
from src.engine.perturb import displaced
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs

SHARDS = "shards"
"""Folder of a checkpoint with what each rank holds."""


class ShardedEngine(DdpEngine, ABC):
    """``pieces`` are this rank's part; norm and perturbation are those of the parts of all ranks together."""

    @property
    def offloads(self) -> bool:
        """Whether states are kept in the memory of the CPU."""
        return self.engine.name.endswith(OFFLOAD)

    def autocast(self) -> AbstractContextManager[Any]:
        """Nothing: parameters are in the compute precision already when they compute."""
        return torch.autocast(self.device.type, enabled=False)

    @abstractmethod
    def publish(self) -> None:
        """Make forwards see what was written to the pieces."""

    def gradient_norm(self, scope: PerturbedScope = "full", *, adaptive: bool = False) -> Tensor:
        mine = super().gradient_norm(scope, adaptive=adaptive)
        return self.ranks.total(mine.to(self.device).square()).sqrt()

    @contextmanager
    def perturbed(self, scale: Tensor, scope: PerturbedScope, *, adaptive: bool = False) -> Iterator[Tensor]:
        shared: dict[str, Any] = {"total": self.ranks.total, "publish": self.publish, "adaptive": adaptive}
        # pieces have no name here: gradients that are forgotten below free their memory
        with displaced(self.pieces(scope), scale, self.compute, **shared) as applied:
            self.discard_gradients()
            yield applied

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        raise AssertionError("refused before training: src/combinations.py")

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        factor = torch.clamp(max_norm / (gradient_norm + 1e-6), max=1.0)
        for piece in self.pieces("full"):
            piece.gradient.mul_(factor.to(piece.gradient.device))
        self.update()
        self.schedule.step()
        self.discard_gradients()

    def update(self) -> None:
        """The optimizer's step over this rank's part."""
        self.optimizer.step()

    def training_state(self) -> dict[str, Any]:
        """What ``save_shards`` does not write."""
        return {"schedule": self.schedule.state_dict(), "random": self.random_states(), "ranks": self.ranks.size}
