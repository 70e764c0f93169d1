"""A small paper of our own for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import src.experiments.experiment
import src.experiments.scale
from src.experiments.plan import Places
from tests.support import SMALL_DATA, SMALL_MODEL

BUDGET = (
    "engine.device=cpu",
    "training.max_steps=2",
    "training.global_batch_size=8",
    "training.micro_batch_size=8",
    "evaluation.max_pairs=8",
)
PAPER = """
title: A small paper
models:
  One: {model: llama3_8b_base, overrides: [dataset=ultrafeedback_binarized]}
  Two: {model: mistral_7b_base, overrides: [dataset=ultrafeedback_binarized]}
methods:
  SFT: [method=sft]
  DPO: [method=dpo]
  w/o margin: [method=simpo, method.gamma_beta_ratio=0]
  SimPO: {overrides: [method=simpo], recipes: {llama3_8b_base: simpo__llama3_8b_base}}
"""
TABLE = """
paper: amapo
table: small
kind: grid
title: A small table
rows:
  model: [One]
  method: [SFT, DPO]
columns:
  rating: {benchmark: mt_bench, metric: overall, digits: 2}
  accuracy: {curve: validation, metric: rewards/accuracies, take: max, scale: 100}
"""


def scale_of(name: str = "laptop") -> str:
    """A scale at which a run takes two steps."""
    model = [f"'{text}'" for text in (*SMALL_MODEL[:1], *SMALL_MODEL[2:], *SMALL_DATA)]
    return "\n".join(
        [
            f"models: {{llama3_8b_base: [{', '.join(model)}]}}",
            f"every: [{', '.join(BUDGET)}]",
            f"sft: ['training.max_steps=1'] # of {name}",
            "benchmarks: {mt_bench: [benchmark=toy, judge=oracle, max_items=2, decoding.max_new_tokens=4]}",
            "seconds: {train: 5, mt_bench: 5}",
        ]
    )


def write(folder: Path, table: str = TABLE, paper: str = PAPER, scale: str | None = None) -> Path:
    """The files of an experiment below ``folder``; the path of the table's."""
    for name, text in (
        ("amapo/paper.yaml", paper),
        ("amapo/tablesmall.yaml", table),
        ("scale/laptop.yaml", scale_of() if scale is None else scale),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "amapo" / "tablesmall.yaml"


def places(folder: Path) -> Places:
    """Everything below ``folder``."""
    return Places(*(str(folder / name) for name in ("runs", "cache", "records", "evaluations")))


def overrides(folder: Path) -> list[str]:
    """The same as overrides of src.reproduce, and the small table."""
    names = {"output_root": "runs", "cache_root": "cache", "records_root": "records", "evaluations_root": "evaluations"}
    roots = [f"{key}={folder / name}" for key, name in (names | {"tables_root": "tables"}).items()]
    return ["paper=amapo", "table=small", *roots]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small paper, from which experiments and scales are read."""
    monkeypatch.setattr(src.experiments.experiment, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(src.experiments.scale, "FOLDER", tmp_path / "scale")
    write(tmp_path)
    return tmp_path
