"""Recipes and models: every row of the papers has its recipe, every value a source, and it reaches a run."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any, cast

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from src.cli import register_schemas
from src.config import CONF, finished, training_problems
from src.schema import TrainConfig
from tests.config.recipe_files import (
    FOLDER,
    PUBLISHED,
    RECIPES,
    included,
    names_of,
    overrides_of,
    own_sources,
    own_values,
    values_of,
)
from tests.config.rows import BLOCKS, MODELS, ONE_GPU, OWN, UNPRINTED, printed_rows, recipes_of

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
MODEL_FILES = sorted((CONF / "model").glob("*.yaml"))
TABLES = CONF.parent.parent / "shared" / "paper_tables.yaml"

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
    "gemma2_2b_instruct": 2_614_341_888,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_1b_instruct": 1_235_814_400,
    "pythia_410m": 405_334_016,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b_instruct": 1_543_714_304,
}
"""Sizes of the published weights (model cards)."""

UNNAMED_MODEL = {
    ("gapo", "3"): "Mistral-7B-Instruct-v0.2",
    ("gapo", "B"): "Pythia-2.8B",
    ("gapo", "G"): "Llama-3-8B-Base",
    ("gapo", "H"): "Mistral-7B-Instruct-v0.2",
    ("gamma_po", "4"): "Mistral-Instruct-7B",
}
"""The model of tables that have no column for it."""

NAMING = ("method", "variant", "scope")
"""Columns that name a row's method."""

NO_RUNS = {("gapo", "C"), ("gapo", "D"), ("gapo", "I"), ("gamma_po", "6"), ("gamma_po", "10"), ("amapo", "7")}
"""Tables that name methods, but not rows of trained models of their own: subsets, spectra, grids, judges' scores."""


def composed(*overrides: str) -> TrainConfig:
    return finished(unchecked(*overrides))


def unchecked(*overrides: str) -> DictConfig:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


@functools.cache
def sample_of(method: str) -> Path:
    """The first recipe of a method."""
    return next(recipe for recipe in RECIPES if names_of(recipe)[0] == method)


@functools.cache
def sample_config(method: str) -> DictConfig:
    """The composed configuration of that recipe."""
    return unchecked(*overrides_of(sample_of(method)))


# --- models -----------------------------------------------------------------------------------------------------------


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


def test_counts_of_recipes_and_models() -> None:
    assert len(RECIPES) == 197
    assert len(PUBLISHED) == 148
    assert {path.stem for path in MODEL_FILES} == {*PARAMETERS, "tiny"}


# --- which recipes there are ------------------------------------------------------------------------------------------


def test_every_row_of_the_papers_has_its_recipe_and_no_recipe_is_left_over() -> None:
    wanted = {recipe for paper, _, model, method in printed_rows() for recipe in recipes_of(paper, model, method)}
    assert {path.stem for path in PUBLISHED} == wanted | UNPRINTED | ONE_GPU
    assert Counter(block.paper for block in BLOCKS) == {"amapo": 8, "gamma_po": 3, "gapo": 6, "gappo": 2}
    assert len(printed_rows()) == 326
    assert {(paper, *names_of(path)[:2]) for path in PUBLISHED if (paper := names_of(path)[2])} == OWN


def test_rows_are_those_of_the_collected_tables() -> None:
    if not TABLES.is_file():
        pytest.skip("../shared/paper_tables.yaml, the collection of the papers' tables, is not here")
    papers: Any = OmegaConf.to_container(OmegaConf.load(TABLES).papers)
    found = set()
    for paper, content in papers.items():
        for name, table in content["tables"].items():
            naming = next((column for column in NAMING if column in table["columns"]), None)
            if naming is None or (paper, str(name)) in NO_RUNS:
                continue
            for row in table["rows"]:
                cells = dict(zip(table["columns"], row, strict=True))
                model = cells.get("model") or UNNAMED_MODEL[paper, str(name)]
                found.add((paper, str(name), model, cells[naming]))
    assert found == printed_rows()
    assert {model for _, _, model, _ in found} == {label for labels in MODELS.values() for label in labels}


def test_recipes_for_the_tiny_model() -> None:
    tiny = [names_of(path)[0] for path in RECIPES if path.stem.endswith("__tiny")]
    assert len(tiny) == 49
    assert {names_of(path)[0] for path in PUBLISHED} <= set(tiny) <= set(METHODS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_an_existing_method_and_model(recipe: Path) -> None:
    method, model, paper = names_of(recipe)
    assert method in METHODS
    assert (CONF / "model" / f"{model}.yaml").is_file()
    assert paper in ("", "gappo", "gamma_po")


# --- what is in a recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_recipe_has_a_source(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert max(map(len, lines)) <= 120
    sources = own_sources(recipe)
    assert sources.keys() == own_values(recipe).keys()
    assert [key for key, source in sources.items() if not source] == []
    assert len(values_of(recipe)) >= 4


@pytest.mark.parametrize("method", sorted({names_of(path)[0] for path in RECIPES}))
def test_recipe_reaches_the_configuration_of_a_run(method: str) -> None:
    """One recipe of every method is composed as a user's command composes it."""
    config = finished(sample_config(method))
    for key, value in values_of(sample_of(method)).items():
        assert OmegaConf.select(cast(DictConfig, config), key) == value, key


@pytest.mark.parametrize("recipe", [path for path in RECIPES if names_of(path)[2]], ids=lambda path: path.stem)
def test_recipe_of_one_paper_is_chosen_by_name(recipe: Path) -> None:
    method, model, _ = names_of(recipe)
    config = composed(*overrides_of(recipe))
    usual = composed(f"method={method}", f"model={model}")
    values = values_of(recipe)
    assert {key: OmegaConf.select(cast(DictConfig, config), key) for key in values} == values
    assert any(OmegaConf.select(cast(DictConfig, usual), key) != value for key, value in values.items())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_recipe_is_a_key_that_is_read(recipe: Path) -> None:
    values = values_of(recipe)
    moves = any(key.startswith("model.") for key in values)  # to another start than the sample's model has
    base = unchecked(*overrides_of(recipe)) if moves else sample_config(names_of(recipe)[0])
    assert [key for key in values if OmegaConf.select(base, key, default="absent") == "absent"] == []
    merged = OmegaConf.merge(base, OmegaConf.from_dotlist([f"{key}={value}" for key, value in values.items()]))
    assert training_problems(cast(DictConfig, merged)) == []


@pytest.mark.parametrize("recipe", [path for path in RECIPES if included(path)], ids=lambda path: path.stem)
def test_included_recipe_leaves_alone_what_makes_the_variant(recipe: Path) -> None:
    """Values of `gapo` must not undo `anchor_pairs: 1` of `gapo_instance`; scales of rewards and margins may change."""
    base = included(recipe)
    assert base is not None
    own = OmegaConf.load(CONF / "method" / f"{names_of(recipe)[0]}.yaml")
    if "defaults" in own:
        taken = {key.removeprefix("method.") for key in values_of(base).keys() - own_values(recipe).keys()}
        assert taken & {str(key) for key in own} <= {"beta", "gamma_beta_ratio", "rho"}
    assert names_of(base)[1] == names_of(recipe)[1] or recipe.stem in ONE_GPU


def test_shared_settings_agree() -> None:
    """The same setting of batch, schedule and lengths for all recipes of a model, but for a paper's own."""
    settings: dict[tuple[str, str], set[str]] = {}
    for recipe in PUBLISHED:
        values = values_of(recipe)
        where = (names_of(recipe)[1], "sft" if names_of(recipe)[0] == "sft" else str(values["dataset.max_length"]))
        shared = {
            key: value
            for key, value in values.items()
            if key.startswith(("training.", "dataset.")) and key != "training.learning_rate"
        }
        settings.setdefault(where, set()).add(str(sorted(shared.items())))
    assert {where: len(found) for where, found in settings.items() if len(found) > 1} == {}
    assert len(settings) == 16


def test_command_line_wins_over_recipe() -> None:
    config = composed("method=simpo", "model=llama3_8b_base", "method.beta=7", "training.learning_rate=1e-3")
    assert (config.method["beta"], config.training.learning_rate) == (7, 1e-3)
    assert config.method["gamma_beta_ratio"] == 0.5
    assert sorted(path.name for path in FOLDER.iterdir()) == [path.name for path in RECIPES]
