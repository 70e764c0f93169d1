"""The verbs by which the training step talks to whatever holds the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.deferred import Observed, Sketched
from src.engine.ranks import Ranks
from src.engine.stream import GradientStream
from src.model.fused import FusedLoss, Share
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs


class Engine(Protocol):
    """Holds model, optimizer and process group. A set of verbs, not a base class to inherit behaviour from."""

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes among which every forward is divided."""
        ...

    def at(self, step: int, doing: str) -> None:
        """The run has finished ``step`` and begins with ``doing``: said when a rank hangs there."""
        ...

    def forwards(self, window: Iterable[PairBatch]) -> Iterator[PairBatch]:
        """The batches of ``window``, each of which is to have its forward and its backward before the next is taken.

        The engine knows so which backward is the last, after which gradients must agree between ranks.
        """
        ...

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        """Forward with gradient, in the engine's compute precision; float32 out.

        Every rank is given the same ``batch`` and gets the log-probs of all its pairs; it computes its share of them,
        and the gradient flows through that share alone.
        ``per_token``: also token by token; ``prompt``: also those of the prompts' own tokens.
        """
        ...

    def pair_loss(self, batch: PairBatch, share: Share, *, per_token: bool = False, prompt: bool = False) -> FusedLoss:
        """The loss of this rank's share of ``batch``, to be differentiated once, and the log-probs of all its pairs.

        ``share`` gives the loss that some pairs add to the whole, of their log-probs alone; it is asked for groups of
        pairs whose logits exist just then, so that their gradient costs no second look at them.
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

    @property
    def kept_forwards(self) -> int:
        """Of how many forwards at most what ``record`` keeps may be there at once; 0 = of none."""
        ...

    def unrecordable(self) -> str | None:
        """Why ``record`` cannot be used here, in words; ``None`` where it can."""
        ...

    def record(
        self,
        batch: PairBatch,
        share: Share,
        *,
        per_token: bool = False,
        learning: bool = True,
        summed: bool = False,
    ) -> Observed:
        """Log-probs of ``batch``, and what is needed for the gradient of Σ f_i·m_i for any factors f.

        ``share``: Σ m_i over some pairs of the batch, of their log-probs and which they are. Costs a forward and the
        gradients of hidden states; ``summed``: also those of weights, for ``weigh`` without factors. Without
        ``learning`` the log-probs alone, by the same arithmetic.
        """
        ...

    def weigh(self, observed: Sequence[Observed], factors: Tensor | None) -> None:
        """Add the gradient of Σ f_i·m_i over the recorded pairs of all ranks, ``factors`` [n] in their order (``None``:
        each 1)."""
        ...

    def gradients_aside(self) -> AbstractContextManager[None]:
        """Within the block there is no gradient yet; after it the one from before, whatever the block left."""
        ...

    def sketched(self, observed: Observed, scope: PerturbedScope, size: int) -> Sketched:
        """Random projections of the recorded ∇m_i over ``scope`` (``src/model/sketch.py``, ``size``: its s)."""
        ...

    def sketched_slopes(self, sketched: Sequence[Sketched]) -> tuple[Tensor, Tensor]:
        """Estimates of ⟨∇m_i, g⟩ [n] and ‖g‖ for g = mean of ∇m_i over all these pairs."""
        ...

    def stream(self, scope: PerturbedScope) -> GradientStream:
        """What takes the gradients of single pairs, with products over ``scope``; of one process alone."""
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
        """Write weights and configuration, or an adapter alone, for ``AutoModelForCausalLM.from_pretrained``.

        This and the next three are called on every rank; rank 0 writes what is whole.
        """
        ...

    def save_shards(self, directory: Path) -> Future[Any] | None:
        """Write what each rank holds of weights and optimizer, where ``training_state`` and the model lack it.

        The future of an engine that writes on while training continues: what it writes is as it was at this call.
        """
        ...

    def training_state(self) -> dict[str, Any]:
        """Optimizer, schedule and random generators, as far as they are whole on rank 0."""
        ...

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Continue exactly from what the others wrote into ``checkpoint`` and gave as ``state``.

        Raises ``UserError`` for a checkpoint of another number of ranks, where the engine needs the same.
        """
        ...
