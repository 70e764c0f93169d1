"""Moving parameters along their gradient and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    """In words, what a perturbation moves and what that means for its radius; raises ``UserError`` for nothing."""
    moved = scope_parameters(model, scope)
    count, everything = (sum(p.numel() for p in ps) for ps in (moved.values(), model.parameters()))
    text = f"the perturbation moves {count:,} of {everything:,} parameters ({scope})"
    if scope == "full" and count < everything:
        text += "; frozen ones stay, so the same rho is a larger change of each trained one"
    if scope != "full" and is_tied(model):
        text += "; the output layer is tied to the input embedding, so both move"
    return text


@dataclass(frozen=True, slots=True)
class Piece:
    """What this rank holds of a parameter: weights of full precision (a view that may be written to), their gradient.

    Both have one shape, that of the whole parameter where nothing is sharded.
    """

    weights: Tensor
    gradient: Tensor


def whole_pieces(parameters: Iterable[nn.Parameter]) -> list[Piece]:
    """Parameters that are whole on this rank and have a gradient."""
    return [Piece(parameter.detach(), parameter.grad) for parameter in parameters if parameter.grad is not None]


def gradient_norm(pieces: Sequence[Piece], *, adaptive: bool = False) -> Tensor:
    """L2 norm of the gradients g of all pieces, or of θ∘g when ``adaptive`` (scalar, at least float32)."""
    with torch.no_grad():
        gradients = [p.gradient * p.weights if adaptive else p.gradient for p in pieces]
        if all(gradient.dtype is not torch.bfloat16 for gradient in gradients):
            return torch.nn.utils.get_total_norm(gradients)
        # norms of bfloat16 would be rounded to three digits, by which clipping scales
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return whole


def direction_of(piece: Piece, *, adaptive: bool) -> Tensor:
    """Where a parameter moves: along its gradient, or θ² times it when ``adaptive`` (ASAM)."""
    return piece.gradient * piece.weights.square() if adaptive else piece.gradient


def unchanged(value: Tensor) -> Tensor:
    """The sum over ranks where every rank holds everything."""
    return value


def nothing() -> None:
    """What must be done after weights were written where forwards read the same memory."""


@contextmanager
def displaced(
    pieces: Sequence[Piece],
    scale: Tensor,
    compute: torch.dtype | None,
    *,
    adaptive: bool = False,
    total: Callable[[Tensor], Tensor] = unchanged,
    publish: Callable[[], None] = nothing,
) -> Iterator[Tensor]:
    """Within the block the weights stand at θ + scale·direction; after it at θ again, copied back bit for bit.

    The direction is the gradient, or θ² times it when ``adaptive``. ``total`` sums a number over the ranks that share
    the parameters; ``publish`` makes forwards see what was written to the pieces.

    Yields the applied fraction: the projection of the displacement that arithmetic in ``compute`` (``None``: the
    weights' own type) sees on the intended one, 1 when nothing is lost in rounding.
    """
    kept = [(piece.weights, piece.weights.clone()) for piece in pieces]
    try:
        with torch.no_grad():
            found = torch.zeros(2, dtype=torch.float64, device=scale.device)
            for piece, (_, before) in zip(pieces, kept, strict=True):
                intended = direction_of(piece, adaptive=adaptive) * scale
                piece.weights.add_(intended)
                dtype = compute or piece.weights.dtype
                actual = piece.weights.to(dtype).to(intended.dtype) - before.to(dtype).to(intended.dtype)
                found[0] += torch.dot(actual.flatten(), intended.flatten())
                found[1] += torch.dot(intended.flatten(), intended.flatten())
            seen, wanted = total(found)
            publish()
        pieces = ()  # so that gradients which the engine forgets now free their memory
        del piece, intended, actual, before
        yield seen / wanted
    finally:
        with torch.no_grad():
            for weights, before in kept:
                weights.copy_(before)
            publish()


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
        name: direction_of(piece, adaptive=adaptive)
        for name, parameter in parameters.items()
        for piece in whole_pieces([parameter])
    }
    return log_prob_slopes(model, batch, parameters, directions, per_token=per_token)
