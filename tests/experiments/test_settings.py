"""Printed hyper-parameters beside ours: what agrees, on which source, and what is said where nothing does."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from src.errors import UserError
from src.experiments.experiment import Experiment, find, load
from src.experiments.settings import Setting, settings_of, source_of
from src.reporting.settings_tables import write_settings


def table(paper: str, number: str) -> Experiment:
    return load(find(paper, number))


def by_where(experiment: Experiment) -> dict[tuple[str, ...], Setting]:
    return {setting.where: setting for setting in settings_of(experiment)}


def printed_otherwise(experiment: Experiment, row: int, column: str, value: object) -> Experiment:
    """The experiment, had the paper printed another value."""
    assert experiment.published is not None
    rows = list(experiment.published.rows)
    rows[row] = {**rows[row], column: value}
    return replace(experiment, published=replace(experiment.published, rows=tuple(rows)))


@pytest.mark.parametrize(("paper", "number", "values"), [("gapo", "A", 36), ("amapo", "9", 8), ("gamma_po", "7", 16)])
def test_the_papers_own_settings_are_the_recipes(paper: str, number: str, values: int) -> None:
    found = settings_of(table(paper, number))
    assert len(found) == values
    assert all(setting.agrees for setting in found)
    assert all(setting.source for setting in found)


def test_a_value_that_differs_is_said_to_differ() -> None:
    found = by_where(printed_otherwise(table("gapo", "A"), 5, "gemma2", 2.5))  # beta
    assert found["beta", "gemma2"] == Setting(("beta", "gemma2"), "2.5", "10", "GAPO Table A", agrees=False)
    assert sum(setting.agrees is False for setting in found.values()) == 1


def test_ranges_are_those_of_the_presets_and_recipes_are_compared_with_them() -> None:
    found = by_where(table("amapo", "7"))
    assert len(found) == 14
    assert all(setting.agrees for setting in found.values())
    margins = found["SimPO", "gamma"]  # printed as absolute margins, 1.6 = 2.0 * 0.8
    assert margins.ours == "0.3, 0.5, 1, 1.2, 1.4, 1.6"
    assert "1.6 on Mistral-7B-Base" in margins.source
    assert "outside the range: 1.375 (Llama3-8B-Instruct), 0.25 (Mistral-7B-Instruct)" in margins.source
    assert "outside" not in found["AMaPO", "beta"].source


def test_a_printed_constant_without_a_counterpart_is_not_compared() -> None:
    found = by_where(table("gamma_po", "6"))
    assert found["beta-DPO", "gamma"].agrees is None
    assert found["beta-DPO", "gamma"].ours == ""
    assert sum(setting.agrees is None for setting in found.values()) == 1
    other = by_where(printed_otherwise(table("gamma_po", "6"), 0, "values", [0.01, 0.05]))
    assert other["DPO", "beta"].agrees is False


def test_sources_are_the_comments_beside_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("training:  # optimizer\n  learning_rate: 1  # source: Table 9\nmethod:  # constants\n  beta: 2\n")
    assert source_of(path, "training.learning_rate") == "Table 9"
    assert source_of(path, "method.tau") == "default of conf/method or conf/train.yaml"


def test_files_in_four_formats_count_what_agrees(tmp_path: Path) -> None:
    paths, text = write_settings(printed_otherwise(table("amapo", "9"), 0, "beta", "<3>"), tmp_path, "COMMAND")
    assert [path.name for path in paths] == [f"amapo_table9_settings.{name}" for name in ("md", "tex", "csv", "html")]
    assert "7 of 8 printed values are ours too; 0 have no counterpart." in text
    rows = list(csv.DictReader(paths[2].open()))
    assert [row["agrees"] for row in rows] == ["no", *["yes"] * 7]
    assert rows[0] == {
        "row": "Llama3-8B-Base",
        "value": "beta",
        "printed": "<3>",
        "ours": "3",
        "agrees": "no",
        "source": "AMaPO repo, the training file; its README says 2.5",
    }
    assert "&lt;3&gt;" in paths[3].read_text()
    assert "COMMAND" in text


def test_an_unknown_recipe_or_key_is_named() -> None:
    experiment = table("amapo", "9")
    assert experiment.settings is not None
    values = dict(experiment.settings.values) | {"recipes": {"Llama3-8B-Base": "amapo__llama4"}}
    with pytest.raises(UserError, match="recipe=amapo__llama4 does not exist"):
        settings_of(replace(experiment, settings=replace(experiment.settings, values=values)))
    values = dict(experiment.settings.values) | {"keys": {"beta": "method.beta"}}
    with pytest.raises(UserError, match="'learning_rate' is missing"):
        settings_of(replace(experiment, settings=replace(experiment.settings, values=values)))
