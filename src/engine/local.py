"""One process on one device, on accelerate."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_model
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.optimizer import optimizer_and_schedule
from src.engine.perturb import displaced, gradient_norm, scope_note, scope_parameters, slopes_along_gradient
from src.errors import UserError
from src.model.adapter import load_adapter_weights, save_weights, settings_of
from src.model.logps import pair_log_probs
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs
from src.schema import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalEngine:
    """``Engine`` for a single process; bfloat16 means autocast over float32 weights."""

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, total_steps: int, device: str, dtype: str
    ) -> None:
        refuse_missing_device(device)
        # accelerate keeps its settings per process; the next run of a sweep may want others
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if dtype == "bfloat16" else "no")
        if self.accelerator.distributed_type is not DistributedType.NO:
            raise UserError(
                "engine=single was started by a launcher of several processes, each of which would train alone; "
                "start it with plain python"
            )
        optimizer, schedule = optimizer_and_schedule(model, config, total_steps)
        self.model: PreTrainedModel
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = schedule

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        with self.accelerator.autocast():
            model = self.accelerator.unwrap_model(self.model)
            return pair_log_probs(model, batch, per_token=per_token, prompt=prompt)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def gradient_norm(self, scope: PerturbedScope = "full", *, adaptive: bool = False) -> Tensor:
        return gradient_norm(list(self.scope(scope).values()), adaptive=adaptive)

    def scope(self, scope: PerturbedScope) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name."""
        return scope_parameters(self.accelerator.unwrap_model(self.model), scope)

    @contextmanager
    def perturbed(self, scale: Tensor, scope: PerturbedScope, *, adaptive: bool = False) -> Iterator[Tensor]:
        compute = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None
        with displaced(list(self.scope(scope).values()), scale, compute, adaptive=adaptive) as applied:
            self.discard_gradients()
            yield applied

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            return slopes_along_gradient(model, batch, self.scope(scope), adaptive=adaptive, per_token=per_token)

    def perturbation_note(self, scope: PerturbedScope) -> str:
        return scope_note(self.accelerator.unwrap_model(self.model), scope)

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
        save_weights(self.accelerator.unwrap_model(self.model), directory)

    def training_state(self) -> dict[str, Any]:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": {
                "python": random.getstate(),
                "numpy": tuple_without_arrays(np.random.get_state()),
                "torch": torch.get_rng_state(),
            },
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state()
        return state

    def load(self, model_directory: Path, state: Mapping[str, Any]) -> None:
        load_weights(self.accelerator.unwrap_model(self.model), model_directory)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        generators = state["random"]
        random.setstate(nested_tuple(generators["python"]))
        name, keys, *rest = generators["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(generators["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"])


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


def tuple_without_arrays(state: Any) -> tuple[Any, ...]:
    """numpy's generator state as plain numbers, which a safe unpickler reads."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)


def nested_tuple(value: Any) -> Any:
    """Lists back to tuples, as ``random.setstate`` wants them."""
    return tuple(nested_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value
