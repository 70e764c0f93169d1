"""Scorers that need no model: the toy world's ground truth, and scores that the responses came with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.annotation.base import Batch, Score, ScoreBatch, Shard, by_prompt
from src.data.toy.scorer import score_task
from src.data.toy.source import world_version
from src.data.toy.tasks import parse_task
from src.errors import UserError


@dataclass(frozen=True)
class Oracle:
    """The toy world's ground-truth grade, from 1 to 5 (docs/toy_world.md); prompts of other worlds are refused."""

    def describe(self) -> dict[str, Any]:
        return {"scorer": "oracle", "world": world_version()}

    def batches(self, shard: Shard) -> list[Batch]:
        return by_prompt(shard)

    def open(self, folder: Path) -> ScoreBatch:
        return _grades


@dataclass(frozen=True)
class Recorded:
    """The scores that the responses of a file came with; nothing is computed, only pairs are made."""

    def describe(self) -> dict[str, Any]:
        return {"scorer": "recorded"}

    def batches(self, shard: Shard) -> list[Batch]:
        return by_prompt(shard)

    def open(self, folder: Path) -> ScoreBatch:
        return _recorded


def _grades(shard: Shard, batch: Batch) -> list[Score]:
    candidates = shard[batch[0][0]]
    try:
        task = parse_task(candidates.prompt)
    except UserError as error:
        raise UserError(
            f"prompt '{candidates.id}': {error}; scorer=oracle knows the toy world alone, so choose "
            "scorer=reward_model, pair_ranker or judge"
        ) from error
    return [Score(score_task(task, candidates.responses[place].text).overall) for _, place in batch]


def _recorded(shard: Shard, batch: Batch) -> list[Score]:
    candidates = shard[batch[0][0]]
    scores = []
    for _, place in batch:
        value = candidates.responses[place].score
        if value is None:
            raise UserError(
                f"prompt '{candidates.id}', response {place}: no score is recorded; scorer=recorded needs one with "
                "every response, so give a file of scored responses, or another scorer"
            )
        scores.append(Score(value))
    return scores
