"""Ranking of stored rewards: files of one row per pair, of one model or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.data.sources.files import located
from src.errors import UserError
from src.evaluation.finish import ModelScores
from src.evaluation.ranks.scoring import NUMBERS, score_rows
from src.evaluation.stored import files_given, stem_of, stored_rows


def stored_scores(samples: Any, min_score_gap: float) -> list[ModelScores]:
    """The scores of every model in ``samples`` (a file, a directory of ours, or a list), in the order of the files."""
    models = read_pairs(files_given(samples, "samples"))
    known = {str(row["id"]) for rows in models.values() for row in rows if row.get("id") is not None}
    found = []
    for name, rows in models.items():
        try:
            scores = score_rows(rows, min_score_gap)
        except UserError as error:
            raise UserError(f"samples={samples}, model '{name}': {error}") from error
        own = {str(row["id"]) for row in rows if row.get("id") is not None}
        missing = len(known) - len(own) if own else 0
        notes = [f"{missing} pairs that other models of these files have are missing: left out"] if missing else []
        counts = {**scores.counts, "missing": missing}
        found.append(ModelScores(name, None, replace(scores, counts=counts, notes=(*scores.notes, *notes))))
    return found


def read_pairs(files: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Model -> its rows; a row without ``model`` belongs to the one that the file is named after.

    Raises ``UserError`` with file and line for a field of another type.
    """
    models: dict[str, list[Mapping[str, Any]]] = {}
    for name in files:
        default = stem_of(name)
        for file, line, row in stored_rows(name, "samples"):
            with located(Path(file), line):
                check(row)
            models.setdefault(str(row.get("model") or default), []).append(row)
    return models


def check(row: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for a number that is none, or a flag that is none."""
    for name in NUMBERS:
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"field '{name}' must be a number or null, not {value!r:.40}")
    if not isinstance(row.get("flipped", False), bool):
        raise UserError(f"field 'flipped' must be true or false, not {row['flipped']!r:.40}")
