"""What tests compose is what Hydra composes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from src.config import composed
from tests.composing import ORIGINAL, QUICKER, as_hydra_does

COMPOSITIONS = [
    ("train", []),
    ("train", ["method=gapo", "model=tiny", "dataset=toy", "noise=random_flip", "noise.rate=0.3", "+adapter=lora"]),
    ("train", ["method=amapo", "model=llama3_8b_instruct", "~recipe", "method.beta=[1,2]", "engine=fsdp2"]),
    ("train", ["method=simpo", "model=tiny", "dataset=toy", "run_dir=runs/${method.name}_${seed}", "~noise"]),
    ("ranking", []),
    ("report", ["format=[html]"]),
]


@pytest.mark.parametrize(("program", "overrides"), COMPOSITIONS)
def test_compositions_are_those_of_hydra(program: str, overrides: list[str]) -> None:
    said = [outcome(program, overrides) for _ in range(2)]  # the second is made of what was kept
    with as_hydra_does():
        said.append(outcome(program, overrides))
    assert said[0] == said[1] == said[2]


def outcome(program: str, overrides: list[str]) -> str:
    """All values, interpolations as they are; or what the composition was refused with."""
    try:
        return OmegaConf.to_yaml(composed(program, overrides))
    except HydraException as error:
        return f"{type(error).__name__}: {error}"


def test_most_of_these_compose() -> None:
    assert sum(":\n" in outcome(*each) for each in COMPOSITIONS) >= 4


def test_tests_compose_so() -> None:
    assert all(getattr(owner, name) is quicker for owner, name, quicker in QUICKER)
    assert len(ORIGINAL) == len(QUICKER) >= 5


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    file = tmp_path / "one.yaml"
    for value in (1, 2):
        file.write_text(f"value: {value}\n", encoding="utf-8")
        os.utime(file, ns=(value, value))
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            first, second = compose("one"), compose("one")
        assert first.value == second.value == value
        OmegaConf.update(first, "value", 9)
        assert second.value == value
