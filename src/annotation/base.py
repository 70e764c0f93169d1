"""What every scorer has in common: prompts with responses go in, a score or the reason why there is none comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from src.data.pairs import Prompt


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a prompt; ``writer``: who wrote it; ``origin``: what else is known of it (sample, seed, ...);
    ``score``: one that it came with."""

    text: str
    writer: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and all responses to it."""

    id: str
    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """``value``: higher is better, in the scorer's unit; ``None`` with the ``reason`` why there is no score."""

    value: float | None
    reason: str = ""


Item = tuple[int, int]
"""A response of a shard: (place of the prompt, place of the response among those to it)."""

Batch = tuple[Item, ...]
"""Responses that are scored together."""

Shard = Sequence[Candidates]

ScoreBatch = Callable[[Shard, Batch], list[Score]]
"""Scores of a batch's responses, in its order."""


@runtime_checkable
class Scorer(Protocol):
    """A scorer as configured: a frozen dataclass, ``scorer._target_`` names its class."""

    def describe(self) -> dict[str, Any]:
        """What the scores depend on, for manifests: equal descriptions of equal responses give equal scores."""

    def batches(self, shard: Shard) -> list[Batch]:
        """Every response of the shard once, cut into what is scored, and kept, at a time."""

    def open(self, folder: Path) -> ScoreBatch:
        """Load what is needed to score; ``folder`` is where a scorer may keep what it has paid for."""


def every_item(shard: Shard) -> list[Item]:
    """All responses of a shard, in order."""
    return [(prompt, place) for prompt, item in enumerate(shard) for place in range(len(item.responses))]


def by_prompt(shard: Shard) -> list[Batch]:
    """One batch a prompt."""
    return [
        tuple((prompt, place) for place in range(len(item.responses)))
        for prompt, item in enumerate(shard)
        if item.responses
    ]


def length_sorted(shard: Shard, size: int) -> list[Batch]:
    """Batches of at most ``size`` responses of like length (characters of the conversation), longest first: little
    padding, and what does not fit in memory fails at once."""

    def length(item: Item) -> int:
        candidates = shard[item[0]]
        turns = sum(len(message.content) for message in candidates.prompt)
        return turns + len(candidates.responses[item[1]].text)

    ordered = sorted(every_item(shard), key=lambda item: (-length(item), item))
    return [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def conversation_text(prompt: Prompt) -> str:
    """A prompt as one text: a single user turn as it is, a longer conversation with the name of each speaker."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)
