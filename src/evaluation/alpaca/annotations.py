"""Stored judgments in any of three forms, as rows of (question, preference, lengths).

* alpaca-eval's ``annotations.json``: a list of rows with instruction, output_1, output_2, generator_2, preference;
* slim lines: one JSON object a model, with the lists instr_index, len_1, len_2, preference;
* log-probs: one JSON object a judgment, with model, instr_index, logprobs and, to compare with, preference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from src.errors import UserError
from src.evaluation.alpaca.reference import Reference, text_of
from src.evaluation.stored import stored_rows

SLIM = ("instr_index", "len_1", "len_2", "preference")


@dataclass(frozen=True)
class Row:
    """One judgment. ``place``: of the question in the baseline's file. ``preference``: from 1 (the baseline is
    better) to 2 (the model is), 0 for a tie in old files, ``None`` without one. Lengths in characters, ``None`` where
    they are not told. ``choice``: the judge's raw answer where it is stored."""

    place: int
    preference: float | None
    length_1: int | None
    length_2: int | None
    choice: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Annotations:
    """A model's judgments, in the file's order. ``generator``: the model's name inside the file, where the package
    looks for the baseline's; ``judge``: the annotator's name, if told; ``source``: where they were read."""

    model: str
    generator: str
    judge: str | None
    rows: tuple[Row, ...]
    source: str


Found = Annotations | UserError
"""A model's judgments, or what is wrong with them."""


def read_annotations(paths: Sequence[str], reference: Reference) -> Iterator[Found]:
    """The models of all files in order, each once; what is wrong with one model does not hide the others.

    Raises ``UserError`` for a file that cannot be read at all.
    """
    seen: dict[str, str] = {}
    for name in paths:
        for found in models_of(name, reference):
            if isinstance(found, Annotations) and found.model in seen:
                yield UserError(
                    f"{found.model}: judgments in {found.source} and before in {seen[found.model]}; give one of them"
                )
                continue
            if isinstance(found, Annotations):
                seen[found.model] = found.source
            yield found


def models_of(name: str, reference: Reference) -> Iterator[Found]:
    """The models of one file."""
    records = [(f"{file}:{line}", record) for file, line, record in stored_rows(name, "annotations")]
    if all(set(SLIM) <= set(record) for _, record in records):
        for where, record in records:
            yield attempted(lambda record=record, where=where: slim(record, where, reference))  # type: ignore[misc]
        return
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for where, record in records:
        key = "model" if "logprobs" in record and "instr_index" in record else "generator_2"
        groups.setdefault(text_of(record, key, where), []).append((where, record))
    for model, rows in groups.items():
        yield attempted(lambda model=model, rows=rows: grouped(model, rows, name, reference))  # type: ignore[misc]


def attempted(read: Callable[[], Annotations]) -> Found:
    try:
        return read()
    except UserError as error:
        return error


def slim(record: Mapping[str, Any], where: str, reference: Reference) -> Annotations:
    """A line with the lists of one model."""
    model = text_of(record, "model", where)
    columns = [record[name] for name in SLIM]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        raise UserError(f"{where}: {model}: {', '.join(SLIM)} must be lists of one length")
    rows = tuple(
        Row(place_of(place, reference, where), preference_of(preference, where), *lengths_of(length_1, length_2, where))
        for place, length_1, length_2, preference in zip(*columns, strict=True)
    )
    generator = record.get("generator_2")
    return Annotations(
        model, generator if isinstance(generator, str) else model, judge_of([record], where), rows, where
    )


def grouped(
    model: str, records: Sequence[tuple[str, Mapping[str, Any]]], path: str, reference: Reference
) -> Annotations:
    """Rows of one model, each a judgment."""
    rows = tuple(one_row(record, where, reference) for where, record in records)
    judge = judge_of([record for _, record in records], f"{path}: {model}")
    refuse_other_baseline(model, records, rows, path, reference)
    return Annotations(model, model, judge, rows, path)


def one_row(record: Mapping[str, Any], where: str, reference: Reference) -> Row:
    """A row of annotations.json, or of log-probs."""
    if "logprobs" in record and "instr_index" in record:
        preference = preference_of(record.get("preference"), where)
        return Row(place_of(record["instr_index"], reference, where), preference, None, None, record)
    instruction = text_of(record, "instruction", where)
    place = reference.positions.get(instruction)
    if place is None:
        raise UserError(f"{where}: the instruction {instruction!r:.60} is none of reference_outputs")
    if "preference" not in record:
        raise UserError(f"{where}: there is no 'preference'; rows are those of alpaca-eval's annotations.json")
    lengths = (len(text_of(record, "output_1", where)), len(text_of(record, "output_2", where)))
    choice = record.get("preference_raw_completion") or record.get("raw_completion")
    stored = choice if isinstance(choice, Mapping) and choice.get("logprobs") else None
    return Row(place, preference_of(record["preference"], where), *lengths, stored)


def place_of(value: Any, reference: Reference, where: str) -> int:
    """The place of a question by its number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(reference.questions):
        raise UserError(f"{where}: instr_index {value!r:.20} is none of 0 to {len(reference.questions) - 1}")
    return value


def preference_of(value: Any, where: str) -> float | None:
    """A preference as the file has it; ``None`` for null and for what is no finite number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: a preference is a number from 1 to 2 (0 for a tie) or null, not {value!r:.40}")
    return float(value) if math.isfinite(value) else None


def lengths_of(length_1: Any, length_2: Any, where: str) -> tuple[int, int]:
    """Two lengths in characters."""
    for length in (length_1, length_2):
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise UserError(f"{where}: a length is a whole number of characters, not {length!r:.40}")
    return length_1, length_2


def judge_of(records: Sequence[Mapping[str, Any]], where: str) -> str | None:
    """The one annotator of some rows."""
    names = {record.get("annotator") or record.get("preference_annotator") for record in records} - {None}
    if len(names) > 1:
        raise UserError(f"{where}: judged by {', '.join(sorted(map(str, names)))}; a score is by one judge")
    return str(names.pop()) if names else None


def refuse_other_baseline(
    model: str,
    records: Sequence[tuple[str, Mapping[str, Any]]],
    rows: Sequence[Row],
    path: str,
    reference: Reference,
) -> None:
    """Raise ``UserError`` for judgments against another model: another name, and other answers too."""
    names = {str(record["generator_1"]) for _, record in records if record.get("generator_1") is not None}
    other = sorted(names - {reference.baseline})
    same = all(
        record.get("output_1") == reference.questions[row.place].output
        for (_, record), row in zip(records, rows, strict=True)
    )
    if other and not same:
        raise UserError(
            f"{model}: judged against {other[0]} in {path}, but reference_outputs are of {reference.baseline}; give "
            "the reference files of that baseline"
        )


def parsed(annotations: Annotations, preferences: Sequence[float | None]) -> Annotations:
    """The same with other preferences, one per row."""
    rows = tuple(replace(row, preference=value) for row, value in zip(annotations.rows, preferences, strict=True))
    return replace(annotations, rows=rows)
