"""Every rank holds a shard of weights, gradients and optimizer: torch's fully_shard (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from src.engine.perturb import Piece, scope_parameters
from src.engine.sharded import SHARDS, ShardedEngine
from src.model.adapter import save_state
from src.model.logps import Kernel
from src.model.trainable import blocks_of
from src.objective.perturbations import PerturbedScope

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Fsdp2Engine(ShardedEngine):
    """Float32 shards of every parameter; each block is gathered when it computes, in bfloat16 where that is asked for.

    Gradients are reduced in float32 in every backward, so that no rank ever holds them whole.
    """

    def placed(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model as it is: its shards are moved, one block after the other."""
        return model

    def wrapped(self, kernel: Kernel) -> torch.nn.Module:
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))
        self.writers = dist.new_group(backend="gloo")
        # rank 0's weights count; the others have made none
        whole = kernel.model.state_dict() if self.ranks.is_main else {}
        blocks = blocks_of(kernel.model)
        how: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=self.compute, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy(self.device.type == "cuda") if self.offloads else OffloadPolicy(),
        }
        # block by block, so that a rank without weights never holds memory for more than one of them
        for block in blocks:
            materialized(block, self.device)
            fully_shard(block, reshard_after_forward=bool(self.engine.reshard_after_forward), **how)
        materialized(kernel, self.device)
        kernel.model.tie_weights()
        fully_shard(kernel, reshard_after_forward=False, **how)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(kernel.model, whole, options=options)
        for buffer in kernel.buffers():
            dist.broadcast(buffer, src=0)
        return kernel

    def synchronize(self, last: bool) -> None:
        """Gradients are reduced in every backward."""

    def pieces(self, scope: PerturbedScope) -> list[Piece]:
        self.publish()
        found = scope_parameters(self.model, scope).values()
        return [Piece(local(p.detach()), local(p.grad)) for p in found if p.grad is not None]

    def publish(self) -> None:
        """Let go of gathered parameters: forwards gather them anew, as the shards are then."""
        for module in self.kernel.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def unrecordable(self) -> str | None:
        return f"engine={self.engine.name} gathers weights for a forward and a backward alone"

    def save_model(self, directory: Path) -> None:
        whole = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.ranks.is_main:
            save_state(self.model, cast(Mapping[str, Tensor], whole), directory)

    def save_shards(self, directory: Path) -> Future[Any] | None:
        # copied now, written by a thread with a group of its own while training goes on
        writing = state_dict_saver.async_save(
            self.sharded_state(), checkpoint_id=directory / SHARDS, process_group=self.writers
        )
        return cast("Future[Any]", writing)

    def sharded_state(self) -> dict[str, Any]:
        """Weights and moments by the parameters' names, as shards."""
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        found = self.sharded_state()
        state_dict_loader.load(found, checkpoint_id=checkpoint / SHARDS)
        set_model_state_dict(self.model, found["model"])
        set_optimizer_state_dict(self.model, self.optimizer, found["optimizer"])
        if state["schedule"]["last_epoch"] == 0:
            self.optimizer.state.clear()  # torch saves the state before a first step as if that one had been made
        self.schedule.load_state_dict(state["schedule"])
        self.restore_random_states(state["random"])


def materialized(module: torch.nn.Module, device: torch.device) -> None:
    """Give memory, without values, to what of ``module`` has none yet."""
    for part in module.modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in own):
            part.to_empty(device=device, recurse=False)


def local(tensor: Tensor | None) -> Tensor:
    """What this rank holds of a sharded tensor."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
