"""Recipes and models: every value has a source, equals the published one, and reaches the configuration of a run."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from src.cli import register_schemas
from src.config import CONF, finished

RECIPES = sorted((CONF / "recipe").glob("*.yaml"))
MODELS = sorted((CONF / "model").glob("*.yaml"))
PUBLISHED = [path for path in RECIPES if not path.stem.endswith("__tiny")]
HPARAMS = CONF.parent.parent / "shared" / "hparams.yaml"

COMMON = "papers/amapo/common"
README = "external_reference_values/SimPO_README"
GAPPO = ("papers/gappo/shared_loss", "papers/gappo/common", "papers/gappo")
HH = "papers/gapo/models/Pythia-2.8B_HH_noise"
SOURCES = {
    "sft__llama3_8b_base": ("papers/amapo/sft", COMMON),
    "sft__mistral_7b_base": ("papers/amapo/sft", COMMON),
    "sft__pythia_2_8b": (f"{HH}/SFT", "external_reference_values/Dr_DPO_repo"),
    "dpo__llama3_8b_base": (f"{README}/DPO/Llama3-Base", COMMON),
    "dpo__llama3_8b_instruct": (f"{README}/DPO/Llama3-Instruct", COMMON),
    "dpo__mistral_7b_base": (f"{README}/DPO/Mistral-Base", COMMON),
    "dpo__mistral_7b_instruct": (f"{README}/DPO/Mistral-Instruct", COMMON),
    "dpo__gemma2_9b_instruct": (f"{README}/DPO/Gemma", "papers/gammapo/common"),
    "dpo__pythia_2_8b": (f"{HH}/DPO",),
    "simpo__llama3_8b_base": (f"{README}/SimPO/Llama3-Base", COMMON),
    "simpo__llama3_8b_instruct": (f"{README}/SimPO/Llama3-Instruct", COMMON),
    "simpo__mistral_7b_base": (f"{README}/SimPO/Mistral-Base", COMMON),
    "simpo__mistral_7b_instruct": (f"{README}/SimPO/Mistral-Instruct", COMMON),
    "simpo__gemma2_9b_instruct": (f"{README}/SimPO/Gemma", "papers/gammapo/common"),
    "simpo__qwen2_5_0_5b_instruct": GAPPO,
    "simpo__gemma2_2b": GAPPO,
    "amapo__llama3_8b_base": ("papers/amapo/models/Llama3-8B-Base/AMaPO", COMMON),
    "amapo__llama3_8b_instruct": ("papers/amapo/models/Llama3-8B-Instruct/AMaPO", COMMON),
    "amapo__mistral_7b_base": ("papers/amapo/models/Mistral-7B-Base/AMaPO", COMMON),
    "amapo__mistral_7b_instruct": ("papers/amapo/models/Mistral-7B-Instruct/AMaPO", COMMON),
}
"""Where a recipe's values are found in hparams.yaml; the first node that has one of the key's names decides."""

NAMES = {
    "training.learning_rate": ("learning_rate", "lr"),
    "training.global_batch_size": ("global_batch_size", "effective_batch", "batch_size"),
    "training.epochs": ("epochs",),
    "training.warmup_ratio": ("warmup_ratio",),
    "training.scheduler": ("lr_scheduler",),
    "training.max_grad_norm": ("max_grad_norm",),
    "dataset.max_length": ("max_length",),
    "dataset.max_prompt_length": ("max_prompt_length",),
    "method.beta": ("beta",),
    "method.gamma_beta_ratio": ("gamma_ratio", "gamma"),
    "method.statistics": ("stat_batch_released",),
}
"""A recipe's key and what hparams.yaml calls it. GapPO's `gamma` counts as a ratio, since its beta is 1."""

LABELS = {"qwen2_5_0_5b_instruct": "Qwen2.5-0.5B-Instruct", "gemma2_2b": "Gemma-2-2B"}
"""What hparams.yaml calls a model where one entry lists several."""

ELSEWHERE = {"model.path", "model.init"}
"""Keys that hparams.yaml has under no common name."""

UNSTATED = {
    ("simpo__qwen2_5_0_5b_instruct", "dataset.max_prompt_length"),
    ("simpo__gemma2_2b", "dataset.max_prompt_length"),
}
"""Values that no source states; their comment says inferred."""

PARAMETERS = {
    "llama3_8b_base": 8_030_261_248,
    "llama3_8b_instruct": 8_030_261_248,
    "mistral_7b_base": 7_241_732_096,
    "mistral_7b_instruct": 7_241_732_096,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b_instruct": 9_241_705_984,
    "qwen2_5_0_5b_instruct": 494_032_768,
    "qwen2_5_7b_instruct": 7_615_616_512,
    "pythia_2_8b": 2_775_208_960,
}
"""Sizes of the published weights (model cards)."""


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything below ``node``."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def values_of(recipe: Path) -> dict[str, Any]:
    """A recipe's values by dotted key (read as Hydra reads them: `5.0e-7` is a number)."""
    container = OmegaConf.to_container(OmegaConf.load(recipe))
    assert isinstance(container, dict)
    return dict(leaves({str(key): value for key, value in container.items()}))


@pytest.mark.parametrize("model", sorted(PARAMETERS))
def test_architecture_has_the_size_of_the_published_weights(model: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    container: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{model}.yaml").architecture)
    values: dict[str, Any] = container
    architecture = AutoConfig.for_model(**values)
    assert {key: getattr(architecture, key) for key in values} == values
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(architecture)  # type: ignore[no-untyped-call]
    assert sum(parameter.numel() for parameter in weights.parameters()) == PARAMETERS[model]


def composed(*overrides: str) -> Any:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return finished(hydra.compose("train", overrides=list(overrides)))


def test_counts_of_recipes_and_models() -> None:
    assert len(RECIPES) == 24
    assert len(MODELS) == 10
    assert {path.stem for path in PUBLISHED} == set(SOURCES)
    assert {path.stem for path in MODELS} == {*PARAMETERS, "tiny"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_an_existing_method_and_model(recipe: Path) -> None:
    method, model = recipe.stem.split("__")
    assert (CONF / "method" / f"{method}.yaml").is_file()
    assert (CONF / "model" / f"{model}.yaml").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_recipe_has_a_source(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    valued = [line for line in lines if line.startswith("  ") and not line.lstrip().startswith("#")]
    assert len(valued) == len(values_of(recipe)) >= 4
    assert [line for line in valued if not line.partition("# source: ")[2].strip()] == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_reaches_the_configuration_of_a_run(recipe: Path) -> None:
    method, model = recipe.stem.split("__")
    config = composed(f"method={method}", f"model={model}")
    for key, value in values_of(recipe).items():
        assert OmegaConf.select(config, key) == value, key


def test_command_line_wins_over_recipe() -> None:
    config = composed("method=simpo", "model=llama3_8b_base", "method.beta=7", "training.learning_rate=1e-3")
    assert (config.method.beta, config.training.learning_rate) == (7, 1e-3)
    assert config.method.gamma_beta_ratio == 0.5


def test_published_values_are_those_of_the_collection() -> None:
    if not HPARAMS.is_file():
        pytest.skip("../shared/hparams.yaml, the collection of published values, is not here")
    collection = OmegaConf.to_container(OmegaConf.load(HPARAMS))
    compared = 0
    for recipe in PUBLISHED:
        for key, value in values_of(recipe).items():
            if key in ELSEWHERE or (recipe.stem, key) in UNSTATED:
                continue
            assert value == published(collection, recipe.stem, key), f"{recipe.stem}: {key}"
            compared += 1
    assert compared == 162


def published(collection: Any, recipe: str, key: str) -> Any:
    """What hparams.yaml says of ``key`` of ``recipe``."""
    shorter = recipe.endswith("__mistral_7b_base") and key.startswith("dataset.")
    names = tuple(f"{name}_mistral_base" for name in NAMES[key]) if shorter else NAMES[key]
    for source in SOURCES[recipe]:
        node = functools.reduce(operator.getitem, source.split("/"), collection)
        for name in names:
            if name in node:
                found = node[name]
                return found[LABELS[recipe.split("__")[1]]] if isinstance(found, dict) else found
    raise AssertionError(f"{recipe}: {key} is nowhere in {SOURCES[recipe]}")
