"""The toy policy of the GAPO vectors: a bigram softmax with 30 parameters, under the real training step.

logits(previous token) = E[previous] @ U; the first token of a response follows the prompt's one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from src.catalogue.measure import Arithmetic, Figures, plain
from src.catalogue.routes import ROUTES, Config, route_name, settings
from src.catalogue.rows import objective_of
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.perturb import displaced, gradient_norm, scope_parameters, slopes_along_gradient, whole_pieces
from src.engine.ranks import Ranks
from src.errors import UserError
from src.model.fused import FusedLoss, Share
from src.model.logps import pair_log_probs, pair_loss
from src.objective.objective import Objective
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs
from src.training.step import training_step
from src.training.window import StepOutput

Toy = Mapping[str, Any]

PER_PAIR = {
    "margin": "rewards/margins",
    "weight": "weight/gradient",
    "anchor_gap": "anchor/gap",
}
"""Numbers of each pair in the file, and the metric that is the same."""


OF_ANCHORS = ("batch_margin_grad_norm", "margin_grad_norm", "first_order_gap_batch")
"""Norm of the gradient behind each group's direction, norms of single pairs, and gaps to first order."""


class Bigram(nn.Module):
    """The policy with the methods of a language model that the log-prob kernel and the perturbations use."""

    def __init__(self, embedding: Tensor, output: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(embedding.shape[0], embedding.shape[1], _weight=embedding)
        self.lm_head = nn.Linear(output.shape[0], output.shape[1], bias=False)
        self.lm_head.weight = nn.Parameter(output.T.contiguous())
        self.config = None

    def base_model(self, input_ids: Tensor, use_cache: bool) -> tuple[Tensor]:
        """Hidden states [rows, time, width]: the embeddings."""
        return (self.embedding(input_ids),)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class BigramEngine:
    """The verbs of ``Engine`` that a step needs, over the toy policy; an update keeps its gradient instead."""

    def __init__(self, toy: Toy, arithmetic: Arithmetic) -> None:
        self.model: Any = Bigram(arithmetic.tensor(toy["E"]), arithmetic.tensor(toy["U"]))
        self.update: list[float] = []

    device = torch.device("cpu")
    ranks = Ranks()
    kept_forwards = 0

    def at(self, step: int, doing: str) -> None:
        """Nobody waits."""

    def forwards(self, window: Iterable[PairBatch]) -> Iterator[PairBatch]:
        yield from window

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        return pair_log_probs(self.model, batch, per_token=per_token, prompt=prompt)

    def pair_loss(self, batch: PairBatch, share: Share, *, per_token: bool = False, prompt: bool = False) -> FusedLoss:
        return pair_loss(self.model, batch, share, per_token=per_token, prompt=prompt)

    def backward(self, loss: Tensor) -> None:
        cast(Any, loss).backward()

    def gradient_norm(self, scope: PerturbedScope = "full", *, adaptive: bool = False) -> Tensor:
        return gradient_norm(whole_pieces(scope_parameters(self.model, scope).values()), adaptive=adaptive)

    @contextmanager
    def perturbed(self, scale: Tensor, scope: PerturbedScope, *, adaptive: bool = False) -> Iterator[Tensor]:
        moved = whole_pieces(scope_parameters(self.model, scope).values())
        with displaced(moved, scale, None, adaptive=adaptive) as applied:
            self.discard_gradients()
            yield applied

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        parameters = scope_parameters(self.model, scope)
        return slopes_along_gradient(self.model, batch, parameters, adaptive=adaptive, per_token=per_token)

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        """Keep the gradient as the file lays it out: E row by row, then U row by row."""
        output = self.model.lm_head.weight.grad.T
        self.update = [*self.model.embedding.weight.grad.flatten().tolist(), *output.flatten().tolist()]
        self.discard_gradients()

    def discard_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)


def toy_expected(vector: Config) -> Figures:
    """What the file says of a vector of the toy."""
    others = {name: plain(vector[name]) for name in PER_PAIR if name in vector}
    others |= {name: plain(vector[name]) for name in OF_ANCHORS if name in vector}
    return {
        "loss": {"batch_loss": [plain(vector["batch_loss"])]},
        "gradient": {"grad_theta": plain(vector["grad_theta"])},
        "others": others,
    }


def toy_measured(toy: Toy, vector: Config, arithmetic: Arithmetic) -> Figures:
    """The same of our objective, by one training step whose update is kept."""
    config = {key: value for key, value in vector["config"].items() if key != "tag"}
    if "gamma_abs" in vector:
        config["gamma_abs"] = vector["gamma_abs"]
    groups = config.get("groups") or [list(range(len(toy["pairs"])))]
    method, values = settings(ROUTES[route_name(None, str(vector["config"]["tag"]))], config)
    window = [collate(pairs_of(toy, groups))]
    order = [index for group in groups for index in group]
    output, update = stepped(toy, objective_of(method, values), window, arithmetic)
    others = {
        name: in_file_order(output.pair_metrics[metric], order) for name, metric in PER_PAIR.items() if name in vector
    }
    if "first_order_gap_batch" in vector:
        first_order = objective_of(method, {**values, "probe": "first_order"})
        found = stepped(toy, first_order, window, arithmetic)[0].pair_metrics["anchor/gap"]
        others["first_order_gap_batch"] = in_file_order(found, order)
    if "batch_margin_grad_norm" in vector:
        norms = dict(zip(order, output.pair_metrics["anchor/gradient_norm"].tolist(), strict=True))
        others["batch_margin_grad_norm"] = [norms[group[0]] for group in groups]
    if "margin_grad_norm" in vector:
        scope = {"scope": config["scope"]} if "scope" in config else {}
        own = objective_of("gapo_instance", {"beta": config["beta"], **scope})
        found = stepped(toy, own, window, arithmetic)[0].pair_metrics["anchor/gradient_norm"]
        others["margin_grad_norm"] = in_file_order(found, order)
    return {
        "loss": {"batch_loss": [output.loss.item()]},
        "gradient": {"grad_theta": update},
        "others": others,
    }


def stepped(
    toy: Toy, objective: Objective, window: Sequence[PairBatch], arithmetic: Arithmetic
) -> tuple[StepOutput, list[float]]:
    """One training step without clipping: what it reports, and the gradient it would have taken."""
    engine = BigramEngine(toy, arithmetic)
    output = training_step(cast(Any, engine), objective, objective.initial_state(), window, float("inf"))
    return output, engine.update


def pairs_of(toy: Toy, groups: Sequence[Sequence[int]]) -> list[TokenizedPair]:
    """The toy's pairs, those of a group next to each other; raises ``UserError`` unless each is in one group."""
    order = [index for group in groups for index in group]
    if sorted(order) != list(range(len(toy["pairs"]))):
        raise UserError(f"groups {groups} do not hold each of the {len(toy['pairs'])} pairs once")
    return [
        TokenizedPair(index, str(index), [pair["prompt"]], pair["chosen"], pair["rejected"], None, None, False)
        for index in order
        for pair in [toy["pairs"][index]]
    ]


def in_file_order(values: Tensor, order: Sequence[int]) -> list[float]:
    """Values of pairs that were taken in ``order``, by their place in the file."""
    placed = dict(zip(order, values.tolist(), strict=True))
    return [float(placed[index]) for index in range(len(order))]
