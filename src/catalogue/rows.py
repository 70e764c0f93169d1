"""The methods of conf/method, each a row of parts, as tables for the terminal and for README."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from src.combinations import constants_of
from src.config import CONF, composed_train
from src.errors import UserError
from src.objective.objective import Objective
from src.objective.types import Needs, Part
from src.schema import TrainConfig
from src.training.assemble import build_objective

NEUTRAL = ("NoMargin", "Uniform", "Mean", "NoRegularizer", "Fixed", "NoPerturbation")
"""Parts that leave the loss as it is; tables show nothing in their place."""

OTHER_SLOTS = ("temperature", "reduce", "regularizer", "perturbation")
"""Slots that most methods leave neutral; tables gather them in one column."""

README_TABLE = re.compile(r"(<!-- methods table -->\n).*?(<!-- end of methods table -->)", re.DOTALL)

COLUMNS = ("method", "reward", "target", "link", "weight", "other parts", "needs", "constants")


@dataclass(frozen=True)
class Row:
    """A method: its YAML's comments, its constants with their defaults, its parts, and what those need."""

    name: str
    constants: Mapping[str, Any]
    objective: Objective
    smallest_gap: float
    about: str

    @property
    def needs(self) -> list[str]:
        """What the method needs beyond the responses' log-probs, in words."""
        filtered = [f"scores (pairs {self.smallest_gap:g} or more apart)"] if self.smallest_gap > 0 else []
        return needs_in_words(self.objective) + filtered


def names() -> list[str]:
    """Every method, by name."""
    return sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@cache
def composed(method: str) -> DictConfig:
    """The training configuration with ``method`` and no recipe; raises ``UserError`` for a method that is not there."""
    refuse_unknown(method)
    return composed_train([f"method={method}", "~recipe"])


def refuse_unknown(method: str) -> None:
    """Raise ``UserError`` naming the methods that ``method`` may have meant."""
    known = names()
    if method not in known:
        close = difflib.get_close_matches(method, known, n=3, cutoff=0.5)
        close = close or [name for name in known if method.lower().replace("-", "_") in name]
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise UserError(f"no method is called {method}{hint} `python -m src.methods` lists all {len(known)}")


def constants(method: str) -> dict[str, Any]:
    """Constants of a method with their defaults, in the order of its YAML."""
    config = composed(method)
    raw = OmegaConf.to_container(config.method, resolve=False)
    assert isinstance(raw, dict)
    return {name: config.method[name] for name in constants_of(raw)}


def objective_of(method: str, values: Mapping[str, Any]) -> Objective:
    """The composed objective with ``values`` in place of constants of its YAML.

    Raises ``UserError`` for a constant that the method does not have and for a value that a part refuses.
    """
    return built(method, json.dumps(dict(values)))


@cache
def built(method: str, values: str) -> Objective:
    """``objective_of`` with the constants as JSON; objectives are frozen, so one serves all who ask."""
    known, wanted = constants(method), json.loads(values)
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"method={method} has no constant {unknown[0]}; it has {', '.join(known) or 'none'}")
    config = composed(method).copy()
    for name, value in wanted.items():
        OmegaConf.update(config, f"method.{name}", value)
    node = OmegaConf.to_container(config.method, resolve=True)
    assert isinstance(node, dict)
    return build_objective(TrainConfig(method={str(key): value for key, value in node.items()}))


def row_of(method: str) -> Row:
    """The row of one method; raises ``UserError`` for one that is not there."""
    return Row(method, constants(method), objective_of(method, {}), smallest_gap(method), about(method))


def rows() -> list[Row]:
    """The rows of all methods: supervised fine-tuning and DPO first, the rest by name."""
    return [row_of(name) for name in sorted(names(), key=lambda name: (name != "sft", name != "dpo", name))]


def smallest_gap(method: str) -> float:
    """The score gap from which a method keeps a training pair; 0 keeps all."""
    return float(composed(method).dataset.min_score_gap)


# --- comments of the YAML files ---------------------------------------------------------------------------------------


def file_of(method: str) -> Path:
    return CONF / "method" / f"{method}.yaml"


def about(method: str) -> str:
    """The comment at the head of a method's file, without its name."""
    lines = []
    for line in file_of(method).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(line for line in lines if line and not line.startswith("@package"))


def bases(method: str) -> list[str]:
    """The file of a method and those it inherits from, nearest first."""
    entries = cast(DictConfig, OmegaConf.load(file_of(method))).get("defaults", [])
    inherited = [str(entry) for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [method, *(name for parent in inherited for name in bases(parent))]


def comment_on(method: str, key: str) -> str:
    """What the method's file, or one it inherits from, says of a key at its top level or of a slot's ``_target_``."""
    for name in bases(method):
        text = file_of(name).read_text(encoding="utf-8")
        slot = re.search(rf"^{key}:.*\n  _target_:[^#\n]*#\s*(.*)$", text, re.MULTILINE)
        line = re.search(rf"^{key}:[^#\n]*#\s*(.*)$", text, re.MULTILINE)
        if match := slot or line:
            return match[1].strip()
    return ""


# --- words ------------------------------------------------------------------------------------------------------------


def needs_in_words(objective: Objective) -> list[str]:
    """The needs of an objective, in words; none for one that wants chosen and rejected responses alone."""
    needs: Needs = objective.needs
    if not needs.rejected:
        return ["demonstrations"]
    flags = {
        "reference": "reference log-probs",
        "scores": "scores",
        "per_token": "log-probs per token",
        "prompt": "log-probs of prompts",
        "mismatched": "mismatched pairs",
        "anchor_gaps": "anchor gaps",
        "gradient_norms": "gradient norms",
    }
    said = [words for flag, words in flags.items() if getattr(needs, flag)]
    if needs.statistics is not None:
        scope = f"{needs.statistics} pairs" if isinstance(needs.statistics, int) else needs.statistics
        said.append(f"statistics ({scope})")
    if needs.state:
        said.append("state")
    if not (is_neutral(objective.perturbation) or needs.anchor_gaps or needs.gradient_norms):
        said.append("perturbation")
    return said


def is_neutral(part: Part) -> bool:
    """Whether a part leaves the loss as it is; a regularizer does when its coefficient is 0."""
    return type(part).__name__ in NEUTRAL or getattr(part, "coefficient", 1) == 0


def label(part: Part) -> str:
    """The class of a part, a dash for one that changes nothing."""
    return "–" if is_neutral(part) else type(part).__name__


def arguments(part: Part) -> str:
    """Constants of a part as its constructor takes them."""
    assert dataclasses.is_dataclass(part)
    fields = [spec for spec in dataclasses.fields(part) if spec.init]
    return ", ".join(f"{spec.name}={number(getattr(part, spec.name))}" for spec in fields)


def number(value: Any) -> str:
    """A constant as YAML writes it."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    """What a table says of a method, by the names of ``COLUMNS`` but the last."""
    parts = row.objective.parts
    other = [type(parts[slot]).__name__ for slot in OTHER_SLOTS if not is_neutral(parts[slot])]
    main = [label(parts[slot]) for slot in ("reward", "target", "link", "weight")]
    return [row.name, *main, *(", ".join(said) or "–" for said in (other, row.needs))]


def terminal_table(shown: Iterable[Row]) -> str:
    """One aligned line per method, with the defaults of its constants."""
    defaults = [(row, [f"{name} {number(value)}" for name, value in row.constants.items()]) for row in shown]
    lines = [list(COLUMNS), *([*cells(row), ", ".join(said) or "–"] for row, said in defaults)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(shown: Iterable[Row]) -> str:
    """The same for README, with the constants' names; of a method that inherits, what differs."""
    lines = [f"| `method=` | {' | '.join(COLUMNS[1:])} |", "|---" * len(COLUMNS) + "|"]
    for row in shown:
        name, *said = cells(row)
        lines.append(f"| `{name}` | {' | '.join(said)} | {constants_in_short(row)} |")
    return "\n".join(lines)


def constants_in_short(row: Row) -> str:
    """Names of constants; for a method that inherits from another, that one's name and the values that differ."""
    inherited = bases(row.name)[1:2]
    if not inherited:
        return ", ".join(f"`{name}`" for name in row.constants) or "–"
    before = constants(inherited[0])
    changed = [f"`{name}` {number(value)}" for name, value in row.constants.items() if before.get(name, ...) != value]
    return f"as `{inherited[0]}`" + (f", {', '.join(changed)}" if changed else "")


def with_table(readme: str, table: str) -> str:
    """The text of README with ``table`` between its markers; raises ``UserError`` where the markers are missing."""
    if not README_TABLE.search(readme):
        raise UserError("README.md has no <!-- methods table --> with its end; put both back where the table belongs")
    return README_TABLE.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme)
