"""The pages of experiments/fidelity: every known discrepancy once, and every command that they quote works."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from src.cli import register_schemas
from src.config import CONF, ROOT, finished
from src.parts import with_parts
from src.training.assemble import build_objective

PAGES = sorted((ROOT / "experiments" / "fidelity").glob("*.md"))
KNOWN = 45
"""Discrepancies known before the methods were written; later numbers came with the methods."""

HEADERS = {
    "| # | where | the paper says | the released code does | we do | how to choose |",
    "| # | where | the paper says | the framework does | we do | how to choose |",
    "| # | where | the paper says | other sources say | we do | how to choose |",
}


def rows_of(page: Path) -> list[list[str]]:
    """Cells of the numbered rows (`\\|` is a bar within a cell)."""
    lines = [line for line in page.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def commands() -> list[str]:
    """Every span of code that sets keys, sweeps written out."""
    found = set()
    for page in PAGES:
        for span in re.findall(r"`([^`]+)`", page.read_text()):
            words = span.split()
            if all(re.fullmatch(r"[\w.@]+=\S+", word) for word in words):
                choices = [
                    [f"{word.split('=')[0]}={one}" for one in word.split("=", 1)[1].split(",")] for word in words
                ]
                found |= {" ".join(combination) for combination in itertools.product(*choices)}
    return sorted(found)


def test_every_discrepancy_has_its_row() -> None:
    numbers = {page.stem: [int(row[0]) for row in rows_of(page)] for page in PAGES}
    assert {name: len(found) for name, found in numbers.items()} == {
        "amapo": 30,
        "gamma_po": 33,
        "gapo": 25,
        "gappo": 19,
    }
    every = sorted(itertools.chain.from_iterable(numbers.values()))
    assert every == list(range(1, 108))
    assert every[KNOWN - 1] == KNOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_rows_are_whole(page: Path) -> None:
    rows = rows_of(page)
    assert [row[0] for row in rows if len(row) != 6 or not all(row)] == []
    assert [row[0] for row in rows if "`" not in row[5] and row[5] != "none needed"] == []
    headers = [line for line in page.read_text().splitlines() if line.startswith("| #")]
    assert len(headers) >= 2
    assert set(headers) <= HEADERS


def test_commands_are_found() -> None:
    assert len(commands()) == 146
    methods = {command.split()[0].removeprefix("method=") for command in commands() if command.startswith("method=")}
    assert len(methods) >= 40
    assert methods <= {path.stem for path in (CONF / "method").glob("*.yaml")}


@pytest.mark.parametrize("command", [command for command in commands() if " " in command])
def test_command_composes(command: str) -> None:
    overrides = command.split()
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", overrides=overrides)
    given = dict(word.split("=", 1) for word in overrides)
    if config.model.name != "tiny":
        recipe = given.get("recipe", f"{config.method.name}__{config.model.name}")
        assert (CONF / "recipe" / f"{recipe}.yaml").is_file()
    ready = finished(with_parts(config, overrides))
    build_objective(ready)
    for key, value in given.items():
        if "." in key and not key.startswith("parts."):
            assert str(OmegaConf.select(OmegaConf.create(OmegaConf.to_container(ready)), key)).lower() in (
                value,
                f"{value}.0",
                str(float(value)) if re.fullmatch(r"[\d.e-]+", value) else value,
            )


def test_quoted_commands_of_other_programs_compose() -> None:
    text = "".join(page.read_text() for page in PAGES)
    quoted = set(re.findall(r"`python -m src\.evaluation\.ranking ([^`]+)`", text))
    assert len(quoted) == 3
    assert len(quoted) == len(set(re.findall(r"`python -m src\.(?!train`)([^`]+)`", text)))
    register_schemas()
    for command in quoted:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            assert hydra.compose("ranking", overrides=command.split()).checkpoint == "RUN"
