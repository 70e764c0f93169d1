"""The typed configuration: composing it, checks that list every problem at once, hash and run directory.

Nothing here imports torch, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

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
from src.combinations import combination_problems
from src.errors import Problems
from src.schema import (
    AnnotateConfig,
    GapsConfig,
    GenerateConfig,
    PreflightConfig,
    PrepareConfig,
    RankingConfig,
    ReportConfig,
    ShowConfig,
    TrainConfig,
)

ROOT = Path(__file__).resolve().parent.parent
CONF = Path(os.environ.get("MARGINALIA_CONF") or ROOT / "conf")
"""Jobs of a cluster read the copy that was made when they were submitted (src/cluster/manifest.py)."""

NOT_HASHED = ("output_root", "cache_root", "prepare_workers", "run_dir", "logging")
"""Keys that change where a run writes, by how many processes, and what is shown of it, but not what it computes."""


LATER: dict[str, Any] = {
    "training.master": "float32",
    "training.gradients": "float32",
    "training.moments": "float32",
    "training.kept_forwards": 1,
    "training.max_tokens_per_forward": None,
    "model.layout": "prefix",
    "method.sketch_size": 128,
    "method.perturbation.sketch_size": 128,
}
"""Keys that came after results were recorded, with the value that leaves the computation as it was: at that value they
are no part of the hash, so recorded runs keep their names."""

ENGINE_HASHED = ("name", "device")
"""Keys of ``engine`` that are part of the hash; the others change how fast a run is, and how it waits."""

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


def hashed_view(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data, without what does not change the computation."""
    plain = OmegaConf.to_container(cast(DictConfig, config), resolve=True)
    assert isinstance(plain, dict)
    view = {str(key): value for key, value in plain.items() if key not in NOT_HASHED}
    view["debug"] = {"name": config.debug.name}
    view["engine"] = {key: plain["engine"][key] for key in ENGINE_HASHED}
    for key, usual in LATER.items():
        view = without_usual(view, key.split("."), usual)
    return view


def without_usual(tree: dict[str, Any], path: list[str], usual: Any) -> dict[str, Any]:
    """``tree`` without the value at ``path`` where it is ``usual``, or where there is none."""
    first, *rest = path
    if not isinstance(tree, dict) or first not in tree:
        return tree
    if rest:
        return {**tree, first: without_usual(tree[first], rest, usual)}
    return {name: value for name, value in tree.items() if name != first or value != usual}


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
