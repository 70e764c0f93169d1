"""One process on one device."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.deferred import Observed, Sketched, add_weighted, gradients_aside, slopes_of
from src.engine.optimizer import optimizer_and_schedule
from src.engine.perturb import (
    Piece,
    displaced,
    gradient_norm,
    scope_parameters,
    slopes_along_gradient,
    whole_pieces,
)
from src.engine.ranks import Ranks
from src.engine.split_master import load_masters, save_masters, split_weights
from src.engine.stream import GradientStream
from src.errors import UserError
from src.model.adapter import load_adapter_weights, save_weights, settings_of
from src.model.fused import FusedLoss, Share
from src.model.logps import Kernel, as_pairs
from src.model.sketch import Sketcher
from src.model.tape import record, unrecordable
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs
from src.schema import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


GRADIENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What gradients of split weights may accumulate in."""


class LocalEngine:
    """``Engine`` for a single process; bfloat16 means autocast over float32 weights, or over split ones."""

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, total_steps: int, device: str, dtype: str
    ) -> None:
        refuse_missing_device(device)
        self.device = device_of(device, self.ranks)
        self.compute = torch.bfloat16 if dtype == "bfloat16" else None
        self.model = self.placed(model)
        self.split = config.master == "split"
        if self.split:
            split_weights([p for p in self.model.parameters() if p.requires_grad], GRADIENTS[config.gradients])
        self.kernel = self.wrapped(Kernel(self.model))
        self.optimizer, self.schedule = optimizer_and_schedule(self.model, config, total_steps)
        self.kept_forwards = config.kept_forwards

    @property
    def ranks(self) -> Ranks:
        return Ranks()

    def placed(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model where it computes."""
        found: PreTrainedModel = model.to(self.device)  # type: ignore[arg-type]
        return found

    def wrapped(self, kernel: Kernel) -> torch.nn.Module:
        """The kernel as this engine calls it."""
        return kernel

    def at(self, step: int, doing: str) -> None:
        """Nobody waits for a single process."""

    def forwards(self, window: Iterable[PairBatch]) -> Iterator[PairBatch]:
        yield from window

    def autocast(self) -> AbstractContextManager[Any]:
        """Within the block operations compute in the engine's precision."""
        return torch.autocast(self.device.type, self.compute, enabled=self.compute is not None)

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        with self.autocast():
            return as_pairs(self.kernel(batch, per_token, prompt), prompt=prompt)

    def pair_loss(self, batch: PairBatch, share: Share, *, per_token: bool = False, prompt: bool = False) -> FusedLoss:
        with self.autocast():
            loss, *found = self.kernel(batch, per_token, prompt, share)
        return FusedLoss(loss, as_pairs(found, prompt=prompt))

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def gradient_norm(self, scope: PerturbedScope = "full", *, adaptive: bool = False) -> Tensor:
        return gradient_norm(self.pieces(scope), adaptive=adaptive)

    def pieces(self, scope: PerturbedScope) -> list[Piece]:
        """Weights of full precision and accumulated gradients over ``scope``, as far as this rank holds them."""
        return whole_pieces(scope_parameters(self.model, scope).values())

    @contextmanager
    def perturbed(self, scale: Tensor, scope: PerturbedScope, *, adaptive: bool = False) -> Iterator[Tensor]:
        with displaced(self.pieces(scope), scale, self.compute, adaptive=adaptive) as applied:
            self.discard_gradients()
            yield applied

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        with self.autocast():
            moved = scope_parameters(self.model, scope)
            return slopes_along_gradient(self.model, batch, moved, adaptive=adaptive, per_token=per_token)

    def unrecordable(self) -> str | None:
        return unrecordable(self.model)

    def record(
        self,
        batch: PairBatch,
        share: Share,
        *,
        per_token: bool = False,
        learning: bool = True,
        summed: bool = False,
    ) -> Observed:
        with self.autocast():
            log_probs, recording = record(
                self.model, batch, share, per_token=per_token, learning=learning, summed=summed
            )
        return Observed(log_probs, len(batch), recording)

    def weigh(self, observed: Sequence[Observed], factors: Tensor | None) -> None:
        add_weighted(self.model, observed, factors, self.ranks)

    def gradients_aside(self) -> AbstractContextManager[None]:
        return gradients_aside(self.model.parameters())

    def sketched(self, observed: Observed, scope: PerturbedScope, size: int) -> Sketched:
        assert observed.recording is not None
        only = list(scope_parameters(self.model, scope).values())
        with torch.no_grad():
            return Sketched(Sketcher(self.model, only, size).of(observed.recording), observed.pairs)

    def sketched_slopes(self, sketched: Sequence[Sketched]) -> tuple[Tensor, Tensor]:
        return slopes_of(sketched, self.ranks)

    def stream(self, scope: PerturbedScope) -> GradientStream:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return GradientStream(scope_parameters(self.model, scope).values(), trained)

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), max_norm, gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        self.discard_gradients()

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def save_model(self, directory: Path) -> None:
        (save_masters if self.split else save_weights)(self.model, directory)

    def save_shards(self, directory: Path) -> Future[Any] | None:
        """Nothing: the model and ``training_state`` are whole."""
        return None

    def training_state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(self.device),
        }

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        (load_masters if self.split else load_weights)(self.model, checkpoint / "model")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        restore_random_state(state["random"], self.device)


def device_of(device: str, ranks: Ranks) -> torch.device:
    """Where this rank computes: ``auto`` takes CUDA where there is one."""
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank)


def refuse_missing_device(device: str) -> None:
    """Raise ``UserError`` for cuda on a machine without it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda, but torch finds no CUDA device here; use engine.device=cpu or auto")


def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy the weights of a checkpoint, or its adapter alone, into ``model`` in place, bit for bit."""
    if settings_of(model) is not None:
        load_adapter_weights(model, directory)
        return
    shards = sorted(directory.glob("*.safetensors"))
    if len(shards) == 1:
        load_model(model, shards[0], strict=True)
        return
    from transformers import AutoModelForCausalLM

    model.load_state_dict(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())


def seed_everything(seed: int) -> None:
    """Start the random generators of this process, those of its devices included, at ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The random generators of this process."""
    state = {
        "python": random.getstate(),
        "numpy": tuple_without_arrays(np.random.get_state()),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the random generators of this process where ``random_state`` found them."""
    random.setstate(nested_tuple(state["python"]))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])


def tuple_without_arrays(state: Any) -> tuple[Any, ...]:
    """numpy's generator state as plain numbers, which a safe unpickler reads."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)


def nested_tuple(value: Any) -> Any:
    """Lists back to tuples, as ``random.setstate`` wants them."""
    return tuple(nested_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value
