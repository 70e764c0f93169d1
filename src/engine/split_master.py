"""A float32 master weight in two halves of 16 bits, the upper of which is the bfloat16 weight of the forward pass.

A bfloat16 weight has the upper half of a float32's bits. The master is stored as that half, rounded to nearest (ties
away from zero), and a signed remainder: 4 bytes a parameter in all, where a bfloat16 copy beside a master takes 6.
Together they are the master, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTRIBUTE = "low_half"
"""Where a split parameter keeps the lower half of its master."""


def low_half(parameter: Tensor) -> Tensor | None:
    """The lower half of a split parameter's master (int16, flat); ``None`` where the parameter is its own master."""
    found: Tensor | None = getattr(parameter, ATTRIBUTE, None)
    return found


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The float32 master of a bfloat16 and an int16 half, elementwise; a new tensor."""
    return high.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(low).view(torch.float32)


@torch.no_grad()
def split_into(master: Tensor, high: Tensor, low: Tensor) -> None:
    """Write the halves of a float32 ``master`` into ``high`` (bfloat16, rounded) and ``low`` (int16); flat, all three.

    ``master`` is used up.
    """
    bits = master.view(torch.int32)
    rounded = (bits + 0x8000).bitwise_right_shift_(16)
    high.view(torch.int16).copy_(rounded)
    low.copy_(bits.sub_(rounded.bitwise_left_shift_(16)))


@torch.no_grad()
def split_weights(parameters: Iterable[nn.Parameter], gradients: torch.dtype) -> None:
    """Store float32 parameters as halves, in place: bfloat16 weights, whose gradients accumulate in ``gradients``."""
    for parameter in parameters:
        assert parameter.dtype is torch.float32
        master = parameter.detach().reshape(-1)
        high = torch.empty(parameter.shape, dtype=torch.bfloat16, device=parameter.device)
        low = torch.empty_like(master, dtype=torch.int16)
        split_into(master.clone(), high.view(-1), low)
        parameter.data = high
        setattr(parameter, ATTRIBUTE, low)
        parameter.grad_dtype = gradients


def master_of(parameter: Tensor) -> Tensor:
    """The float32 master of a split parameter, on the CPU."""
    low = low_half(parameter)
    assert low is not None
    return joined(parameter.detach().cpu().view(-1), low.cpu()).view(parameter.shape)


def master_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of ``model`` with float32 masters, on the CPU; tied weights are one tensor."""
    named = model.state_dict(keep_vars=True)
    masters = {tensor: master_of(tensor) for tensor in set(named.values()) if low_half(tensor) is not None}
    return {name: masters.get(tensor, tensor.detach()) for name, tensor in named.items()}


def save_masters(model: PreTrainedModel, directory: Path) -> None:
    """Write a model of split parameters as one of float32 weights, so that whatever reads it has the masters."""
    model.save_pretrained(directory, state_dict=master_state(model))
    # transformers writes the type of the weights in memory, in which a reader would then load the file
    model.config.dtype = torch.float32
    model.config.save_pretrained(directory)


@torch.no_grad()
def load_masters(model: PreTrainedModel, directory: Path) -> None:
    """Read a checkpoint of float32 weights into a model of split parameters, bit for bit.

    Raises ``UserError`` when it lacks one of them.
    """
    shards: dict[str, Path] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as opened:
            shards |= dict.fromkeys(opened.keys(), shard)
    names: dict[Tensor, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor, []).append(name)
    for tensor, called in names.items():
        # of tied weights a file holds one
        found = [name for name in called if name in shards]
        if not found:
            raise UserError(f"the weights in {directory} lack {called[0]}; give the model that they were saved from")
        with safe_open(shards[found[0]], framework="pt") as opened:
            value = opened.get_tensor(found[0]).to(tensor.device)
        low = low_half(tensor)
        if low is None:
            tensor.copy_(value)
        else:
            split_into(value.reshape(-1), tensor.detach().view(-1), low)
