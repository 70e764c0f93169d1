"""The configuration tree: every file composes, names agree, and what decides where a run lives."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from src.build import locate
from src.cli import register_schemas
from src.config import (
    CONF,
    ENGINE_HASHED,
    NOT_HASHED,
    ROOT,
    compose_train,
    config_hash,
    run_directory,
    training_problems,
)
from src.schema import TrainConfig

FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "local")
LEAST = {
    "model": 10,
    "method": 48,
    "dataset": 11,
    "noise": 4,
    "recipe": 192,
    "engine": 8,
    "logging": 3,
    "debug": 3,
    "selection": 2,
    "adapter": 2,
    "filter": 2,
    "generalization": 2,
    "generator": 3,
    "scorer": 5,
    "sweep": 30,
    "judge": 5,
    "launcher": 2,
    "cluster": 1,
    "decoding": 3,
    "evaluation": 2,
}
"""Groups and how many options each has at least."""

NAMED = {"model": "name", "method": "name", "dataset": "name", "engine": "name", "debug": "name", "logging": "backend"}
"""Groups whose options say their own name, and by which key."""

PLACED = {
    "selection": "selection@checkpoint",
    "filter": "filter@dataset",
    "generalization": "generalization@dataset",
}
"""Groups that fill keys of another one, and how they are chosen."""

ELSEWHERE = {
    "generator": "generate",
    "scorer": "annotate",
    "judge": "alpaca_eval",
    "launcher": "reproduce",
    "cluster": "submit",
}
"""Groups of other programs than training."""

PRESETS = ("gpt4", "gpt4_1106_preview")
"""Options that are another one with values of their own."""

NO_GROUP = ("decoding", "evaluation")
"""Folders of shared keys and of facts, from which nobody chooses."""

REQUIRED = {"local": ["dataset.source.path"], "scored_responses": ["dataset.source.path"]}
"""What a data set cannot know and the user must give."""


def composed(*overrides: str) -> DictConfig:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def choice_of(path: Path) -> list[str]:
    """The overrides that choose a file of a group."""
    return [f"{PLACED.get(path.parent.name, path.parent.name)}={path.stem}"]


def test_groups_have_their_options() -> None:
    found = {group: sum(path.parent.name == group for path in FILES) for group in {path.parent.name for path in FILES}}
    assert found.keys() == LEAST.keys()
    assert [f"{group}: {count}" for group, count in found.items() if count < LEAST[group]] == []
    assert {path.stem for path in CONF.glob("*.yaml")} == {
        "train",
        "ranking",
        "report",
        "gaps",
        "show",
        "annotate",
        "generate",
        "alpaca_eval",
        "arena_hard",
        "mt_bench",
        "lm_harness",
        "rm_bench",
        "listwise",
        "reproduce",
        "preflight",
        "prepare",
        "submit",
        "dashboard",
        "curvature",
    }


CHOSEN = [path for path in FILES if path.parent.name not in ("recipe", "sweep", *ELSEWHERE, *NO_GROUP)]
"""Recipes are composed in test_recipes.py, sweeps in tests/reporting/test_sweeps_presets.py."""


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_of_every_group_composes_and_has_its_name(path: Path) -> None:
    config = composed(*choice_of(path))
    group = path.parent.name
    if group in NAMED:
        assert config[group][NAMED[group]] == path.stem
    required = REQUIRED.get(path.stem, []) if group == "dataset" else []
    assert [str(key) for key in OmegaConf.missing_keys(config)] == required
    problems = training_problems(config)
    assert len(problems) == len(required), problems
    assert all(key in problem for key, problem in zip(required, problems, strict=True))


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name in ELSEWHERE],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_file_of_another_programs_group_names_all_fields_of_its_class(path: Path) -> None:
    group = path.parent.name
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        node = hydra.compose(ELSEWHERE[group], overrides=[f"{group}={path.stem}"])[group]
    fields = {spec.name: spec for spec in dataclasses.fields(locate(node._target_)) if spec.init}
    assert {str(key) for key in node} - {"_target_"} == set(fields)
    if path.stem in PRESETS:
        assert OmegaConf.missing_keys(node) == set()
        return
    required = {name for name, spec in fields.items() if spec.default is spec.default_factory is dataclasses.MISSING}
    read_elsewhere = {name for name in required if OmegaConf.is_interpolation(node, name)}
    assert OmegaConf.missing_keys(node) == {f"{group}.{name}" for name in required - read_elsewhere}
    for name in fields.keys() - required:
        spec = fields[name]
        default = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
        assert node[name] == default, name


@pytest.mark.parametrize("program", ["ranking", "report", "gaps", "listwise"])
def test_other_programs_compose(program: str) -> None:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(program)
    assert OmegaConf.missing_keys(config) == set()


def test_local_settings_come_after_recipes_and_before_the_command_line() -> None:
    """conf/local/default.yaml is this machine's and need not be there."""
    defaults = [
        str(next(iter(entry)))
        for entry in OmegaConf.load(CONF / "train.yaml").defaults
        if isinstance(entry, DictConfig)
    ]
    assert defaults.index("optional local") > defaults.index("optional recipe") > defaults.index("method")
    assert "conf/local" in (ROOT / ".gitignore").read_text()


# --- hash and run directory -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return compose_train(["method=amapo", "model=tiny"])


def changed(config: TrainConfig, key: str, value: Any) -> TrainConfig:
    """A copy with another value, checked by the schema."""
    other = cast(DictConfig, copy.deepcopy(config))
    OmegaConf.set_readonly(other, False)
    OmegaConf.update(other, key, value, force_add=True)
    return cast(TrainConfig, other)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_root", "elsewhere"),
        ("cache_root", "elsewhere"),
        ("run_dir", "elsewhere"),
        ("prepare_workers", 3),
        ("logging.backend", "wandb"),
        ("logging.project", "other"),
        ("debug.traceback", True),
    ],
)
def test_hash_ignores_where_and_how_a_run_is_shown(config: TrainConfig, key: str, value: Any) -> None:
    assert config_hash(changed(config, key, value)) == config_hash(config)


def test_every_other_value_changes_the_hash(config: TrainConfig) -> None:
    plain = OmegaConf.to_container(cast(DictConfig, config), resolve=True)
    seen = {config_hash(config)}
    for key, value in leaves(plain):
        section, _, name = key.partition(".")
        if section in NOT_HASHED or key == "debug.traceback" or (section == "engine" and name not in ENGINE_HASHED):
            continue
        another: Any = "x"
        if isinstance(value, bool):
            another = not value
        elif isinstance(value, (int, float)):
            another = value + 1
        elif isinstance(value, list):
            another = [*value, "<|other|>"]
        elif value is None:
            another = "x" if key.startswith("model.") else 7
        other = config_hash(changed(config, key, another))
        assert other not in seen, key
        seen.add(other)
    assert len(seen) > 60


def test_run_directory_names_what_is_run(config: TrainConfig) -> None:
    assert run_directory(config) == Path("runs") / f"amapo__tiny__toy__s0__{config_hash(config)}"
    assert run_directory(changed(config, "seed", 3)).name.startswith("amapo__tiny__toy__s3__")
    assert (
        run_directory(changed(config, "output_root", "/data/runs")) == Path("/data/runs") / run_directory(config).name
    )
    assert run_directory(changed(config, "run_dir", "/my/run")) == Path("/my/run")


def test_run_directory_depends_on_the_sft_base(config: TrainConfig) -> None:
    assert len({run_directory(config, base) for base in ("", "0123456789", "1234567890")}) == 3


def test_run_directory_is_a_function_of_the_configuration_alone(config: TrainConfig) -> None:
    """Not of the order of overrides, of spelling, of the working directory or of the process."""
    one = compose_train(["method=simpo", "model=tiny", "training.learning_rate=0.001", "seed=2"])
    two = compose_train(["seed=2", "training.learning_rate=1e-3", "method=simpo"])
    assert run_directory(one) == run_directory(two)
    code = "from src.config import *; print(run_directory(compose_train(['method=amapo', 'model=tiny'])))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        cwd="/", env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(run_directory(config)), done.stderr
