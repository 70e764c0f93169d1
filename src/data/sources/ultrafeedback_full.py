"""The whole of UltraFeedback: four responses of different models per instruction, rated in four aspects by GPT-4.

Source: Cui et al. 2023, https://huggingface.co/datasets/openbmb/UltraFeedback; a row is {source, instruction, models,
completions: [{model, response, overall_score, fine-grained_score, annotations: {aspect: {Rating, ...}}}]}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.hub import load_hub_dataset
from src.data.pairs import (
    PreferencePair,
    ScoredResponse,
    ScoredResponses,
    optional_text,
    prompt_from_json,
    require,
    score_field,
    text_field,
)
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import FileOrHubSource, at
from src.data.sources.files import data_files
from src.data.sources.pairing import PairedResponses, comparable
from src.errors import UserError

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
SCORES = ("overall", "aspects")
NOT_RATED = ("N/A", "NA", "")


@dataclass(frozen=True)
class UltraFeedbackFull(PairedResponses, FileOrHubSource):
    """The data set from the hub, or from ``path``: a parquet or JSON-lines file, or a directory of them.

    ``score``: ``overall`` (``overall_score``, 1 to 10, GPT-4's verdict after its critique) or ``aspects`` (mean of the
    four ratings, 1 to 5; as in UltraFeedback's own code a rating of N/A is left out of the mean, and counted).
    ``leave_out``: rows of these origins (column ``source``) are skipped and counted.
    ``pairing``, ``min_gap``, ``pairs_per_prompt`` and ``seed`` are those of ``Pairing``.
    The system prompts by which the responses were steered are no part of the prompt, as in the binarized set.
    """

    path: str | None = None
    hub_id: str = "openbmb/UltraFeedback"
    revision: str | None = None
    score: str = "overall"
    leave_out: tuple[str, ...] = ()
    pairing: str = "best_worst"
    min_gap: float = 0.0
    pairs_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.how()
        if self.score not in SCORES:
            raise UserError(f"dataset.source.score={self.score} is unknown; use one of {', '.join(SCORES)}")

    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses to each instruction, named by its row; ``UserError`` with file and row for a bad record."""
        return (item for item in self._read() if isinstance(item, ScoredResponses))

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """The pairs of each instruction, and what was left out: rows, responses without a score, ratings of N/A."""
        how = self.how()
        for item in comparable(self._read()):
            if isinstance(item, Skipped):
                yield item
                continue
            if self.score == "aspects":
                yield from unrated(item)
            yield from how.pairs_of(item)

    def options(self) -> dict[str, Any]:
        """Score, origins left out, and the pairing's settings."""
        return {"score": self.score, "leave_out": sorted(self.leave_out)} | self.how().options()

    def _read(self) -> Iterator[ScoredResponses | Skipped]:
        for position, (where, record) in enumerate(self.rows(), 1):
            identity = f"ultrafeedback-{position:06d}"
            with at(where):
                origin = optional_text(record, "source")
                kept = origin not in self.leave_out
                item = responses_of(identity, record, self.score) if kept else Skipped(identity, f"left out: {origin}")
            yield item

    def _files(self) -> list[Path] | None:
        return None if self.path is None else data_files(self.path)

    def _hub(self) -> Any:
        return load_hub_dataset(self.hub_id, split="train", revision=self.revision)


def unrated(item: ScoredResponses) -> Iterator[Skipped]:
    """The ratings of N/A among the responses that have a score all the same."""
    for place, response in enumerate(item.responses):
        for name, rating in response.aspects:
            if rating is None and response.score is not None:
                yield Skipped(f"{item.id}/{place}/{name}", "rating N/A (left out of a mean)")


def responses_of(identity: str, record: Mapping[str, Any], score: str) -> ScoredResponses:
    """All completions in one row; raises ``UserError`` for a missing or wrong field, naming the completion."""
    prompt = prompt_from_json(text_field(record, "instruction"))
    completions = require(record, "completions")
    if not isinstance(completions, list):
        raise UserError(f"field 'completions' must be a list of objects, not {completions!r:.60}")
    responses = []
    for place, completion in enumerate(completions):
        with at(f"completion {place}"):
            responses.append(_response(completion, score))
    return ScoredResponses(identity, prompt, tuple(responses))


def _response(completion: Any, score: str) -> ScoredResponse:
    if not isinstance(completion, Mapping):
        raise UserError(f"must be an object with model, response and annotations, not {completion!r:.60}")
    writer, text = text_field(completion, "model"), text_field(completion, "response")
    if score == "overall":
        if "overall_score" not in completion:
            require(completion, "overall_score")
        rated = completion["overall_score"] not in NOT_RATED
        value = score_field(completion, "overall_score") if rated else None
        aspects = aspects_of(completion, [name for name in ASPECTS if name in (completion.get("annotations") or ())])
    else:
        aspects = aspects_of(completion, ASPECTS)
        ratings = [rating for _, rating in aspects if rating is not None]
        value = sum(ratings) / len(ratings) if ratings else None
    return ScoredResponse(text, value, writer, aspects)


def aspects_of(completion: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, float | None], ...]:
    """(aspect, rating) of these aspects, ``None`` for N/A; raises ``UserError`` for a missing or another rating."""
    annotations = require(completion, "annotations") if names else {}
    if not isinstance(annotations, Mapping):
        raise UserError(f"field 'annotations' must be an object with {', '.join(ASPECTS)}, not {annotations!r:.60}")
    return tuple((name, _rating(annotations, name)) for name in names)


def _rating(annotations: Mapping[str, Any], name: str) -> float | None:
    annotation = require(annotations, name)
    if not isinstance(annotation, Mapping) or "Rating" not in annotation:
        raise UserError(f"annotations.{name} must be an object with a Rating, not {annotation!r:.60}")
    rating = annotation["Rating"]
    if rating is None or rating in NOT_RATED:
        return None
    try:
        return float(rating)
    except (TypeError, ValueError) as error:
        raise UserError(f"annotations.{name}.Rating must be a number or N/A, not {rating!r:.60}") from error
