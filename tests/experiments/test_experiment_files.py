"""The files of experiments/: one for every printed table, claims that can be checked, configurations that compose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from src.config import CONF
from src.experiments.claims import claims_of
from src.experiments.experiment import Experiment, Measured, all_paths, find, load
from src.experiments.files import PUBLISHED
from src.experiments.plan import Places, plan_of
from src.experiments.published import papers, read_table
from src.experiments.scale import read_scale, scales
from tests.experiments import snapshot

EXPERIMENTS = {experiment.name: experiment for experiment in map(load, all_paths())}
KEPT = json.loads(snapshot.PATH.read_text(encoding="utf-8"))
CASES = [(name, scale) for name in sorted(EXPERIMENTS) for scale in scales()]
REGENERATE = "regenerate it with python -m tests.experiments.snapshot"


def printed_tables() -> list[tuple[str, str]]:
    """(paper, number) of every table in results/published."""
    files = {paper: yaml.safe_load((PUBLISHED / f"{paper}.yaml").read_text(encoding="utf-8")) for paper in papers()}
    return [(paper, number) for paper, content in files.items() for number in content["tables"]]


def test_every_printed_table_has_its_file() -> None:
    tables = printed_tables()
    assert len(tables) == 32
    for paper, number in tables:
        experiment = load(find(paper, number))
        assert (experiment.paper, experiment.table, experiment.path.stem) == (paper, number, f"table{number}")


def test_figures_that_are_sweeps_have_their_files() -> None:
    names = ["amapo_figure1", "gamma_po_figure4", "gamma_po_figure6", "gapo_figure2", "gappo_figure3"]
    assert {*names, "gappo_figure4", "gappo_figure5"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.name)
def test_columns_are_those_of_the_printed_table(experiment: Experiment) -> None:
    """Every printed column is an axis or a column here, and no printed number is lost: its cell finds it."""
    published = read_table(experiment.paper, experiment.table)
    if published is None or experiment.kind == "settings":
        return
    named = {*experiment.axes, *(column.name for column in experiment.columns)}
    assert set(published.columns) - named <= {"gpus", "anchor_gap"}
    assert [column.name for column in experiment.columns] == [
        c for c in published.columns if c in named - {*experiment.axes}
    ]
    assert len(experiment.keys) == len(published.rows) - (experiment.kind == "timing")
    found = [published.value(labels, column.name) for labels in experiment.keys for column in experiment.columns]
    left_out = 4 if experiment.kind == "timing" else 0  # a row of averages
    printed = [row[column.name] for row in published.rows for column in experiment.columns]
    assert sum(number is not None for number in found) == sum(value is not None for value in printed) - left_out


def test_every_table_has_claims_and_says_whose_words_they_are() -> None:
    grids = [e for e in EXPERIMENTS.values() if e.kind == "grid" and e.name != "gapo_figure2"]
    assert len(grids) > 30
    for experiment in grids:
        claims = claims_of(experiment)
        assert claims, experiment.name
        assert all(2 < len(claim.quote.split()) < 25 for claim in claims), experiment.name


def test_the_snapshot_has_every_experiment_at_every_scale() -> None:
    assert (len(EXPERIMENTS), len(CASES)) == (40, 120)
    assert {name: set(entries) for name, entries in KEPT.items()} == {name: set(scales()) for name in EXPERIMENTS}


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_overrides_are_those_of_the_snapshot(name: str, scale: str) -> None:
    now = snapshot.uncomposed(EXPERIMENTS[name], read_scale(scale))
    assert {key: KEPT[name][scale][key] for key in now} == now, REGENERATE


def test_sampled_cells_compose_to_the_configurations_of_the_snapshot(tmp_path: Path) -> None:
    """One cell of every table at one scale, by turns; python -m tests.experiments.snapshot --check takes all."""
    differing, seen = [], set()
    turns = len(scales())
    for name, scale in (case for index, case in enumerate(CASES) if index % turns == index // turns % turns):
        experiment, at = EXPERIMENTS[name], read_scale(scale)
        if (cell := snapshot.sampled(experiment, at)) is None:
            assert "sample" not in KEPT[name][scale]
            continue
        labels, column_name = cell
        column = experiment.column(column_name)
        key = (tuple(at.training(experiment, labels, column, 0)), str(at.column(column).source))
        if key in seen:
            continue
        seen.add(key)
        one = replace(experiment, keys=(labels,), columns=(column,))
        plan = plan_of(one, at, (0,), Places(cache_root=str(tmp_path)))
        if snapshot.identity(plan, plan.measurements[0]) != KEPT[name][scale]["sample"]:
            differing.append(f"{name} at scale {scale}: {labels}, {column_name}")
    assert len(seen) > 25
    assert differing == [], REGENERATE


def test_nothing_of_laptop_is_left_at_full_size() -> None:
    """Every model of every paper has a stand-in on a laptop, every measure a counterpart, or the reason for none."""
    laptop = read_scale("laptop")
    for experiment in EXPERIMENTS.values():
        for _, name, overrides, arguments in snapshot.cells(experiment, laptop):
            assert {"model=tiny", "dataset=toy"} <= set(overrides), (experiment.name, name)
            source = laptop.column(experiment.column(name)).source
            if isinstance(source, Measured) and source.benchmark not in ("ranking", "curvature"):
                assert "benchmark=toy" in arguments, (experiment.name, name)


def test_every_recipe_that_a_cell_asks_for_is_there() -> None:
    """By name, or the usual one of method and model: a row with defaults would not be the paper's."""
    lacking = set()
    for experiment in EXPERIMENTS.values():
        for scale in map(read_scale, scales()):
            for _, _, overrides, _ in snapshot.cells(experiment, scale):
                chosen = dict(
                    text.split("=", 1) for text in overrides if text.split("=")[0] in ("method", "model", "recipe")
                )
                recipe = chosen.get("recipe", f"{chosen['method']}__{chosen['model']}")
                if chosen["method"] != "sft" and not (CONF / "recipe" / f"{recipe}.yaml").is_file():
                    lacking.add(recipe)
    assert lacking == set()
