"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from src.engine.chunked_adamw import ChunkedAdamW
from src.schema import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def optimizer_and_schedule(
    model: PreTrainedModel, config: TrainingConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer over the trained parameters, with decay on matrices only, and transformers' schedule (the first
    step of a warm-up has rate 0)."""
    from transformers import get_scheduler

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # adapters have no vectors; DeepSpeed drops a group without parameters, which the schedule would miss
    optimizer = optimizer_of([group for group in groups if group["params"]], config)
    schedule = get_scheduler(
        "constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        optimizer,
        num_warmup_steps=warmup_steps(config, total_steps),
        num_training_steps=total_steps,
    )
    return optimizer, schedule


def optimizer_of(groups: list[dict[str, object]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Fused AdamW, over split weights and 8-bit moments where the configuration says so, or RMSprop as in the DPO
    authors' code (torch's: no momentum, not centred)."""
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=config.rmsprop_alpha, eps=config.adam_epsilon)
    rate, betas, epsilon = config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    if config.master == "split" or config.moments == "int8":
        return ChunkedAdamW(groups, lr=rate, betas=betas, eps=epsilon, int8=config.moments == "int8")
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps in which the learning rate rises: ``warmup_steps``, or else ``warmup_ratio`` of all, rounded up."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * total_steps)
