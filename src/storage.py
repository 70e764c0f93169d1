"""How weights, gradients and moments are stored (keys ``master``, ``gradients``, ``moments``): what fits together."""

from __future__ import annotations

from src.schema import TrainConfig

WHOLE = ("single", "ddp")
"""Engines whose ranks hold model and optimizer whole."""


def storage_problems(config: TrainConfig) -> list[str]:
    """Combinations that cannot work, as sentences."""
    training, problems = config.training, []
    if training.master in ("none", "bfloat16"):
        problems.append(
            f"bfloat16 weights without a master do not train at training.learning_rate={training.learning_rate:g}: an "
            "update is far smaller than the distance of two bfloat16 numbers (1.2e-4 for a weight of 0.02), and at "
            "1e-6 rounding keeps 8 % of it (results/benchmarks/bf16_updates.json); write training.master=split, which "
            "takes 4 bytes a parameter in all, or float32"
        )
    if training.gradients == "bfloat16" and training.master != "split":
        problems.append(
            f"training.gradients=bfloat16 needs bfloat16 weights, and training.master={training.master} has others; "
            "write training.master=split, or leave training.gradients out"
        )
    given = [key for key in (split(config), "training.moments=int8" * (training.moments == "int8")) if key]
    if given and training.optimizer != "adamw":
        problems.append(
            f"{' and '.join(given)}: this is how AdamW is stored, and training.optimizer={training.optimizer} has no "
            "such form; leave it out, or write training.optimizer=adamw"
        )
    if given and config.engine.name not in WHOLE:
        problems.append(
            f"{' and '.join(given)}: engine={config.engine.name} divides float32 masters and moments among its ranks "
            "itself, in its own layout, and more ranks make them as small; leave it out, or write engine=single"
        )
    return problems + (split_problems(config) if split(config) else [])


def split(config: TrainConfig) -> str:
    """The setting that stores split weights; "" without it."""
    return "training.master=split" if config.training.master == "split" else ""


def split_problems(config: TrainConfig) -> list[str]:
    """What split weights cannot go with."""
    problems = []
    if config.model.dtype != "bfloat16":
        problems.append(
            f"training.master=split stores bfloat16 weights, which model.dtype={config.model.dtype} contradicts; write "
            "model.dtype=bfloat16, or training.master=float32"
        )
    if config.adapter.name != "none":
        problems.append(
            f"training.master=split stores trained weights, which with adapter={config.adapter.name} are few: it would "
            "save nothing and round their forward; leave it out"
        )
    if config.engine.name == "ddp" and config.training.gradients != "bfloat16":
        problems.append(
            "training.master=split with engine=ddp averages gradients in the type of the weights; write "
            "training.gradients=bfloat16, or engine=single, or training.master=float32"
        )
    return problems
