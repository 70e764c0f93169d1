"""The typed configuration: composing it, checks that list every problem at once, hash and run directory.

Nothing here imports torch, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.benchmark_schema import (
    AlpacaEvalConfig,
    ArenaHardConfig,
    CurvatureConfig,
    DashboardConfig,
    ListwiseConfig,
    LmHarnessConfig,
    MTBenchConfig,
    ReproduceConfig,
    RMBenchConfig,
    SubmitConfig,
)
from src.errors import Problems
from src.schema import (
    AdapterConfig,
    AnnotateConfig,
    GapsConfig,
    GenerateConfig,
    LoggingConfig,
    PreflightConfig,
    PrepareConfig,
    RankingConfig,
    ReportConfig,
    ShowConfig,
    TrainConfig,
    TrainingConfig,
)
from src.storage import storage_problems

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

NOT_HASHED = ("output_root", "cache_root", "prepare_workers", "run_dir", "logging")
"""Keys that change where a run writes, by how many processes, and what is shown of it, but not what it computes."""


LATER: dict[str, Any] = {
    "training.master": "float32",
    "training.gradients": "float32",
    "training.moments": "float32",
}
"""Keys that came after results were recorded, with the value that leaves the computation as it was: at that value they
are no part of the hash, so recorded runs keep their names."""

ENGINE_HASHED = ("name", "device")
"""Keys of ``engine`` that are part of the hash; the others change how fast a run is, and how it waits."""

ENGINE_READS = {
    "single": (),
    "ddp": ("timeout_s", "bucket_mb"),
    "fsdp2": ("timeout_s", "reshard_after_forward"),
    "zero2": ("timeout_s", "bucket_mb"),
    "zero3": ("timeout_s", "bucket_mb", "persistence_threshold"),
}
"""Further keys that each engine reads."""

OFFLOAD = "_offload"
"""How the names of engines end that keep states in the memory of the CPU."""


STOPPED = 75
"""Exit code of a run that was asked to stop and can go on: EX_TEMPFAIL, on which schedulers requeue."""


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "ranking": RankingConfig,
    "report": ReportConfig,
    "show": ShowConfig,
    "annotate": AnnotateConfig,
    "generate": GenerateConfig,
    "gaps": GapsConfig,
    "alpaca_eval": AlpacaEvalConfig,
    "arena_hard": ArenaHardConfig,
    "mt_bench": MTBenchConfig,
    "lm_harness": LmHarnessConfig,
    "rm_bench": RMBenchConfig,
    "listwise": ListwiseConfig,
    "curvature": CurvatureConfig,
    "reproduce": ReproduceConfig,
    "dashboard": DashboardConfig,
    "preflight": PreflightConfig,
    "prepare": PrepareConfig,
    "submit": SubmitConfig,
}


@cache
def register_schema(config_name: str) -> None:
    """Make the typed schema of conf/<config_name>.yaml known to Hydra, so that its defaults list can name it."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{config_name}_schema", node=SCHEMAS[config_name])


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """conf/<config_name>.yaml with ``overrides``, as Hydra composes it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose(config_name, overrides=overrides)
    register_schema(config_name)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, overrides=overrides)


def composed_train(overrides: list[str]) -> DictConfig:
    """conf/train.yaml with ``overrides``, as Hydra composes it."""
    return composed("train", overrides)


def compose_train(overrides: list[str], patch: dict[str, Any] | None = None) -> TrainConfig:
    """conf/train.yaml with ``overrides``, then ``patch``, checked and frozen: a program's second configuration."""
    from src.parts import with_parts

    merged = cast(DictConfig, OmegaConf.merge(composed_train(overrides), patch or {}))
    return finished(with_parts(merged, overrides))


def finished(config: DictConfig) -> TrainConfig:
    """The composed training configuration, checked by itself and frozen; raises ``Problems`` listing all of them."""
    if problems := training_problems(config):
        raise Problems(problems)
    return frozen(config)


def frozen(config: DictConfig) -> TrainConfig:
    """The composed configuration, resolved and read-only."""
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    merged = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(TrainConfig), plain))
    OmegaConf.set_readonly(merged, True)
    return cast(TrainConfig, merged)


def problems_of(config: DictConfig, schema: type) -> list[str]:
    """Missing values, choices and bounds of a composed configuration, as sentences."""
    missing = [
        f"{key} has no value; set it on the command line: {key}=..." for key in sorted(OmegaConf.missing_keys(config))
    ]
    return missing + bound_problems(config, schema, "")


def bound_problems(node: DictConfig, schema: type, prefix: str) -> list[str]:
    """Violations of ``one_of`` and ``number`` in ``node`` and below."""
    problems = []
    for spec in fields(schema):
        if OmegaConf.is_missing(node, spec.name):
            continue
        value, key = node[spec.name], prefix + spec.name
        default_factory = spec.default_factory
        if isinstance(default_factory, type) and hasattr(default_factory, "__dataclass_fields__"):
            problems += bound_problems(value, default_factory, f"{key}.")
            continue
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            problems.append(f"{key}={value} is not known; choose one of: {', '.join(choices)}")
        at_least, above = spec.metadata.get("at_least"), spec.metadata.get("above")
        if value is not None and at_least is not None and value < at_least:
            problems.append(f"{key}={value} is too small; give at least {at_least:g}")
        if value is not None and above is not None and not value > above:
            problems.append(f"{key}={value} cannot work; give a value above {above:g}")
    return problems


def training_problems(config: DictConfig) -> list[str]:
    """Everything that is wrong with a training configuration by itself, as sentences."""
    problems = problems_of(config, TrainConfig)
    return problems if gaps(config) else problems + combination_problems(cast(TrainConfig, config))


def gaps(config: DictConfig) -> list[str]:
    """Keys without a value, but for those of the source of data, without which all else can be checked."""
    return [str(key) for key in OmegaConf.missing_keys(config) if not str(key).startswith("dataset.source.")]


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
    if kind not in ("single", "ddp") and perturbation.get("probe") == "first_order":
        problems.append(
            f"method.probe=first_order differentiates forward through whole parameters, which engine={name} shards; "
            "use method.probe=perturb, or engine=ddp"
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


def hashed_view(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data, without what does not change the computation."""
    plain = OmegaConf.to_container(cast(DictConfig, config), resolve=True)
    assert isinstance(plain, dict)
    view = {str(key): value for key, value in plain.items() if key not in NOT_HASHED}
    view["debug"] = {"name": config.debug.name}
    view["engine"] = {key: plain["engine"][key] for key in ENGINE_HASHED}
    for key, usual in LATER.items():
        section, name = key.split(".")
        value = plain[section].get(name, usual)
        view[section] = {other: kept for other, kept in view[section].items() if other != name}
        if value != usual:
            view[section][name] = value
    return view


def config_hash(config: TrainConfig, base_hash: str = "") -> str:
    """Ten hex digits of the SHA-256 of what the run computes; ``base_hash`` is that of the SFT run it starts from."""
    text = json.dumps([hashed_view(config), base_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


NOT_MEASURED = (
    *("checkpoint", "output", "output_root", "records_root", "cache_root", "dry_run", "stage", "debug", "shard_size"),
    *("allow_unfinished",),
)
"""Keys of an evaluation that change where it writes and what is shown of it, but not what it measures."""


def evaluation_hash(benchmark: str, config: Any) -> str:
    """Ten hex digits of the SHA-256 of what an evaluation measures, whichever checkpoint it is of."""
    plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    assert isinstance(plain, dict)
    view = {str(key): value for key, value in plain.items() if key not in NOT_MEASURED}
    return hashlib.sha256(json.dumps([benchmark, view], sort_keys=True).encode()).hexdigest()[:10]


def run_directory(config: TrainConfig, base_hash: str = "") -> Path:
    """Where the run lives: a pure function of the configuration, the same on every rank and at every start."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    parts = (config.method["name"], config.model.name, config.dataset.name)
    name = "__".join((*parts, f"s{config.seed}", config_hash(config, base_hash)))
    return Path(config.output_root) / name
