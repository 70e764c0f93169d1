"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from src.engine.chunked_adamw import ChunkedAdamW
from src.schema import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def optimizer_and_schedule(
    model: PreTrainedModel, config: TrainingConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer over the trained parameters, with decay on matrices only, and its schedule (the first step of a
    warm-up has rate 0)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # adapters have no vectors; DeepSpeed drops a group without parameters, which the schedule would miss
    optimizer = optimizer_of([group for group in groups if group["params"]], config)
    factor = partial(rate_factor, kind=config.scheduler, warmup=warmup_steps(config, total_steps), total=total_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(step: int, *, kind: str, warmup: int, total: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``total``, by transformers' formulas, to the bit.

    ``kind``: cosine or linear to 0 after ``warmup`` steps, or constant. Its schedules are not imported: with them come
    its trainer and peft.
    """
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    steps = max(1, total - warmup)
    share = (total - step) / steps if kind == "linear" else 0.5 * (1 + math.cos(math.pi * ((step - warmup) / steps)))
    return max(0.0, share)


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
