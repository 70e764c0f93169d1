"""Recipes as files: their values, those of the recipes that they include, and the sources of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config import CONF

FOLDER = CONF / "recipe"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PUBLISHED = [path for path in RECIPES if not path.stem.endswith("__tiny")]


def names_of(recipe: Path) -> tuple[str, str, str]:
    """Method, model and, where a paper has values of its own, paper (else "")."""
    method, model, *paper = recipe.stem.split("__")
    return method, model, "".join(paper)


def overrides_of(recipe: Path) -> list[str]:
    """What a user types to get this recipe."""
    method, model, paper = names_of(recipe)
    return [f"method={method}", f"model={model}"] + ([f"recipe={recipe.stem}"] if paper else [])


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything below ``node``."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@functools.cache
def own_values(recipe: Path) -> dict[str, Any]:
    """The values that the file itself has, by dotted key (read as Hydra reads them: `5.0e-7` is a number)."""
    container = OmegaConf.to_container(OmegaConf.load(recipe))
    assert isinstance(container, dict)
    container.pop("defaults", None)
    return dict(leaves({str(key): value for key, value in container.items()}))


@functools.cache
def included(recipe: Path) -> Path | None:
    """The recipe whose values this one takes over."""
    loaded = OmegaConf.load(recipe)
    assert isinstance(loaded, DictConfig)
    entries = [entry for entry in loaded.get("defaults", []) if entry != "_self_"]
    assert len(entries) <= 1
    return FOLDER / f"{entries[0]}.yaml" if entries else None


@functools.cache
def values_of(recipe: Path) -> dict[str, Any]:
    """All values, by dotted key: those of the included recipe, then its own."""
    base = included(recipe)
    return (values_of(base) if base else {}) | own_values(recipe)


def own_sources(recipe: Path) -> dict[str, str]:
    """The text after `# source:` of each value of the file, by dotted key; "" where it is missing."""
    found, section = {}, ""
    for line in recipe.read_text().splitlines():
        key, _, rest = line.partition(":")
        if line.startswith(("#", "defaults", "  -")) or not rest:
            continue
        indented = key.startswith("  ")
        value, _, source = rest.partition("  # source: ")
        if not indented and value.strip().startswith("#"):
            section = f"{key}."
            continue
        found[f"{section if indented else ''}{key.strip()}"] = source.strip()
    return found
