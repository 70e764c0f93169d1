"""Reading the YAML files of experiments/ and results/published/ with mistakes said by file and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.config import ROOT
from src.errors import UserError

EXPERIMENTS = ROOT / "experiments"
PUBLISHED = ROOT / "results" / "published"


@dataclass(frozen=True)
class Node:
    """A mapping of a file, and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``."""
        return self.values.get(key, default)

    def need(self, key: str) -> Any:
        """The value of ``key``; raises ``UserError`` when it is not there."""
        if self.values.get(key) is None:
            raise UserError(f"{self.where}: '{key}' is missing; it has {', '.join(map(str, self.values)) or 'nothing'}")
        return self.values[key]

    def child(self, key: str) -> Node:
        """The mapping at ``key``; an absent one is empty."""
        value = self.values.get(key)
        where = f"{self.where}: {key}"
        if value is None:
            return Node({}, where)
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping, not {value!r:.60}")
        return Node({str(name): item for name, item in value.items()}, where)

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of texts at ``key``; a single text counts as one."""
        value = self.values.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or any(isinstance(item, (Mapping, list)) for item in value):
            raise UserError(f"{self.where}: {key} must be a list of texts, not {value!r:.60}")
        return tuple(str(item) for item in value)

    def only(self, *known: str) -> Node:
        """This node, when it holds no other keys; raises ``UserError`` naming the first that is unknown."""
        for key in self.values:
            if key not in known:
                raise UserError(f"{self.where}: unknown key '{key}'{did_you_mean(key, known)}")
        return self


def read_node(path: Path) -> Node:
    """The mapping that a YAML file holds; raises ``UserError`` when it cannot be read as one."""
    where = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where} cannot be read: {error}; restore it") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must hold a mapping of keys; restore it")
    return Node({str(key): item for key, item in value.items()}, where)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``; did you mean X? It knows A, B, C``."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(given), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{hint} choose one of: {', '.join(names)}"
