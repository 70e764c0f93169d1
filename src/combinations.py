"""What no single key of a training configuration shows: keys that cannot go together, and keys that nothing reads."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.schema import AdapterConfig, LoggingConfig, TrainConfig, TrainingConfig

ENGINE_READS = {
    "single": ("compile_blocks",),
    "ddp": ("timeout_s", "bucket_mb", "compile_blocks"),
    "fsdp2": ("timeout_s", "reshard_after_forward"),
    "zero2": ("timeout_s", "bucket_mb"),
    "zero3": ("timeout_s", "bucket_mb", "persistence_threshold"),
}
"""Further keys that each engine reads."""

OFFLOAD = "_offload"
"""How the names of engines end that keep states in the memory of the CPU."""

WHOLE = ("single", "ddp")
"""Engines whose ranks hold model and optimizer whole."""


def combination_problems(config: TrainConfig) -> list[str]:
    """What no single key shows: batch arithmetic, lengths, keys that nothing reads."""
    problems = []
    batch, micro = config.training.global_batch_size, config.training.micro_batch_size
    if micro >= 1 and batch % micro:
        fitting = [size for size in range(1, batch + 1) if batch % size == 0]
        near = min(fitting, key=lambda size: abs(size - micro))
        problems.append(
            f"training.global_batch_size={batch} cannot be cut into micro-batches of training.micro_batch_size={micro} "
            f"pairs; use training.micro_batch_size={near} or another divisor ({', '.join(map(str, fitting))})"
        )
    if config.dataset.max_prompt_length >= config.dataset.max_length:
        problems.append(
            f"dataset.max_prompt_length={config.dataset.max_prompt_length} leaves no room for a response within "
            f"dataset.max_length={config.dataset.max_length}; make max_prompt_length smaller"
        )
    if not 0 < config.dataset.validation_fraction < 1:
        problems.append(
            f"dataset.validation_fraction={config.dataset.validation_fraction:g} leaves a split empty; "
            "give a share of the prompts between 0 and 1, such as 0.1"
        )
    if config.training.warmup_ratio > 1:
        problems.append(f"training.warmup_ratio={config.training.warmup_ratio:g} is a share of the steps; give 0 to 1")
    problems += model_problems(config) + method_problems(config)
    problems += optimizer_problems(config.training) + storage_problems(config)
    problems += engine_problems(config)
    return problems + perturbation_problems(config) + adapter_problems(config) + logging_problems(config)


def logging_problems(config: TrainConfig) -> list[str]:
    """Keys of a mirror that was not chosen, and a table of no paper."""
    logging = config.logging
    if logging.backend != "none":
        return [] if logging.paper or not logging.table else [f"logging.table={logging.table} needs logging.paper"]
    given = [
        f"logging.{spec.name}={getattr(logging, spec.name)}"
        for spec in fields(LoggingConfig)
        if spec.name != "backend" and getattr(logging, spec.name) != getattr(LoggingConfig(), spec.name)
    ]
    if not given:
        return []
    return [f"{', '.join(given)} would not be read with logging=none; write logging=wandb_offline, or leave it out"]


def engine_problems(config: TrainConfig) -> list[str]:
    """Keys of another engine, and methods that the engine cannot serve."""
    name, problems = config.engine.name, []
    kind = name.removesuffix(OFFLOAD)
    others = {key for keys in ENGINE_READS.values() for key in keys} - set(ENGINE_READS.get(kind, ()))
    problems += [
        f"engine.{key}={getattr(config.engine, key)} would not be read with engine={name}; leave it out"
        for key in sorted(others)
        if getattr(config.engine, key) is not None
    ]
    perturbation = config.method.get("perturbation") or {}
    if kind != name and perturbation:
        problems.append(
            f"engine={name} keeps states in the memory of the CPU, where method={config.method['name']} would have to "
            f"move every weight there and back in each step; use engine={kind}, and checkpointing or more GPUs "
            "for room"
        )
    problems += probe_problems(config, kind, str(perturbation.get("probe")))
    return problems


def probe_problems(config: TrainConfig, kind: str, probe: str) -> list[str]:
    """Probes of GAPO that this engine, or checkpointing, leaves without what they look at."""
    name, problems = config.engine.name, []
    if kind not in WHOLE and probe in ("first_order", "sketch", "stream"):
        problems.append(
            f"method.probe={probe} looks at whole weights and their gradients, which engine={name} shards; "
            "use method.probe=perturb, or engine=ddp"
        )
    elif kind == "ddp" and probe == "stream":
        problems.append(
            "method.probe=stream adds up one pair's gradient after the other, and ranks see theirs at once; "
            "use method.probe=sketch, or engine=single"
        )
    if probe == "sketch" and config.model.gradient_checkpointing:
        problems.append(
            "method.probe=sketch looks at what layers were given, which model.gradient_checkpointing=true does not "
            "keep; use method.probe=stream, or model.gradient_checkpointing=false"
        )
    if probe in ("sketch", "first_order") and config.engine.compile_blocks:
        problems.append(
            f"method.probe={probe} looks into layers, which engine.compile_blocks=true hides; use method.probe=stream, "
            "or engine.compile_blocks=false"
        )
    return problems


def perturbation_problems(config: TrainConfig) -> list[str]:
    """Perturbations of pairs that no window has, or of an output layer that is not trained."""
    perturbation = config.method.get("perturbation") or {}
    batch, pairs = config.training.global_batch_size, perturbation.get("anchor_pairs")
    problems = []
    if isinstance(pairs, int) and pairs > batch:
        problems.append(
            f"anchor_pairs={pairs} pairs share one direction, but a window holds training.global_batch_size={batch}; "
            f"use method.anchor_pairs={batch}, or window"
        )
    frozen_by = "adapter=lora" if config.adapter.name != "none" else f"model.trainable={config.model.trainable}"
    if perturbation.get("scope") == "lm_head" and frozen_by != "model.trainable=full":
        problems.append(
            f"method.scope=lm_head perturbs the output layer, which {frozen_by} freezes, so nothing would move; "
            "use method.scope=full, which moves what is trained"
        )
    return problems


def optimizer_problems(training: TrainingConfig) -> list[str]:
    """Keys of the optimizer that was not chosen."""
    other = ("rmsprop_alpha",) if training.optimizer == "adamw" else ("adam_beta1", "adam_beta2")
    usual = {"rmsprop_alpha": 0.99, "adam_beta1": 0.9, "adam_beta2": 0.999}
    return [
        f"training.{name}={getattr(training, name):g} would not be read with training.optimizer={training.optimizer}; "
        "leave it out, or choose the other optimizer"
        for name in other
        if getattr(training, name) != usual[name]
    ]


def adapter_problems(config: TrainConfig) -> list[str]:
    """Keys of an adapter that was not chosen, or that cannot go together."""
    adapter, problems = config.adapter, []
    given = [spec.name for spec in fields(AdapterConfig) if getattr(adapter, spec.name) != spec.default]
    if adapter.name == "none" and given:
        keys = ", ".join(f"adapter.{name}={getattr(adapter, name)}" for name in given)
        problems.append(f"{keys} would not be read with adapter=none; write adapter=lora, or leave it out")
    if not isinstance(adapter.target_modules, (str, ListConfig)) or not adapter.target_modules:
        problems.append(
            f"adapter.target_modules={adapter.target_modules} names no layers; give all-linear, or a list such as "
            "[q_proj,v_proj]"
        )
    if adapter.name == "lora" and config.model.trainable != "full":
        problems.append(
            f"model.trainable={config.model.trainable} contradicts adapter=lora, which freezes all of the model's own "
            "parameters; use one of the two: adapter=none, or for adapters on the feed-forward projections alone "
            "model.trainable=full with adapter.target_modules=[gate_proj,up_proj,down_proj]"
        )
    if adapter.dropout:
        problems.append(
            f"adapter.dropout={adapter.dropout:g} cannot work: statistics, anchors and the reference at the start "
            "compare forwards of the same weights, which dropout makes differ; give 0, and a smaller adapter.r against "
            "overfitting"
        )
    return problems


def model_problems(config: TrainConfig) -> list[str]:
    """``model.path``, ``model.init`` and what goes with them must agree."""
    model = config.model
    problems = []
    if model.init == "scratch" and model.path is not None:
        problems.append(
            f"model.path={model.path} would not be read, since model.init=scratch; write model.init=pretrained"
        )
    elif model.path is None and model.revision is not None:
        problems.append(
            f"model.revision={model.revision} would not be read without model.path; set that, or leave it out"
        )
    if model.init == "pretrained" and model.path is None:
        problems.append("model.init=pretrained needs model.path: a hub id or a directory written by save_pretrained")
    elif model.path is None and not model.architecture:
        problems.append(
            f"model.init={model.init} without model.path needs model.architecture, the values of its configuration"
        )
    return problems


def method_problems(config: TrainConfig) -> list[str]:
    """Statistics that do not fit the batch, and constants of the method that no part reads."""
    problems = []
    method = OmegaConf.to_container(cast(DictConfig, config.method), resolve=False)
    assert isinstance(method, dict)
    unread = unread_constants(method)
    constants = [name for name in constants_of(method) if name not in unread]
    hint = f"; this method's constants are {', '.join(constants)}" if constants else ""
    problems += [
        f"method.{name} is read by no part of method={method.get('name')}, so it would change nothing; remove it{hint}"
        for name in unread
    ]
    statistics = config.method.get("statistics")
    if isinstance(statistics, int) and statistics > 0 and config.training.global_batch_size % statistics:
        problems.append(
            f"method.statistics={statistics} pairs do not divide training.global_batch_size="
            f"{config.training.global_batch_size}; statistics are taken within one optimizer step, so choose a divisor"
        )
    return problems


def constants_of(method: dict[Any, Any]) -> list[str]:
    """Names of the method's flat constants."""
    return [str(key) for key, value in method.items() if not isinstance(value, dict) and key != "name"]


def unread_constants(method: dict[Any, Any]) -> list[str]:
    """Constants that no part's interpolation reaches, directly or through another constant."""
    parts = [value for value in method.values() if isinstance(value, dict)]
    return sorted(set(constants_of(method)) - constants_read_by(method, parts))


def constants_read_by(method: dict[Any, Any], node: Any) -> set[str]:
    """Constants of the method that interpolations in ``node`` reach, directly or through another constant."""
    texts = [json.dumps(node)]
    unread = set(constants_of(method))
    while texts:
        text = texts.pop()
        for name in sorted(unread):
            if f"${{method.{name}}}" in text or f"${{..{name}}}" in text:
                unread.discard(name)
                texts.append(json.dumps(method[name]))
    return set(constants_of(method)) - unread


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
