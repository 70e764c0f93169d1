"""Printed hyper-parameters beside ours: what the recipes and sweep presets hold, and on which source they stand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from src.config import CONF, compose_train
from src.errors import UserError
from src.experiments.experiment import Experiment
from src.experiments.files import EXPERIMENTS, Node, read_node
from src.experiments.published import PublishedTable

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Setting:
    """One printed value. ``where``: its row and column; ``ours``: as here, "" without a counterpart; ``source``: what
    the recipe or preset says it stands on; ``agrees``: ``None`` where there is nothing to compare."""

    where: tuple[str, ...]
    printed: str
    ours: str
    source: str
    agrees: bool | None


def settings_of(experiment: Experiment) -> list[Setting]:
    """Every printed value of a table of settings, in its order; raises ``UserError`` for a file that does not fit."""
    node, published = experiment.settings, experiment.published
    if node is None or published is None:
        raise UserError(f"{experiment.path}: kind settings needs 'settings' and a printed table; restore the file")
    node.only("rows", "recipes", "keys", "values", "ranges", "models")
    return ranges(experiment, node, published) if "ranges" in node.values else values(node, published)


def values(node: Node, published: PublishedTable) -> list[Setting]:
    """A table of single values: recipes along one side, keys of the configuration along the other."""
    (row_name,) = node.texts("rows")
    recipes, keys = node.child("recipes"), node.child("keys")
    found = []
    for row in published.rows:
        label = str(row[row_name])
        for column in published.columns:
            if column == row_name:
                continue
            recipe, key = (label, column) if label in recipes.values else (column, label)
            wanted = wanted_key(keys, key)
            value = value_of(str(recipes.need(recipe)), wanted.key)
            ours = wanted.means.get(str(value), value)
            source = source_of(CONF / "recipe" / f"{recipes.need(recipe)}.yaml", wanted.key)
            found.append(
                Setting((label, column), text_of(row[column]), text_of(ours), source, equal(row[column], ours))
            )
    return found


def ranges(experiment: Experiment, node: Node, published: PublishedTable) -> list[Setting]:
    """A table of search ranges: our presets for them (conf/sweep), and the chosen values of the recipes."""
    method_column, parameter_column = node.texts("rows")
    methods, found = node.child("ranges"), []
    for row in published.rows:
        label, parameter = str(row[method_column]), str(row[parameter_column])
        entry = methods.child(label).only("method", "parameters")
        method, keys = str(entry.need("method")), entry.child("parameters")
        printed = list(row[str(node.need("values"))])
        if parameter in keys.values and keys.get(parameter) is None:
            found.append(Setting((label, parameter), listed(printed), "", "no such constant in the objective", None))
            continue
        wanted = wanted_key(keys, parameter)
        preset = preset_of(f"{experiment.paper}_table{experiment.table}_", method, wanted)
        chosen = chosen_of(experiment, node.texts("models"), label, method, wanted)
        outside = [f"{value:g} ({model})" for model, value in chosen.items() if not within(value, printed)]
        source = f"{', '.join(preset.files) or 'no preset'}; chosen: {spoken(chosen)}"
        source += f"; outside the range: {', '.join(outside)}" if outside else ""
        agrees = None if not preset.values else same(printed, preset.values)
        found.append(Setting((label, parameter), listed(printed), listed(preset.values), source, agrees))
    return found


@dataclass(frozen=True)
class Key:
    """A key of the configuration. ``times``: another, by which it is multiplied to be comparable; ``means``: what
    values are called in the paper."""

    key: str
    times: str | None
    means: Mapping[str, str]


def wanted_key(keys: Node, name: str) -> Key:
    """The key behind a printed name."""
    if not isinstance(keys.get(name), dict):
        return Key(str(keys.need(name)), None, {})
    entry = keys.child(name).only("key", "times", "means")
    times = entry.get("times")
    means = {value: str(meaning) for value, meaning in entry.child("means").values.items()}
    return Key(str(entry.need("key")), None if times is None else str(times), means)


def value_of(recipe: str, key: str) -> Any:
    """What a run with that recipe has at ``key``."""
    from omegaconf import OmegaConf

    return OmegaConf.select(config_of(recipe), key, throw_on_missing=True)


@cache
def config_of(recipe: str) -> DictConfig:
    """The configuration of a run with that recipe; raises ``UserError`` when there is none of that name."""
    if not (CONF / "recipe" / f"{recipe}.yaml").is_file():
        raise UserError(f"recipe={recipe} does not exist; see conf/recipe")
    method, model = recipe.split("__")[:2]
    return cast("DictConfig", compose_train([f"method={method}", f"model={model}", f"recipe={recipe}"]))


def source_of(path: Path, key: str) -> str:
    """The comment beside a key of a file, without "source:"; where it has none, whose default it is."""
    names, lines = key.split("."), path.read_text(encoding="utf-8").splitlines()
    node = yaml.compose("\n".join(lines))
    line = None
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        line, node = next(((k.start_mark.line, v) for k, v in pairs if k.value == name), (None, None))
    comment = "" if line is None else lines[line].partition("  # ")[2]
    return comment.removeprefix("source:").strip() or f"default of conf/{names[0]} or conf/train.yaml"


@dataclass(frozen=True)
class Preset:
    """The values of a parameter over the presets of one table and method, and the names of those presets."""

    files: tuple[str, ...]
    values: tuple[float, ...]


def preset_of(prefix: str, method: str, wanted: Key) -> Preset:
    """What the presets of a printed table try of a parameter."""
    files, found = [], []
    for path in sorted((CONF / "sweep").glob(f"{prefix}*.yaml")):
        params = read_node(path).child("params")
        if params.get("method") != method or wanted.key not in params.values:
            continue
        factors = numbers(params.get(wanted.times)) if wanted.times else [1.0]
        files.append(f"sweep={path.stem}")
        found += [value * factor for factor in factors for value in numbers(params.get(wanted.key))]
    return Preset(tuple(files), tuple(sorted({round(value, 10) for value in found})))


def numbers(value: Any) -> list[float]:
    """The numbers of a sweep's choice, such as ``0.01,0.1``."""
    return [float(part) for part in re.split(r",\s*", str(value)) if part]


def chosen_of(experiment: Experiment, models: Iterable[str], label: str, method: str, wanted: Key) -> dict[str, float]:
    """By model the value that its recipe has; a label of paper.yaml may name another recipe than the usual one."""
    paper = read_node(EXPERIMENTS / experiment.paper / "paper.yaml")
    method_entry, found = paper.child("methods").get(label), {}
    named = method_entry.get("recipes", {}) if isinstance(method_entry, dict) else {}
    for name in models:
        model = str(paper.child("models").child(name).need("model"))
        recipe = str(named.get(model, f"{method}__{model}"))
        if (CONF / "recipe" / f"{recipe}.yaml").is_file():
            factor = float(value_of(recipe, wanted.times)) if wanted.times else 1.0
            found[name] = round(float(value_of(recipe, wanted.key)) * factor, 10)
    return found


def within(value: float, printed: Iterable[Any]) -> bool:
    """Whether a value is one of those printed."""
    return any(math.isclose(value, float(other), rel_tol=1e-6) for other in printed)


def same(printed: Iterable[Any], ours: Iterable[float]) -> bool:
    """Whether two ranges hold the same values."""
    left, right = sorted(float(value) for value in printed), sorted(ours)
    return len(left) == len(right) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(left, right, strict=True))


def equal(printed: Any, ours: Any) -> bool:
    """Whether two values are the same, numbers by value."""
    try:
        return math.isclose(float(printed), float(ours), rel_tol=1e-6)
    except (TypeError, ValueError):
        return str(printed) == str(ours)


def text_of(value: Any) -> str:
    """A value as one reads it."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def listed(printed: Iterable[Any]) -> str:
    """Values in a row."""
    return ", ".join(map(text_of, printed))


def spoken(chosen: Mapping[str, float]) -> str:
    """Chosen values with their models, equal ones together."""
    by_value: dict[float, list[str]] = {}
    for model, value in chosen.items():
        by_value.setdefault(value, []).append(model)
    return "; ".join(f"{value:g} on {', '.join(models)}" for value, models in by_value.items()) or "no recipe"
