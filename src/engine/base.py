"""The verbs by which the training step talks to whatever holds the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs


class Engine(Protocol):
    """Holds model, optimizer and process group. A set of verbs, not a base class to inherit behaviour from."""

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks among which a window is divided."""
        ...

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        """Forward with gradient, in the engine's compute precision; float32 out.

        ``per_token``: also token by token; ``prompt``: also those of the prompts' own tokens.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add this forward's share of the window's gradient."""
        ...

    def gradient_norm(self, scope: PerturbedScope = "full", *, adaptive: bool = False) -> Tensor:
        """Global L2 norm of the accumulated gradient g over ``scope``, or of θ∘g when ``adaptive`` (scalar)."""
        ...

    def perturbed(
        self, scale: Tensor, scope: PerturbedScope, *, adaptive: bool = False
    ) -> AbstractContextManager[Tensor]:
        """Within the block the weights stand at θ + scale·g over ``scope``; after it at θ, bit for bit.

        g is the accumulated gradient, or θ² times it when ``adaptive``.

        The accumulated gradient is forgotten on entering; one taken within the block stays. Yields the applied
        fraction: how much of the displacement the engine's compute precision sees, 1 when nothing is rounded away.
        """
        ...

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        """Log-probs and their derivatives along g over ``scope`` (see ``perturbed``), by forward mode."""
        ...

    def perturbation_note(self, scope: PerturbedScope) -> str:
        """In words, what a perturbation over ``scope`` moves; raises ``UserError`` when that is nothing."""
        ...

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        """Scale the gradient to at most ``max_norm``, update the weights, advance the schedule, forget the gradient."""
        ...

    def discard_gradients(self) -> None:
        """Forget the accumulated gradient without an update."""
        ...

    def learning_rate(self) -> float:
        """The rate of the next update."""
        ...

    def save_model(self, directory: Path) -> None:
        """Write weights and configuration, or an adapter alone, for ``AutoModelForCausalLM.from_pretrained``."""
        ...

    def training_state(self) -> dict[str, Any]:
        """Optimizer, schedule and random generators."""
        ...

    def load(self, model_directory: Path, state: Mapping[str, Any]) -> None:
        """Continue exactly from what ``save_model`` and ``training_state`` gave."""
        ...
