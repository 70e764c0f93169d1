"""Scoring judgments that are stored already: no checkpoint, no judge, no network, no record."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from src.data.sources.files import existing
from src.errors import Problems
from src.evaluation.finish import ModelScores
from src.evaluation.mtbench.files import (
    Layout,
    layout_of,
    official_layout,
    read_judgments,
    read_questions,
)
from src.evaluation.mtbench.ratings import score

if TYPE_CHECKING:
    from src.benchmark_schema import MTBenchConfig

UNREAD = (
    *("checkpoint", "outputs", "template", "dtype", "max_items", "reference_answers", "judge_prompts"),
    *("decoding.temperature", "decoding.top_p", "decoding.max_new_tokens"),
)
"""Keys, null unless they are given, that stored judgments have no use for."""


def stored_scores(config: MTBenchConfig) -> list[ModelScores]:
    """The scores of every model in the files ``config.judgments``, in their order."""
    refuse_unread(config)
    layout = layout_for(config.questions)
    found = read_judgments(config.judgments, layout)
    return [
        ModelScores(one.model, one.judge, score(one.judgments, layout.categories, layout.turns, config.duplicates))
        for one in found
    ]


def layout_for(questions: str | None) -> Layout:
    """That of the questions file, or of the official questions."""
    if questions is not None:
        return layout_of(read_questions(existing(questions, "questions")))
    print("questions: the official ones, ids 81 to 160 (questions= names others)", file=sys.stderr)
    return official_layout()


def refuse_unread(config: MTBenchConfig) -> None:
    """Raise ``Problems`` for keys that would not be read."""
    problems = []
    if config.stage != "score":
        problems.append(f"judgments= is for stage=score, not stage={config.stage}; write stage=score, or leave it out")
    given = {key: value_of(config, key) for key in UNREAD}
    problems += [
        f"{key}={value} would not be read where stored judgments are scored; leave it out"
        for key, value in given.items()
        if value is not None
    ]
    if config.which != "best":
        problems.append(f"which={config.which} would not be read where stored judgments are scored; leave it out")
    if config.benchmark != "official":
        problems.append(
            f"benchmark={config.benchmark} would not be read where stored judgments are scored; their questions are "
            "those of questions=FILE"
        )
    if config.dry_run:
        problems.append("dry_run=true has nothing to tell where stored judgments are scored; leave it out")
    if problems:
        raise Problems(problems)


def value_of(config: MTBenchConfig, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
