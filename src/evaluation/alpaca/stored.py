"""`stage=score annotations=FILE`: the leaderboard's columns from stored judgments, without a model and a judge."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import Problems, UserError
from src.evaluation.alpaca.annotations import Annotations, parsed, read_annotations
from src.evaluation.alpaca.judging import Pair, preferences
from src.evaluation.alpaca.package import alpaca_eval
from src.evaluation.alpaca.reference import FILES, Reference, read_reference_for_stored
from src.evaluation.alpaca.scores import Rules, scores_of
from src.evaluation.alpaca.settings import plain, rules_of
from src.evaluation.finish import ModelScores, show
from src.evaluation.stored import files_given

if TYPE_CHECKING:
    from src.benchmark_schema import AlpacaEvalConfig

REPRODUCED = 1e-9
"""A stored preference (ten decimals) and one parsed again from its log-probs may differ by this much."""


def score_stored(config: AlpacaEvalConfig) -> int:
    """Print the scores of every model in the files of ``config.annotations``, in their order.

    Raises ``Problems`` at the end for the models that could not be scored.
    """
    alpaca_eval()
    reference = read_reference_for_stored(given_files(config), Path(config.cache_root))
    rules = rules_of(config)
    problems = []
    for found in read_annotations(files_given(plain(config.annotations), "annotations"), reference):
        try:
            if isinstance(found, UserError):
                raise found
            one = model_scores(found, reference, rules)
        except UserError as error:
            problems.append(str(error))
            continue
        show([one], "alpaca_eval", config.output)
        sys.stdout.flush()
    if problems:
        raise Problems(problems)
    return 0


def given_files(config: AlpacaEvalConfig) -> dict[str, str | None]:
    """The reference files as the configuration names them."""
    return {key: getattr(config, key) for key in FILES}


def model_scores(annotations: Annotations, reference: Reference, rules: Rules) -> ModelScores:
    """The scores of one model, and how many stored preferences its stored log-probs reproduce."""
    if not any(row.choice is not None for row in annotations.rows):
        return ModelScores(annotations.model, annotations.judge, scores_of(annotations, reference, rules))
    again = reparsed(annotations, reference)
    stored = [row.preference for row in annotations.rows]
    compared = [
        (before, after)
        for before, after, row in zip(stored, again, annotations.rows, strict=True)
        if before is not None and row.choice is not None
    ]
    equal = sum(after is not None and abs(before - after) <= REPRODUCED for before, after in compared)
    filled = [after if before is None else before for before, after in zip(stored, again, strict=True)]
    scores = scores_of(parsed(annotations, filled), reference, rules)
    counts = {**scores.counts, "parsed_again": len(compared), "reproduced": equal}
    notes = list(scores.notes)
    if equal < len(compared):
        notes.append(f"{len(compared) - equal} stored preferences differ from what their log-probs say")
    return ModelScores(annotations.model, annotations.judge, replace(scores, counts=counts, notes=tuple(notes)))


def reparsed(annotations: Annotations, reference: Reference) -> list[float | None]:
    """The preference of each row from its stored log-probs; ``None`` for rows without."""
    rows = [row for row in annotations.rows if row.choice is not None]
    questions = reference.questions
    # the two answers only have to differ: their order is drawn by the instruction
    pairs = [Pair(questions[row.place].instruction, "1", "2") for row in rows]
    values = iter(preferences(pairs, {number: row.choice for number, row in enumerate(rows)}))
    return [None if row.choice is None else next(values) for row in annotations.rows]
