"""A model of a few thousand numbers, six pairs, and what perturbing it shows, computed by hand from full logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.local import LocalEngine
from src.objective.anchor import Anchor
from src.objective.links import Logistic
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe
from src.objective.reductions import Mean
from src.objective.regularizers import NoRegularizer
from src.objective.rewards import AverageLogProb
from src.objective.weights import Uniform
from src.schema import TrainingConfig

BETA, RHO = 2.0, 0.05
TRAINING = TrainingConfig(
    epochs=1,
    global_batch_size=6,
    micro_batch_size=6,
    learning_rate=0.1,
    scheduler="constant",
    warmup_ratio=0.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
    weight_decay=0.0,
    max_grad_norm=1e9,
)


def tiny(tied: bool = False) -> Any:
    torch.manual_seed(0)
    architecture = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(architecture).double()


def window(cuts: Sequence[int] = (6,)) -> list[PairBatch]:
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 40, (count,), generator=draw).tolist()

    pairs = [
        TokenizedPair(index, f"p{index}", ids(3), ids(2 + index % 4), ids(1 + (index * 2) % 5), None, None, False)
        for index in range(6)
    ]
    batches, start = [], 0
    for size in cuts:
        batches.append(collate(pairs[start : start + size]))
        start += size
    return batches


def engine(model: Any, dtype: str = "float32") -> LocalEngine:
    return LocalEngine(model, TRAINING, 10, "cpu", dtype)


def objective(**parts: Any) -> Objective:
    defaults: dict[str, Any] = {
        "reward": AverageLogProb(BETA),
        "target": Anchor(BETA, 0.5),
        "link": Logistic(),
        "weight": Uniform(),
        "reduce": Mean(),
        "regularizer": NoRegularizer(),
        "perturbation": AnchorProbe(RHO, "window"),
    }
    return Objective(**{**defaults, **parts})


def margins(model: Any, pairs: Sequence[PairBatch]) -> Tensor:
    """Reward margins from full logits, pair by pair, sharing nothing with the kernel."""
    found = []
    for batch in pairs:
        for index in range(len(batch)):
            averages = []
            for row in (index, index + len(batch)):
                mask, ids = batch.layout.supervised[row], batch.layout.input_ids[row]
                length = int(mask.nonzero().max()) + 1
                log_probs = model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
                places = [place for place in range(length) if mask[place]]
                averages.append(torch.stack([log_probs[place - 1, ids[place]] for place in places]).mean())
            found.append(BETA * (averages[0] - averages[1]))
    return torch.stack(found)


def by_hand(model: Any, groups: Sequence[Sequence[int]], head_only: bool = False) -> tuple[Tensor, Tensor]:
    """Exact and first-order gaps of the six pairs."""
    pairs = window()
    parameters = [model.lm_head.weight] if head_only else list(model.parameters())
    before = margins(model, pairs)
    exact, first = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for group in groups:
        direction = torch.autograd.grad(before[list(group)].mean(), parameters, retain_graph=True)
        norm = math.sqrt(sum(float((part * part).sum()) for part in direction))
        moved = copy.deepcopy(model)
        moving = [moved.lm_head.weight] if head_only else list(moved.parameters())
        with torch.no_grad():
            for parameter, part in zip(moving, direction, strict=True):
                parameter -= RHO * part / norm
            after = margins(moved, pairs)
        for index in group:
            own = torch.autograd.grad(before[index], parameters, retain_graph=True)
            first[index] = RHO * sum((a * b).sum() for a, b in zip(own, direction, strict=True)) / norm
            exact[index] = (before[index] - after[index]).detach()
    return exact, first
