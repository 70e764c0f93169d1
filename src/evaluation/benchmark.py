"""What a judged benchmark is made of: items that a model answers, requests to a judge, and scores.

A benchmark (AlpacaEval 2, Arena-Hard, MT-Bench) implements ``Benchmark``; ``stages.py`` does the rest for all of them:
generate, judge, score, each restartable, then the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from src.evaluation.items import Items
from src.evaluation.judges.base import Judged, JudgeRequest
from src.evaluation.statistics import Metric
from src.generation.client import Completion


@dataclass(frozen=True)
class Item:
    """One question. ``turns``: the user's, later ones follow on the model's own answers; ``temperature``: of the
    answers where the benchmark sets it by category, ``None`` for that of the decoding settings."""

    id: str
    turns: tuple[str, ...]
    temperature: float | None = None
    category: str = ""


Outputs = Mapping[str, tuple[str, ...]]
"""Item id -> the model's answers, one per turn. Holds every item of the benchmark, in its order."""


@dataclass(frozen=True)
class Scores:
    """What came out for one model.

    ``metrics``: the benchmark's own names and units (percent where its owners print percent), in the order to print.
    ``counts``: rows, ties, unparsable, missing, duplicates, …: how many fell under which documented rule.
    ``notes``: what a reader of the numbers must know (incomplete data, another rule), as sentences.
    ``details``: further plain data for the record (matrix of cells, per-category values).
    ``items``: metric -> item id -> value, of the metrics by which models are compared (src/evaluation/items.py).
    """

    metrics: Mapping[str, Metric]
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    items: Items = field(default_factory=dict)


class Benchmark(Protocol):
    """A judged benchmark.

    One that has an attribute ``requires_logprobs`` which is true gets no answer of a judge without log-probs, like
    every request whose settings say ``logprobs: true``: judging stops at the first. One that has a method ``sources()``
    gives its reference files to the record, name -> ``{"path", "hash"}``.
    """

    @property
    def name(self) -> str:
        """In messages."""

    def items(self) -> Sequence[Item]:
        """All questions, in the benchmark's order (of a trial, the first ``max_items``: whoever makes the benchmark
        leaves the others out). Raises ``UserError`` where its files are absent or damaged."""

    def describe(self) -> dict[str, Any]:
        """Everything that scores depend on besides model and judge, as plain data: hashes of questions, reference
        answers and judge prompts, versions of packages, rules. Under ``judge_prompts`` (or else all of it): what the
        judge is asked but for the answers, whose hash the record keeps."""

    def requests(self, outputs: Outputs) -> list[JudgeRequest]:
        """What the judge is asked about ``outputs``, in a fixed order."""

    def ask_again(self, request: JudgeRequest, answers: Sequence[Completion]) -> JudgeRequest | None:
        """The next request about the same (same id) when the answers so far hold no verdict; ``None`` to leave it.

        ``request`` is always the first of them, as ``requests`` gave it."""

    def score(self, outputs: Outputs, judged: Sequence[Judged]) -> Scores:
        """The scores; ``judged`` holds every request of ``requests(outputs)``, in its order."""

    def answer_tokens(self) -> int:
        """About how many tokens a judge's answer has, for estimates before there is any."""
