"""How answers are drawn: what the command line says, and where it says nothing what the papers took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import yaml

from src.config import CONF
from src.errors import UserError

if TYPE_CHECKING:
    from src.benchmark_schema import DecodingConfig
    from src.generation.base import Decoding

FIELDS = ("temperature", "top_p", "max_new_tokens")


@dataclass(frozen=True)
class AnswerDecoding:
    """One answer a question. ``temperature``: of the questions that set none of their own, 0 = greedy;
    ``sources``: where each value is from."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    sources: Mapping[str, str]

    def at(self, temperature: float | None) -> Decoding:
        """The generators' settings; ``temperature``: the question's own, ``None`` for that of all."""
        from src.generation.base import Decoding

        drawn = self.temperature if temperature is None else temperature
        return Decoding(
            n=1, temperatures=(drawn,), seeds=(self.seed,), top_p=self.top_p, max_new_tokens=self.max_new_tokens
        )

    def describe(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return asdict(self)


def decoding_for(benchmark: str, model: str, given: DecodingConfig, *more_names: str) -> AnswerDecoding:
    """Fill the nulls of ``given`` from conf/decoding/<benchmark>.yaml.

    ``model``: its name in conf/model; ``more_names``: other names it has (hub id, name at an endpoint), of which the
    first pattern that fits decides. A model that no paper measured takes the file's default.
    """
    published = published_for(benchmark, (model, *more_names))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in FIELDS:
        own = getattr(given, name)
        values[name] = published[name] if own is None else own
        sources[name] = str(published["source"]) if own is None else f"decoding.{name} on the command line"
    return AnswerDecoding(**values, seed=given.seed, sources=sources)


def published_for(benchmark: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The published settings of a model, by any of its names."""
    path = CONF / "decoding" / f"{benchmark}.yaml"
    if not path.is_file():
        raise UserError(
            f"no paper's decoding is written down for {benchmark} (there is no {path}); give decoding.temperature, "
            "decoding.top_p and decoding.max_new_tokens"
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    models: dict[str, dict[str, Any]] = content.get("models") or {}
    for name in names:
        if name in models:
            return models[name]
    for name in names:
        for entry in models.values():
            if any(fnmatch(name.lower(), pattern) for pattern in entry.get("names") or ()):
                return entry
    found: dict[str, Any] = content["default"]
    return found
