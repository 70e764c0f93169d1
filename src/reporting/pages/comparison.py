"""A run's configuration beside what its recipe and the defaults say: what was set otherwise, and where that is from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from src.config import CONF
from src.errors import UserError
from src.evaluation.records import section_name
from src.reporting.runs import Run

ABSENT = "—"
PLACES = ("output_root", "cache_root", "run_dir", "prepare_workers", "logging", "debug", "hydra", "parts")
"""Top-level keys that say where a run writes and what is shown of it; differences in them are none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. ``here``: the run's value; ``there``: that of the recipe or default; ``source``: where the recipe has it
    from, in its own words."""

    key: str
    here: str
    there: str
    origin: str
    source: str = ""

    @property
    def differs(self) -> bool:
        """Whether the run has another value."""
        return self.here != self.there


@dataclass(frozen=True, slots=True)
class Comparison:
    """``recipe``: every key of the recipe; ``others``: keys whose value is not the default's; ``missing``: keys that
    are not in the run's configuration, which may be of an earlier version; ``file``: the recipe's, "" where there is
    none; ``note``: why there is nothing to compare with."""

    recipe: tuple[Setting, ...] = ()
    others: tuple[Setting, ...] = ()
    missing: tuple[str, ...] = ()
    file: str = ""
    note: str = ""

    @property
    def different(self) -> tuple[Setting, ...]:
        """Keys of the recipe that the run set otherwise."""
        return tuple(setting for setting in self.recipe if setting.differs)


@dataclass(frozen=True, slots=True)
class Standard:
    """What `python -m src.train method=M model=N dataset=D` would use; ``sources``: key of the recipe -> source."""

    values: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    note: str = ""


def comparison_of(run: Run) -> Comparison:
    """The run beside its recipe and the defaults of its method, model and data set."""
    if not run.config:
        return Comparison(note="the run has no configuration to compare")
    names = [section_name(run.config, section) for section in ("method", "model", "dataset")]
    found = standard(*names)
    if found.note:
        return Comparison(note=found.note)
    own = {key: text for key, text in flat(run.config).items() if key.partition(".")[0] not in PLACES}
    recipe = [
        Setting(key, own.get(key, ABSENT), found.values.get(key, ABSENT), "recipe", source)
        for key, source in found.sources.items()
    ]
    others = [
        Setting(key, own.get(key, ABSENT), found.values.get(key, ABSENT), "default")
        for key in sorted(own)
        if key not in found.sources and key in own and own[key] != found.values.get(key)
    ]
    missing = tuple(sorted(key for key in found.values if key not in own and key not in found.sources))
    return Comparison(tuple(recipe), tuple(one for one in others if not repeats(one, own)), missing, found.file)


def repeats(setting: Setting, own: Mapping[str, str]) -> bool:
    """Whether a part's option only repeats a constant of its method (``beta: ${method.beta}``), which says it."""
    section, _, rest = setting.key.partition(".")
    return section == "method" and "." in rest and own.get(f"method.{rest.rpartition('.')[2]}") == setting.here


@lru_cache(maxsize=512)
def standard(method: str, model: str, dataset: str) -> Standard:
    """The composed configuration of these names, with the recipe where there is one."""
    for group, name in (("method", method), ("model", model), ("dataset", dataset)):
        if not (re.fullmatch(r"[A-Za-z0-9_]+", name) and (CONF / group / f"{name}.yaml").is_file()):
            return Standard(note=f"there is no conf/{group}/{name}.yaml to compare with")
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from src.config import composed_train

    try:
        composed = composed_train([f"method={method}", f"model={model}", f"dataset={dataset}"])
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        return Standard(note=f"its defaults cannot be composed ({error})")
    assert isinstance(plain, dict)
    values = {key: text for key, text in flat(plain).items() if key.partition(".")[0] not in PLACES}
    file = CONF / "recipe" / f"{method}__{model}.yaml"
    return Standard(values, sources_of(file), f"conf/recipe/{file.name}" if file.is_file() else "")


def sources_of(file: Path) -> dict[str, str]:
    """Every key of a recipe with its comment; {} without a recipe."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+):[^#]*(?:# (?:source: )?(.*))?$", line)
        if match:
            path = [entry for entry in path if entry[0] < len(match[1])] + [(len(match[1]), match[2])]
            comments[".".join(name for _, name in path)] = (match[3] or "").strip()
    loaded = yaml.safe_load(text)
    return {key: comments.get(key, "") for key in flat(loaded if isinstance(loaded, dict) else {})}


def flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys with their values as text; unset and missing ones as they are written."""
    if isinstance(node, Mapping) and (node or not prefix):
        found: dict[str, str] = {}
        for key, value in node.items():
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: written(node)}


def written(value: Any) -> str:
    """A value as YAML has it; equal numbers are equal texts."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{float(value):.10g}"
    return str(value)
