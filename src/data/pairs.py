"""The records every source is read into: preference pairs, demonstrations, scored responses.

Each has a JSON-lines form (``to_json``/``from_json``), which is also the format of ``dataset=local``.
Scores are annotation scores, higher is better, in the source's own unit; ``None`` means unscored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from src.errors import UserError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


Prompt = tuple[Message, ...]
"""A conversation that ends with a user turn."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response.

    ``flipped`` says that noise exchanged the two (scores and writers travel with their response).
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    chosen_writer: str | None = None
    rejected_writer: str | None = None
    flipped: bool = False

    def to_json(self) -> dict[str, Any]:
        """The pair as a JSON object; absent scores and writers are left out."""
        record: dict[str, Any] = {
            "id": self.id,
            "prompt": [{"role": m.role, "content": m.content} for m in self.prompt],
            "chosen": self.chosen,
            "rejected": self.rejected,
        }
        for name in ("chosen_score", "rejected_score", "chosen_writer", "rejected_writer"):
            value = getattr(self, name)
            if value is not None:
                record[name] = value
        if self.flipped:
            record["flipped"] = True
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PreferencePair:
        """Read a pair; ``prompt`` may be a string (one user turn) or a list of messages.

        Raises ``UserError`` (without file and line, which the reader adds) for a missing field,
        a response that is no string, a score that is no finite number.
        """
        return cls(
            id=str(require(record, "id")),
            prompt=prompt_from_json(require(record, "prompt")),
            chosen=text_field(record, "chosen"),
            rejected=text_field(record, "rejected"),
            chosen_score=score_field(record, "chosen_score"),
            rejected_score=score_field(record, "rejected_score"),
            chosen_writer=optional_text(record, "chosen_writer"),
            rejected_writer=optional_text(record, "rejected_writer"),
            flipped=bool(record.get("flipped", False)),
        )


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with one response to imitate (supervised fine-tuning).

    ``opening``: the first turns of its conversation, where several demonstrations are of one: the split is drawn by
    them, so that the turns of a conversation stay together. ``None``: by the prompt.
    """

    id: str
    prompt: Prompt
    response: str
    # not in repr, by which the toy world's demonstrations are versioned
    opening: Prompt | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response to a prompt, its score and who wrote it.

    ``aspects``: (name, rating) of what was rated apart, in the source's unit; ``None`` where an aspect has no rating.
    """

    text: str
    score: float | None
    writer: str | None = None
    # not in repr, by which the toy world's responses are versioned
    aspects: tuple[tuple[str, float | None], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ScoredResponses:
    """All responses to one prompt."""

    id: str
    prompt: Prompt
    responses: tuple[ScoredResponse, ...]


def prompt_hash(prompt: Prompt) -> str:
    """Hex SHA-256 of a prompt's roles and texts: what splits and demonstrations are keyed by."""
    digest = hashlib.sha256()
    for message in prompt:
        for part in (message.role, message.content):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def require(record: Mapping[str, Any], name: str) -> Any:
    """The field ``name``; raises ``UserError`` when it is missing or null."""
    if record.get(name) is None:
        present = ", ".join(sorted(map(str, record))) or "no fields"
        raise UserError(f"field '{name}' is missing (the record has: {present})")
    return record[name]


def text_field(record: Mapping[str, Any], name: str) -> str:
    """The string field ``name``; raises ``UserError`` for anything that is not a string."""
    value = require(record, name)
    if not isinstance(value, str):
        raise UserError(f"field '{name}' must be a string, not {type(value).__name__}: {value!r:.60}")
    return value


def optional_text(record: Mapping[str, Any], name: str) -> str | None:
    """Like ``text_field``, but ``None`` when the field is absent or null."""
    return None if record.get(name) is None else text_field(record, name)


def score_field(record: Mapping[str, Any], name: str) -> float | None:
    """The finite number in field ``name`` or ``None``; raises ``UserError`` for NaN, inf and non-numbers."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"field '{name}' must be a number, not {type(value).__name__}: {value!r:.60}")
    if not math.isfinite(value):
        raise UserError(f"field '{name}' is {value}: scores must be finite numbers; remove or correct the record")
    return float(value)


def prompt_from_json(value: Any) -> Prompt:
    """A prompt from a string (one user turn) or a list of ``{"role", "content"}`` messages.

    Raises ``UserError`` for another shape, an unknown role, or a last turn that is not the user's.
    """
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, Sequence) or not value:
        raise UserError(f"field 'prompt' must be a string or a non-empty list of messages, not {value!r:.60}")
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise UserError(f"each message of 'prompt' must be an object with role and content, not {message!r:.60}")
        role, content = text_field(message, "role"), text_field(message, "content")
        if role not in ROLES:
            raise UserError(f"message role '{role}' is unknown; use one of {', '.join(ROLES)}")
        messages.append(Message(role, content))
    if messages[-1].role != "user":
        raise UserError(f"a prompt must end with a user turn, this one ends with '{messages[-1].role}'")
    return tuple(messages)
