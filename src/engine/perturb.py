"""Moving parameters along their gradient and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.objective.perturbations import PerturbedScope

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def scope_parameters(model: PreTrainedModel, scope: PerturbedScope) -> dict[str, nn.Parameter]:
    """The trained parameters that a perturbation moves, by name; raises ``UserError`` when there is none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if scope == "full":
        return trained
    head = output_layer(model)
    found = {name: parameter for name, parameter in trained.items() if parameter is head}
    if not found:
        raise UserError(
            "method.scope=lm_head, but the output layer is not trained in this run (adapters, or model.trainable=mlp, "
            "freeze it), so there is nothing to perturb; use method.scope=full, which moves what is trained"
        )
    return found


def output_layer(model: PreTrainedModel) -> Tensor:
    """The matrix from hidden states to logits."""
    weight: Tensor = cast(Any, model).get_output_embeddings().weight
    return weight


def scope_note(model: PreTrainedModel, scope: PerturbedScope) -> str:
    """In words, what a perturbation moves and what that means for its radius."""
    moved = scope_parameters(model, scope)
    count, everything = (sum(p.numel() for p in ps) for ps in (moved.values(), model.parameters()))
    text = f"the perturbation moves {count:,} of {everything:,} parameters ({scope})"
    if scope == "full" and count < everything:
        text += "; frozen ones stay, so the same rho is a larger change of each trained one"
    tied = cast(Any, model).get_input_embeddings().weight is output_layer(model)
    if scope == "lm_head" and tied:
        text += "; the output layer is tied to the input embedding, which moves with it"
    return text


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Global L2 norm of the parameters' gradients (scalar, at least float32)."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@contextmanager
def displaced(parameters: Sequence[nn.Parameter], scale: Tensor, compute: torch.dtype | None) -> Iterator[Tensor]:
    """Within the block every parameter stands at θ + scale·gradient; after it at θ again, copied back bit for bit.

    Yields the applied fraction: the projection of the displacement that arithmetic in ``compute`` (``None``: the
    parameters' own type) sees on the intended one, 1 when nothing is lost in rounding.
    """
    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    kept = [p.detach().clone() for p, _ in moved]
    try:
        with torch.no_grad():
            seen = wanted = torch.zeros((), dtype=torch.float64, device=scale.device)
            for (parameter, gradient), before in zip(moved, kept, strict=True):
                intended = gradient * scale
                parameter.add_(intended)
                dtype = compute or parameter.dtype
                actual = parameter.to(dtype).to(intended.dtype) - before.to(dtype).to(intended.dtype)
                seen = seen + (actual * intended).sum(dtype=torch.float64)
                wanted = wanted + (intended * intended).sum(dtype=torch.float64)
        yield seen / wanted
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(moved, kept, strict=True):
                parameter.copy_(before)
