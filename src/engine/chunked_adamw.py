"""torch's fused AdamW over weights and moments that are stored in another form, a bounded part of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from src.engine.moments8 import BLOCK, SMALLEST, decoded_mean, decoded_square, encoded_mean, encoded_square
from src.engine.split_master import joined, low_half, split_into

CHUNK = 2**22
"""Entries that are in float32 at a time, a multiple of a block: temporaries stay below a few hundred megabytes."""

DRAWS = 2**32
"""Seeds a step: parameters are told apart by their place, steps by their number."""


class ChunkedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) for split weights (``split_master``) and, with ``int8``, 8-bit moments.

    Every part is put together in float32, updated by torch's own fused AdamW and stored again, so that with float32
    moments the masters are those of ``torch.optim.AdamW(fused=True)`` over float32 weights, bit for bit. The state
    holds moments and the number of steps; the halves of the weights are the model's.
    """

    def __init__(
        self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0, int8: bool
    ) -> None:
        self.int8 = int8
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is there for torch's signature alone."""
        assert closure is None
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is not None:
                    self.update(parameter, group, place)

    def update(self, parameter: Tensor, group: dict[str, Any], place: int) -> None:
        """One step of one parameter, the ``place``-th."""
        state = self.state[parameter] or self.fresh(parameter)
        assert parameter.grad is not None
        weights, gradients, low = parameter.view(-1), parameter.grad.reshape(-1), low_half(parameter)
        steps: int = state["step"]
        beta1, beta2 = group["betas"]
        generator = torch.Generator(parameter.device).manual_seed(steps * DRAWS + place)
        for part in parts(parameter.numel()):
            weight = weights[part] if low is None else joined(weights[part], low[part])
            mean, square = moments(state, part)
            adamw(
                [weight], [gradients[part].to(weight.dtype)], [mean], [square], [],
                [torch.full((), float(steps), device=parameter.device)],
                fused=True, amsgrad=False, maximize=False,
                beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            )  # fmt: skip
            store_moments(state, part, mean, square, generator)
            if low is not None:
                split_into(weight, weights[part], low[part])
        state["step"] = steps + 1

    def fresh(self, parameter: Tensor) -> dict[str, Any]:
        """The state before the first step, kept from now on."""
        count, device = parameter.numel(), parameter.device
        quantized = self.int8 and count >= SMALLEST
        state: dict[str, Any] = self.state[parameter]
        state["step"] = 0
        state["exp_avg"] = torch.zeros(count, dtype=torch.int8 if quantized else torch.float32, device=device)
        state["exp_avg_sq"] = torch.zeros(count, dtype=torch.uint8 if quantized else torch.float32, device=device)
        if quantized:
            state["exp_avg_scale"] = torch.zeros(-(-count // BLOCK), device=device)
            state["exp_avg_sq_scale"] = torch.zeros(-(-count // BLOCK), device=device)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave, types unchanged: torch's own would make all of it the weights' type."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for place, saved in state_dict["state"].items():
            self.state[parameters[place]] = {
                name: value.to(parameters[place].device, copy=True) if isinstance(value, Tensor) else value
                for name, value in saved.items()
            }


def parts(count: int) -> Iterator[slice]:
    """``count`` entries, at most ``CHUNK`` at a time."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def blocks_of(part: slice) -> slice:
    """The blocks in which a part lies."""
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def moments(state: dict[str, Any], part: slice) -> tuple[Tensor, Tensor]:
    """Mean gradient and mean square of a part, in float32: views of the state where it holds them so."""
    mean, square = state["exp_avg"][part], state["exp_avg_sq"][part]
    if "exp_avg_scale" not in state:
        return mean, square
    blocks = blocks_of(part)
    return (
        decoded_mean(mean, state["exp_avg_scale"][blocks]),
        decoded_square(square, state["exp_avg_sq_scale"][blocks]),
    )


def store_moments(state: dict[str, Any], part: slice, mean: Tensor, square: Tensor, generator: torch.Generator) -> None:
    """Put the moments of a part back, where ``moments`` gave copies."""
    if "exp_avg_scale" not in state:
        return
    blocks = blocks_of(part)
    state["exp_avg"][part], state["exp_avg_scale"][blocks] = encoded_mean(mean)
    state["exp_avg_sq"][part], state["exp_avg_sq_scale"][blocks] = encoded_square(square, generator)
