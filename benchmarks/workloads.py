"""Models, pairs and steps of the program that the benchmarks of steps share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.data.mismatch import MismatchedPairs
from src.data.pairset import TokenizedPair
from src.engine.local import LocalEngine
from src.model.load import architecture_only, disable_dropout
from src.model.packed import share_prefixes
from src.objective.objective import Objective
from src.objective.types import PairLogProbs, ResponseLogProbs
from src.training.assemble import build_objective
from src.training.step import training_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

END = 1
"""The token that ends a response; 0 is padding."""


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes."""

    width: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int


SHAPES = {
    "nano": Shape(32, 2, 2, 2, 64, 256),
    "tiny": Shape(96, 2, 2, 2, 256, 768),
    "T4k": Shape(256, 4, 4, 2, 704, 4096),
    "L4k": Shape(512, 8, 8, 4, 1536, 4096),
    "S32k": Shape(384, 6, 6, 2, 1024, 32000),
    "S128k": Shape(256, 4, 4, 2, 704, 128256),
}
"""``L4k`` spends as much of its work in the head (8 %) as an 8B model does; the others are ruled by it."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts (all alike) and of responses (uniform, both ends included)."""

    prompt: int
    shortest: int
    longest: int


def model_of(shape: Shape, layout: str = "prefix", seed: int = 0) -> PreTrainedModel:
    """Random weights in float32, in training mode without dropout, as a run begins."""
    from transformers import LlamaConfig

    torch.manual_seed(seed)
    architecture = LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        intermediate_size=shape.inner,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
        use_cache=False,
    )
    model = architecture_only(architecture, dtype=torch.float32, attn_implementation="sdpa")
    disable_dropout(model)
    model.train()
    if layout == "prefix":
        share_prefixes(model)
    return model


def random_pairs(count: int, vocabulary: int, lengths: Lengths, seed: int) -> list[TokenizedPair]:
    """Pairs of random tokens, scored, whose responses end as responses do."""
    draw = random.Random(seed)

    def tokens(number: int) -> list[int]:
        return [draw.randrange(2, vocabulary) for _ in range(number)]

    def response() -> list[int]:
        return [*tokens(draw.randint(lengths.shortest, lengths.longest) - 1), END]

    return [
        TokenizedPair(
            index, f"p{index}", tokens(lengths.prompt), response(), response(), 1 + draw.random(), draw.random(), False
        )
        for index in range(count)
    ]


def reference_of(pairs: Sequence[TokenizedPair]) -> PairLogProbs:
    """Log-probs of about a random model's size that stand for the reference's; what they are changes no cost."""
    draw = random.Random(len(pairs))

    def side(responses: list[list[int]]) -> ResponseLogProbs:
        counts = torch.tensor([float(len(one)) for one in responses])
        return ResponseLogProbs(-8.0 * counts + torch.tensor([draw.random() for _ in responses]), counts)

    return PairLogProbs(side([one.chosen_ids for one in pairs]), side([one.rejected_ids for one in pairs]))


class NoUpdate(LocalEngine):
    """The engine, but that gradients are thrown away where weights would be updated."""

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        self.discard_gradients()


@dataclass(frozen=True)
class Own:
    """The program's own step: pairs laid out, loss, gradients, their norm and metrics, and what the engine updates."""

    engine: LocalEngine
    objective: Objective

    def batch(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        """The pairs with what the method needs of them, as the program's loader gives it."""
        needs = self.objective.needs
        if not needs.rejected:
            pairs = [replace(pair, rejected_ids=[]) for pair in pairs]
        batch = collate(pairs, reference_of(pairs) if needs.reference else None)
        if needs.mismatched:
            others = list(MismatchedPairs(pairs, 8192))
            batch = replace(batch, mismatched=collate(others, reference_of(others) if needs.reference else None))
        return batch.to(self.engine.device)

    def __call__(self, pairs: Sequence[TokenizedPair]) -> float:
        state = self.objective.initial_state()
        return float(training_step(self.engine, self.objective, state, [self.batch(pairs)], 1.0).loss)


def own(method: str, model: PreTrainedModel, *overrides: str, updates: bool = False, device: str = "cpu") -> Own:
    """The step of ``method`` on ``model``; without ``updates`` the weights stay as they are."""
    given = [f"method={method}", "model=tiny", "~recipe", "training.warmup_ratio=0", "training.scheduler=constant"]
    config = compose_train([*given, *overrides])
    kind = LocalEngine if updates else NoUpdate
    return Own(kind(model, config.training, 1000, device, config.model.dtype), build_objective(config))


def drawn(count: int, shape: Shape, lengths: Lengths) -> Callable[[int], list[TokenizedPair]]:
    """New pairs for every repetition."""
    return lambda seed: random_pairs(count, shape.vocabulary, lengths, seed)


def use_threads() -> None:
    """As many threads as OMP_NUM_THREADS says, which is 1 unless given."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
