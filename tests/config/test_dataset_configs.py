"""conf/dataset and conf/noise: every file builds, and shows every setting that its reader has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.build import build, locate, plain
from src.data.noise import Noise
from src.data.prepare import PrepareOptions
from src.data.sources import Source
from src.schema import DatasetConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
DATASETS = sorted((CONF / "dataset").glob("*.yaml"))
OF_GROUPS = {"min_score_gap", "generalization"}
"""Keys of ``dataset`` that groups of their own set (conf/filter, conf/generalization)."""
NOISES = sorted((CONF / "noise").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def test_the_walk_finds_all() -> None:
    assert {path.stem for path in DATASETS} >= {
        "gemma2_ultrafeedback_armorm",
        "hh_rlhf",
        "llama3_ultrafeedback",
        "llama3_ultrafeedback_armorm",
        "local",
        "mistral_instruct_ultrafeedback",
        "scored_responses",
        "toy",
        "ultrachat_200k",
        "ultrafeedback_binarized",
        "ultrafeedback_full",
    }
    assert {path.stem for path in NOISES} >= {"none", "random_flip"}


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_dataset(path: Path) -> None:
    config = read(path)
    assert config["name"] == path.stem
    assert config.keys() == {spec.name for spec in dataclasses.fields(DatasetConfig)} - OF_GROUPS
    node = {key: "some/file.jsonl" if value == "???" else value for key, value in config["source"].items()}
    assert isinstance(build(node, "dataset.source"), Source)
    fields = {spec.name: spec for spec in dataclasses.fields(locate(node["_target_"]))}
    if path.stem != "toy":  # the toy world's calibrated values stand in its class
        assert node.keys() - {"_target_"} == fields.keys()
    for name, spec in fields.items():
        if spec.default is not dataclasses.MISSING and name in node:
            assert plain(node[name]) == spec.default
    options = {spec.name for spec in dataclasses.fields(PrepareOptions)} & config.keys()
    PrepareOptions(**{name: config[name] for name in options})


@pytest.mark.parametrize("path", NOISES, ids=lambda path: path.stem)
def test_noise(path: Path) -> None:
    node = read(path)
    assert isinstance(build(node, "noise"), Noise)
    assert node.keys() - {"_target_"} == {spec.name for spec in dataclasses.fields(locate(node["_target_"]))}
