"""Every rank holds a shard of the optimizer, of gradients (ZeRO-2) and of weights too (ZeRO-3): DeepSpeed's engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from src.combinations import OFFLOAD
from src.engine.deepspeed_setup import settings_of, started
from src.engine.perturb import Piece, scope_parameters
from src.engine.sharded import SHARDS, ShardedEngine
from src.errors import UserError
from src.model.adapter import save_state
from src.model.adapter import settings_of as adapter_of
from src.model.logps import Kernel
from src.objective.perturbations import PerturbedScope
from src.schema import EngineConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Fragment:
    """What this rank holds of a parameter: entries from ``start`` on of the flattened whole, in full precision.

    ``weights`` is a view of the master weights; ``gradient`` is there once a window's last backward was made.
    """

    start: int
    weights: Tensor
    gradient: Tensor | None


class ZeroEngine(ShardedEngine):
    """Master weights, gradients and optimizer states are float32; parameters compute in bfloat16 where asked for.

    Accumulation, clipping and perturbation are of the masters' shards; ``publish`` makes parameters what masters say.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, total_steps: int, engine: EngineConfig, dtype: str
    ) -> None:
        self.stage = int(engine.name.removesuffix(OFFLOAD)[-1])
        self.last = True  # whether the next backward is the last of its window
        self.complete = False  # whether one was made
        super().__init__(model, config, total_steps, engine, dtype)
        model = self.model
        weights = {name: p.detach() for name, p in model.named_parameters()} if self.ranks.is_main else {}
        shapes = {name: p.shape for name, p in model.named_parameters()}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        buffers = [buffer.detach().clone() for buffer in model.buffers()]
        settings = settings_of(engine, self.stage, self.device, self.compute)
        self.kernel = started(self.kernel, self.optimizer, settings, self.device, self.ranks)
        self.sharded: Any = self.kernel.optimizer
        self.shapes = {name: shapes[name] for name in trained}
        # what is saved with the trained weights; an adapter is saved without them
        self.frozen = {} if adapter_of(model) else {n: w for n, w in weights.items() if n not in trained}
        self.take(weights, shapes)
        for buffer, first in zip(model.buffers(), buffers, strict=True):
            buffer.data = first.to(self.device)
            dist.broadcast(buffer.data, src=0)

    def placed(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model on the CPU, where memory that nothing is written to takes no room; DeepSpeed moves it."""
        if any(parameter.is_meta for parameter in model.parameters()):
            model.to_empty(device="cpu")
            model.tie_weights()
        return model

    def wrapped(self, kernel: Kernel) -> nn.Module:
        """The kernel itself: DeepSpeed wraps it together with its optimizer."""
        return kernel

    def take(self, weights: dict[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
        """Rank 0's ``weights``, which are used up, become everybody's, in full precision, one parameter at a time."""
        fragments = self.fragments()
        self.forget_gathered()
        for name, parameter in self.model.named_parameters():
            whole = torch.empty(shapes[name].numel(), device=self.device)
            if self.ranks.is_main:
                whole.copy_(weights.pop(name).flatten())
            dist.broadcast(whole, src=0)
            fragment = fragments.get(id(parameter))
            if fragment is not None:
                fragment.weights.copy_(part_of(whole, fragment))
            elif not parameter.requires_grad:
                start, mine = self.frozen_shard(parameter)
                mine.copy_(whole[start : start + mine.numel()])
        self.publish()

    def frozen_shard(self, parameter: Any) -> tuple[int, Tensor]:
        """Where this rank's part of a parameter without masters starts, and that part."""
        if self.stage == 2:
            return 0, parameter.data.view(-1)
        start, count = self.real_entries(parameter)
        return start, parameter.ds_tensor.data.view(-1)[:count]

    def real_entries(self, parameter: Any) -> tuple[int, int]:
        """Start and number of the entries of a ZeRO-3 parameter on this rank; the rest of its shard is padding."""
        each = parameter.partition_numel()
        start = min(self.ranks.rank * each, parameter.ds_numel)
        return start, min(each, parameter.ds_numel - start)

    def fragments(self) -> dict[int, Fragment]:
        """What this rank holds of trained parameters, by the parameters' id."""
        with torch.no_grad():
            return dict(self.fragments_of_two() if self.stage == 2 else self.fragments_of_three())

    def fragments_of_two(self) -> Iterator[tuple[int, Fragment]]:
        """ZeRO-2: the parameters of a group lie one after the other; each rank has a stretch of them."""
        for group, parameters in enumerate(self.sharded.bit16_groups):
            master = self.masters[group].detach()
            gradient = self.flat_gradient(group)
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    start, place = mapping.lp_fragment_address.start, mapping.get_hp_fragment_address()
                    held = None if gradient is None else gradient.narrow(0, place.start, place.numel)
                    yield id(parameter), Fragment(start, master.narrow(0, place.start, place.numel), held)

    def fragments_of_three(self) -> Iterator[tuple[int, Fragment]]:
        """ZeRO-3: each rank has a stretch of every parameter."""
        for group, parameters in enumerate(self.sharded.fp16_groups):
            master = self.masters[group]
            for number, parameter in enumerate(parameters):
                start, count = self.real_entries(parameter)
                offset = self.sharded.grad_position[self.sharded.get_param_id(parameter)][1]
                held = None
                if self.complete and self.offloads:
                    assert master.grad is not None
                    held = master.grad.narrow(0, offset, count)
                elif self.complete:
                    held = self.sharded.averaged_gradients[group][number].view(-1)[:count]
                yield id(parameter), Fragment(start, master.detach().narrow(0, offset, count), held)

    @property
    def masters(self) -> list[Tensor]:
        """This rank's flat master weights, one tensor for each group of parameters."""
        two, three = "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"
        found: list[Tensor] = getattr(self.sharded, two if self.stage == 2 else three)
        return found

    def flat_gradient(self, group: int) -> Tensor | None:
        """ZeRO-2: the gradient of the masters of ``group`` in one tensor, which then is what DeepSpeed holds too."""
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        if not self.complete:
            return None
        if self.offloads:
            return self.masters[group].grad
        found = self.sharded.averaged_gradients[group]
        if getattr(found, "flat_partition", None) is None:
            flat = self.sharded.flatten(found)
            found = self.sharded.averaged_gradients[group] = GradPartitionBufferGroup([flat], flat)
        flat_gradient: Tensor = found.flat_partition
        return flat_gradient

    def synchronize(self, last: bool) -> None:
        self.last = last

    def backward(self, loss: Tensor) -> None:
        self.kernel.set_gradient_accumulation_boundary(self.last)  # type: ignore[operator]
        earlier = self.gradients_to_keep()
        self.kernel.backward(loss * self.ranks.size, scale_wrt_gas=False)  # type: ignore[operator]
        self.complete = self.complete or self.last
        if earlier is not None and self.last:
            for group, before in enumerate(earlier):
                now = self.flat_gradient(group)
                if now is not None and now is not before:
                    now.add_(before)

    def gradients_to_keep(self) -> list[Tensor] | None:
        """Gradients that ZeRO-2 would replace, not add to, in a backward after the last one of a window."""
        if self.stage == 3 or not self.complete:
            return None
        assert self.last, "a window's gradient is used or discarded before the next one begins"
        assert not self.offloads, "a window's gradient is used or discarded before the next one begins"
        return [flat for group in range(len(self.masters)) if (flat := self.flat_gradient(group)) is not None]

    def pieces(self, scope: PerturbedScope) -> list[Piece]:
        fragments = self.fragments()
        moved = [fragments[id(p)] for p in scope_parameters(self.model, scope).values() if id(p) in fragments]
        found = [Piece(f.weights, f.gradient) for f in moved if f.gradient is not None]
        nothing = torch.empty(0, device=self.device)
        return found or [Piece(nothing, nothing)]

    @torch.no_grad()
    def publish(self) -> None:
        """Parameters become what the masters say, and nothing gathered before is used again."""
        self.forget_gathered()
        if self.stage == 2:
            self.sharded.update_lp_params()
            return
        for group in range(len(self.masters)):
            self.sharded._reassign_or_swap_out_partitioned_parameters(group)

    def forget_gathered(self) -> None:
        """ZeRO-3 keeps small parameters, and those that it expects next, gathered: let go of them."""
        if self.stage == 3:
            self.sharded._partition_all_parameters()

    def unrecordable(self) -> str | None:
        return f"engine={self.engine.name} takes gradients from its own backward alone"

    def update(self) -> None:
        self.kernel.step()  # type: ignore[operator]
        assert self.kernel.was_step_applied(), "DeepSpeed skipped the update"  # type: ignore[operator]

    def discard_gradients(self) -> None:
        held = self.sharded
        held.zero_grad(set_to_none=True)
        self.complete = False
        if self.offloads:
            held.reset_cpu_buffers()
            for master in self.masters:
                if master.grad is not None:
                    master.grad.zero_()
        if self.stage == 3:
            held.averaged_gradients = {}
            held.grad_partitions_flat_buffer.zero_()
            held._offload_boundary_param_ids = set()
            return
        held.micro_step_id = -1
        held._offload_accumulated_param_ids = set()
        for group in range(len(self.masters)):
            held.averaged_gradients[group] = held.all_grad_tensors[group] = None

    def save_model(self, directory: Path) -> None:
        """Master weights, gathered one parameter after the other; frozen ones as rank 0 was given them."""
        fragments, whole = self.fragments(), dict(self.frozen)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                gathered = self.gathered(self.shapes[name], fragments.get(id(parameter)))
                if self.ranks.is_main:
                    whole[name] = gathered.cpu()
        if not self.ranks.is_main:
            return
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if first[id(parameter)] in whole:
                whole[name] = whole[first[id(parameter)]]
        for name, buffer in self.model.named_buffers():
            if name in self.model.state_dict():
                whole[name] = buffer.cpu()
        save_state(self.model, whole, directory)
        say_float32(directory / "config.json")

    def gathered(self, shape: torch.Size, fragment: Fragment | None) -> Tensor:
        """A whole parameter on rank 0 from the fragments of all ranks; collective."""
        whole = torch.zeros(shape.numel(), device=self.device)
        if fragment is not None:
            part_of(whole, fragment).copy_(fragment.weights)
        dist.reduce(whole, dst=0)
        return whole.view(shape)

    def save_shards(self, directory: Path) -> None:
        place = directory / SHARDS
        place.mkdir(exist_ok=True)
        states = [dict(self.optimizer.state.get(master, {})) for master in self.masters]
        held = {"masters": [master.detach() for master in self.masters], "optimizer": states}
        torch.save(held, place / shard_name(self.ranks.rank))

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "rates": [group["lr"] for group in self.optimizer.param_groups]}

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        if state["ranks"] != self.ranks.size:
            raise UserError(
                f"{checkpoint} was written by {state['ranks']} ranks, and engine={self.engine.name} goes on from it "
                f"with as many, not with {self.ranks.size}; start {state['ranks']} ranks, or begin a new run with "
                f"engine=fsdp2, which may change their number, and model.path={checkpoint / 'model'}"
            )
        path = checkpoint / SHARDS / shard_name(self.ranks.rank)
        held = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for master, weights, moments in zip(self.masters, held["masters"], held["optimizer"], strict=True):
                master.copy_(weights)
                self.optimizer.state[master] = {name: self.beside(master, name, v) for name, v in moments.items()}
        for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self.publish()
        self.discard_gradients()
        self.schedule.load_state_dict(state["schedule"])
        self.restore_random_states(state["random"])

    def beside(self, master: Tensor, name: str, value: Any) -> Any:
        """A value of the optimizer's state where it is kept: with the masters, but for counts of steps not fused."""
        counts = name == "step" and not self.optimizer.defaults.get("fused")
        return value.to(master.device) if isinstance(value, Tensor) and not counts else value


def part_of(whole: Tensor, fragment: Fragment) -> Tensor:
    """The entries of a flattened parameter that a fragment holds."""
    return whole.narrow(0, fragment.start, fragment.weights.numel())


def shard_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank-{rank:05d}.pt"


def say_float32(path: Path) -> None:
    """Put the type of the saved weights into config.json, where the model wrote that in which it computes."""
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
