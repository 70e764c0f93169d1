"""What every source has in common: pairs from records, demonstrations from pairs, a fingerprint."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from src.data.cache import json_hash
from src.data.pairs import Demonstration, PreferencePair, prompt_hash


@runtime_checkable
class Source(Protocol):
    """Where preference data comes from: both splits, before noise, in a fixed order with fixed ids."""

    def pairs(self) -> Iterator[PreferencePair]:
        """The preference pairs."""

    def demonstrations(self) -> Iterator[Demonstration]:
        """What supervised fine-tuning trains on."""

    def fingerprint(self) -> str:
        """Hex hash of content and options: equal when and only when the records are equal."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that a source read but made no pair of; counted by ``reason`` in the manifest."""

    id: str
    reason: str


class PairSource(ABC):
    """Base of the file and hub sources: they write ``records``, ``content`` and ``options``."""

    has_pairs: ClassVar[bool] = True
    """Whether there are preference pairs, and not demonstrations alone."""

    version: ClassVar[int] = 1
    """Part of the fingerprint; raise it when the reading of the same content changes."""

    @abstractmethod
    def records(self) -> Iterator[PreferencePair | Skipped]:
        """Pairs, and a ``Skipped`` for each record (or candidate pair) left out on purpose."""

    @abstractmethod
    def content(self) -> str:
        """Hex hash of the data that is read, wherever it lies."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The settings that change what is made of the content (not where it lies)."""

    def pairs(self) -> Iterator[PreferencePair]:
        """The preference pairs, without what was skipped."""
        return (record for record in self.records() if isinstance(record, PreferencePair))

    def demonstrations(self) -> Iterator[Demonstration]:
        """The chosen response of each pair, each (prompt, response) once."""
        return chosen_demonstrations(self.pairs())

    def fingerprint(self) -> str:
        """Hex hash of class, reading version, content and options."""
        parts = {
            "source": type(self).__name__,
            "version": self.version,
            "content": self.content(),
            "options": self.options(),
        }
        return json_hash(parts)


def chosen_demonstrations(pairs: Iterable[PreferencePair]) -> Iterator[Demonstration]:
    """The chosen responses of ``pairs`` as demonstrations, each (prompt, response) once, named by its first pair.

    Both splits: ``prepare`` leaves out the prompts of the validation split.
    """
    seen: set[bytes] = set()
    for pair in pairs:
        key = hashlib.sha256(f"{prompt_hash(pair.prompt)}\n{pair.chosen}".encode("utf-8", "surrogatepass")).digest()
        if key not in seen:
            seen.add(key)
            yield Demonstration(pair.id, pair.prompt, pair.chosen)


def has_pairs(source: Source) -> bool:
    """Whether a source has preference pairs, as all do that do not say otherwise."""
    return bool(getattr(source, "has_pairs", True))


def read_records(source: Source) -> Iterator[PreferencePair | Skipped]:
    """The records of any source; one without ``records`` skips nothing."""
    records = getattr(source, "records", None)
    return records() if callable(records) else source.pairs()
