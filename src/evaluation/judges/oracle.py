"""The toy world's own judge: grades answers by the world's rules and speaks in the benchmark's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from src.data.toy.scorer import judge_preference, length_bonus, score_response
from src.errors import UserError
from src.evaluation.judges.base import JudgeRequest, Opinion
from src.evaluation.judges.settings import Oracle
from src.generation.client import Completion


class OracleJudge:
    """``Judge`` without a model. Scores are those of ``score_response`` plus the length bonus, in points."""

    def __init__(self, settings: Oracle) -> None:
        self.settings = settings

    def describe(self) -> dict[str, Any]:
        own = self.settings
        return {
            "name": own.name,
            "model": own.model,
            "length_bias": own.length_bias,
            "temperature": own.temperature,
        }

    def opinion(self, request: JudgeRequest) -> Opinion:
        """What it thinks; raises ``UserError`` for a prompt that is not of the toy world."""
        bias = self.settings.length_bias
        try:
            scores = tuple(
                score_response(request.prompt, text).overall + length_bonus(text, bias) for text in request.answers
            )
            preference = None
            if len(request.answers) == 2:
                preference = judge_preference(
                    request.prompt, *request.answers, length_bias=bias, temperature=self.settings.temperature
                )
        except UserError as error:
            raise UserError(
                f"judge=oracle cannot judge request {request.id}: {error}; it knows the toy world alone, so give "
                "benchmark=toy, or another judge"
            ) from error
        return Opinion(scores, preference)

    def answer(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            yield index, replace(request.spoken(self.opinion(request)), date=now)

    def close(self) -> None:
        """Nothing is held."""
