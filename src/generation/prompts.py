"""The prompts that are responded to: those of a source of data, or of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from src.data.pairs import Prompt, prompt_from_json, prompt_hash, require
from src.data.sources.base import Source
from src.data.sources.files import existing, located, read_json_lines
from src.data.splits import split_of
from src.errors import UserError


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """A prompt and its id, which no other prompt has."""

    id: str
    prompt: Prompt

    def messages(self) -> list[dict[str, str]]:
        """The conversation as plain data."""
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]


def prompts_of_source(
    source: Source, split: str, validation_fraction: float, split_seed: int, limit: int | None = None
) -> list[NamedPrompt]:
    """The distinct prompts of ``source``, each under the id of its first record, in the source's order.

    From all responses to each prompt where the source has them, else from its pairs, else (a source without pairs)
    from its demonstrations. ``split``: train or validation as training divides them, or all. The first ``limit``.
    """
    seen: dict[str, str] = {}
    ids: dict[str, str] = {}

    def kept() -> Iterator[NamedPrompt]:
        for record in records_of(source):
            identity = prompt_hash(record.prompt)
            if identity in seen:
                continue
            if record.id in ids:
                raise UserError(f"the id '{record.id}' has two different prompts in the data; ids must be unique")
            seen[identity], ids[record.id] = record.id, identity
            if split in ("all", split_of(record.prompt, validation_fraction, split_seed)):
                yield NamedPrompt(record.id, record.prompt)

    found = list(islice(kept(), limit))
    if not found:
        raise UserError(f"the data has no prompt in split={split}; give split=all, or another dataset")
    return found


def records_of(source: Source) -> Iterable[Any]:
    """Records with an id and a prompt, from the first of the source's readings that has any."""
    for name in ("scored_responses", "pairs", "demonstrations"):
        reading = getattr(source, name, None)
        if reading is None:
            continue
        records = iter(reading())
        if (first := next(records, None)) is not None:
            yield first
            yield from records
            return


def prompts_of_file(path: str, limit: int | None = None) -> list[NamedPrompt]:
    """The prompts of a JSONL file of ``{"id" (or "prompt_id"), "prompt": text or messages}``, its first ``limit``.

    A line without an id is named by its number. Raises ``UserError`` with file and line for an id that occurs twice.
    """
    file = existing(Path(path), "prompts")
    seen: set[str] = set()
    found = []
    for line, record in islice(read_json_lines(file), limit):
        with located(file, line):
            identity = str(record.get("id") or record.get("prompt_id") or f"line-{line:06d}")
            if identity in seen:
                raise UserError(f"the id '{identity}' occurs twice; ids must be unique")
            seen.add(identity)
            found.append(NamedPrompt(identity, prompt_from_json(require(record, "prompt"))))
    return found


def prompts_hash(prompts: Iterable[NamedPrompt]) -> str:
    """Hex SHA-256 of ids and prompts in their order."""
    digest = hashlib.sha256()
    for item in prompts:
        digest.update(json.dumps([item.id, prompt_hash(item.prompt)]).encode() + b"\n")
    return digest.hexdigest()
