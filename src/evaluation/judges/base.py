"""What every judge takes and gives: requests in a benchmark's own words, and raw answers that the benchmark parses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from src.data.pairs import Prompt
from src.generation.client import Completion


@dataclass(frozen=True)
class Opinion:
    """What the toy world's oracle thinks. ``scores``: of each answer shown, in points; ``preference``: the
    probability that the first of two is better, ``None`` for a single answer."""

    scores: tuple[float, ...]
    preference: float | None


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge.

    ``id``: unique within the benchmark and the same in every process (``81:turn-2``, ``<uid>:game-1``).
    ``messages`` and ``settings``: what a language model is asked, as the benchmark's owners ask it.
    ``prompt`` and ``answers``: the same as data, answers in the order in which the judge sees them (one is graded,
    two are compared); the oracle reads nothing else. ``spoken``: writes an opinion of the oracle in the words (or
    log-probs) that the benchmark parses, so that its parser runs in the toy world too.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    settings: Mapping[str, Any]
    prompt: Prompt
    answers: tuple[str, ...]
    spoken: Callable[[Opinion], Completion] = field(compare=False)

    @property
    def hash(self) -> str:
        """Hex SHA-256 of what is asked: messages and settings. A stored judgment serves for no other request."""
        content = [[dict(message) for message in self.messages], dict(self.settings)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Judged:
    """A request and the judge's answers to it: one, or several where the benchmark asked on (``ask_again``)."""

    request: JudgeRequest
    answers: tuple[Completion, ...]


class Judge(Protocol):
    """An opened judge. May be used for any number of ``answer`` calls."""

    def describe(self) -> dict[str, Any]:
        """Everything of the judge that its answers depend on, as plain data, ``name`` and ``model`` among them."""

    def answer(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Completion]]:
        """(index, raw answer) of every request, each as soon as it is there, in any order."""

    def close(self) -> None:
        """Give back what the judge holds."""


class JudgeSettings(Protocol):
    """A choice of conf/judge: light, and opened when there is something to judge."""

    paid: ClassVar[bool]

    @property
    def input_price(self) -> float | None:
        """USD per million tokens asked; ``None`` where unknown."""

    @property
    def output_price(self) -> float | None:
        """USD per million tokens answered, likewise."""

    @property
    def concurrency(self) -> int:
        """Requests under way at a time."""

    @property
    def seconds_per_answer(self) -> float:
        """About how long one answer takes."""

    def problems(self) -> list[str]:
        """Why it cannot be asked from here (no key in the environment, a file that is absent), as sentences."""

    def open(self, cache: Path) -> Judge:
        """The judge; ``cache``: a folder for raw answers by the whole request, which no second call asks for."""


def has_logprobs(answer: Completion) -> bool:
    """Whether an answer that should have log-probs has them, or was withheld by a filter, which leaves none."""
    return bool(answer.logprobs) or answer.finish_reason == "content_filter"
