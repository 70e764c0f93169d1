"""How much memory a step needs: an estimate from the architecture alone, without weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from src.errors import UserError
from src.model.trainable import Share, select_trainable, trained_share
from src.schema import TrainConfig

GIB = 1024**3

ACTIVATION_COPIES = 34
"""Floats of width ``hidden_size`` that a transformer block keeps per token for its backward pass: two norms, queries,
keys, values, attention output and its projection, and three feed-forward tensors of up to four times the width."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def parameter_share(config: TrainConfig, vocabulary: int | None) -> Share:
    """Parameters of ``model.architecture`` (with ``vocabulary`` tokens if given) and its adapter, and how many of them
    the run trains; makes no weights. Raises ``UserError`` when there is nothing of the kind to train."""
    from transformers import AutoConfig

    from src.model.adapter import add_adapter
    from src.model.load import architecture_only, architecture_values

    values = architecture_values(config.model)
    if not values:
        raise UserError(
            f"model={config.model.name} gives no model.architecture, from which memory is estimated; add it"
        )
    if config.model.path is None and vocabulary is not None:
        values["vocab_size"] = vocabulary
    architecture = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = architecture_only(architecture)
        select_trainable(model, config.model.trainable)
        if config.adapter.name != "none":
            add_adapter(model, config.adapter, config.seed)
    return trained_share(model)


def training_memory(config: TrainConfig, share: Share, longest: int, both: bool) -> Memory:
    """Upper estimate with float32 weights on one device, and float32 gradients and moments of what is trained.

    ``longest``: tokens of the longest prompt with a response; ``both``: whether rejected responses are computed too.
    """
    architecture = config.model.architecture
    rows = config.training.micro_batch_size * (2 if both else 1)
    tokens = rows * longest
    width, layers = int(architecture["hidden_size"]), int(architecture["num_hidden_layers"])
    bytes_each = 2 if config.model.dtype == "bfloat16" else 4
    kept = layers + ACTIVATION_COPIES if config.model.gradient_checkpointing else layers * ACTIVATION_COPIES
    # logits, their exponentials and their gradient, in float32
    logits = 3 * 4 * tokens * int(architecture["vocab_size"])
    moments = 8 if config.training.optimizer == "adamw" else 4
    gradients, optimizer = 4 * share.trained, moments * share.trained
    return Memory(4 * share.total, gradients, optimizer, tokens * width * kept * bytes_each, logits)
