"""Moving parameters along their gradient and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from src.data.collate import PairBatch
from src.errors import UserError
from src.model.logps import log_prob_slopes
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def scope_parameters(model: PreTrainedModel, scope: PerturbedScope) -> dict[str, nn.Parameter]:
    """The trained parameters that a perturbation moves, by name; raises ``UserError`` when there is none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if scope == "full":
        return trained
    head = output_layer(model)
    if scope == "backbone":
        return {name: p for name, p in trained.items() if p is not head or is_tied(model)}
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


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer is the input embedding."""
    return cast(Any, model).get_input_embeddings().weight is output_layer(model)


def scope_note(model: PreTrainedModel, scope: PerturbedScope) -> str:
    """In words, what a perturbation moves and what that means for its radius."""
    moved = scope_parameters(model, scope)
    count, everything = (sum(p.numel() for p in ps) for ps in (moved.values(), model.parameters()))
    text = f"the perturbation moves {count:,} of {everything:,} parameters ({scope})"
    if scope == "full" and count < everything:
        text += "; frozen ones stay, so the same rho is a larger change of each trained one"
    if scope != "full" and is_tied(model):
        text += "; the output layer is tied to the input embedding, so both move"
    return text


def gradient_norm(parameters: Sequence[nn.Parameter], *, adaptive: bool = False) -> Tensor:
    """Global L2 norm of the parameters' gradients g, or of θ∘g when ``adaptive`` (scalar, at least float32)."""
    with torch.no_grad():
        gradients = [p.grad * p if adaptive else p.grad for p in parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)


def direction_of(parameter: nn.Parameter, *, adaptive: bool) -> Tensor:
    """Where a parameter moves: along its gradient, or θ² times it when ``adaptive`` (ASAM)."""
    assert parameter.grad is not None
    return parameter.grad * parameter.detach().square() if adaptive else parameter.grad


@contextmanager
def displaced(
    parameters: Sequence[nn.Parameter], scale: Tensor, compute: torch.dtype | None, *, adaptive: bool = False
) -> Iterator[Tensor]:
    """Within the block every parameter stands at θ + scale·direction; after it at θ again, copied back bit for bit.

    The direction is the gradient, or θ² times it when ``adaptive``.

    Yields the applied fraction: the projection of the displacement that arithmetic in ``compute`` (``None``: the
    parameters' own type) sees on the intended one, 1 when nothing is lost in rounding.
    """
    moved = [p for p in parameters if p.grad is not None]
    kept = [p.detach().clone() for p in moved]
    try:
        with torch.no_grad():
            seen = wanted = torch.zeros((), dtype=torch.float64, device=scale.device)
            for parameter, before in zip(moved, kept, strict=True):
                intended = direction_of(parameter, adaptive=adaptive) * scale
                parameter.add_(intended)
                dtype = compute or parameter.dtype
                actual = parameter.to(dtype).to(intended.dtype) - before.to(dtype).to(intended.dtype)
                seen = seen + (actual * intended).sum(dtype=torch.float64)
                wanted = wanted + (intended * intended).sum(dtype=torch.float64)
        yield seen / wanted
    finally:
        with torch.no_grad():
            for parameter, before in zip(moved, kept, strict=True):
                parameter.copy_(before)


def slopes_along_gradient(
    model: PreTrainedModel,
    batch: PairBatch,
    parameters: Mapping[str, nn.Parameter],
    *,
    adaptive: bool,
    per_token: bool,
) -> tuple[PairLogProbs, PairLogProbs]:
    """Log-probs and their derivatives where ``parameters`` move along their gradient, or θ² times it."""
    directions = {
        name: direction_of(parameter, adaptive=adaptive)
        for name, parameter in parameters.items()
        if parameter.grad is not None
    }
    return log_prob_slopes(model, batch, parameters, directions, per_token=per_token)
