"""What answers are compared with, and what the length-controlled win rate needs besides: the owners' three files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.sources.files import existing, open_content
from src.errors import UserError

HUB = "tatsu-lab/alpaca_eval"
FILES = {
    "reference_outputs": "alpaca_eval_gpt4_baseline.json",
    "gamed_annotations": "df_gamed.csv",
    "instruction_difficulty": "instruction_difficulty.csv",
}
"""Configuration key -> name of the file in the hub's dataset."""

GAMED_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")


@dataclass(frozen=True)
class Question:
    """An instruction with the baseline's answer; ``dataset``: the collection it is from ("" where that is not said)."""

    instruction: str
    output: str
    dataset: str = ""


@dataclass(frozen=True)
class Reference:
    """The benchmark's data: ``questions`` in their order, the ``baseline``'s name, and ``gamed``, the text of the CSV
    of the baseline's own verbose and concise answers judged against itself (df_gamed.csv), which holds each
    instruction's difficulty too ("" where it is not at hand: then there is no length-controlled win rate).
    ``sources``: key -> path and hash of the files read."""

    questions: tuple[Question, ...]
    baseline: str
    gamed: str
    sources: Mapping[str, Mapping[str, str]]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Instruction -> its place."""
        return {question.instruction: place for place, question in enumerate(self.questions)}

    def first(self, count: int | None) -> Reference:
        """The first ``count`` questions, for a trial."""
        if count is None or count >= len(self.questions):
            return self
        rows = list(csv.DictReader(io.StringIO(self.gamed)))
        kept = csv_text(GAMED_COLUMNS, [row for row in rows if int(row["index"]) < count])
        return Reference(self.questions[:count], self.baseline, kept, self.sources)

    def describe(self) -> dict[str, Any]:
        """Hashes of all of it, as plain data."""
        questions = json.dumps([[q.instruction, q.output, q.dataset] for q in self.questions])
        return {
            "baseline": self.baseline,
            "questions": len(self.questions),
            "questions_hash": hashlib.sha256(questions.encode()).hexdigest(),
            "gamed_hash": hashlib.sha256(self.gamed.encode()).hexdigest(),
        }


def read_reference_for_stored(given: Mapping[str, str | None], cache: Path) -> Reference:
    """Like ``read_reference``, but without the gamed annotations where they are nowhere: raw win rates need none."""
    try:
        return read_reference(given, cache)
    except UserError:
        if given.get("gamed_annotations") is not None:
            raise
    path = located_file("reference_outputs", given.get("reference_outputs"), cache)
    questions, baseline = read_baseline(path)
    return Reference(questions, baseline, "", {"reference_outputs": {"path": str(path), "hash": file_hash(path)}})


def read_reference(given: Mapping[str, str | None], cache: Path) -> Reference:
    """The reference from local files, and for keys of ``FILES`` that are null from the hub's cache or the hub.

    ``instruction_difficulty`` is only read where it is given: the second file holds the same numbers, which it then
    replaces. Raises ``UserError`` for files that are absent, damaged, or do not belong together.
    """
    paths = {key: located_file(key, given.get(key), cache) for key in ("reference_outputs", "gamed_annotations")}
    questions, baseline = read_baseline(paths["reference_outputs"])
    rows = read_gamed(paths["gamed_annotations"], len(questions))
    if given.get("instruction_difficulty"):
        paths["instruction_difficulty"] = located_file("instruction_difficulty", given["instruction_difficulty"], cache)
        values = read_difficulty(paths["instruction_difficulty"], len(questions))
        rows = [row | {"instruction_difficulty": values[int(row["index"])]} for row in rows]
    sources = {key: {"path": str(path), "hash": file_hash(path)} for key, path in paths.items()}
    return Reference(questions, baseline, csv_text(GAMED_COLUMNS, rows), sources)


def located_file(key: str, given: str | None, cache: Path) -> Path:
    """The file that a key names, or the hub's: from Hugging Face's own cache, from ``cache``, or fetched into it."""
    if given is not None:
        return existing(given, key)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name = FILES[key]
    stored = huggingface_hub.try_to_load_from_cache(HUB, name, repo_type="dataset")
    if isinstance(stored, str):
        return Path(stored)
    try:
        folder = cache / "alpaca_eval"
        return Path(huggingface_hub.hf_hub_download(HUB, name, repo_type="dataset", cache_dir=folder))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise UserError(
            f"{key} is not given, and {name} of {HUB} can neither be found in a cache nor be fetched from the hub "
            f"({type(error).__name__}); write {key}=FILE with a copy of it"
        ) from error


def read_text(path: Path) -> str:
    """The text of a plain or gzipped file."""
    with open_content(path) as content:
        try:
            return content.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 text (byte {error.start}); copy it again") from error


def file_hash(path: Path) -> str:
    """Hex SHA-256 of the uncompressed content, as the owners' checksums have it."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects."""
    try:
        rows = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON: {error}; it must be a list of objects") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} must be a JSON list of objects with instruction, output and generator")
    return rows


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a row; raises ``UserError`` saying where it is missing."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{key}' must be a text, not {value!r:.40}")
    return value


def read_baseline(path: Path) -> tuple[tuple[Question, ...], str]:
    """The questions and the baseline's name from alpaca_eval_gpt4_baseline.json or a file of its shape."""
    questions, names = [], set()
    for number, row in enumerate(read_list(path), 1):
        where = f"{path}, row {number}"
        texts = [text_of(row, key, where) for key in ("instruction", "output")]
        names.add(text_of(row, "generator", where))
        questions.append(Question(texts[0], texts[1], str(row.get("dataset") or "")))
    if len(names) != 1:
        raise UserError(f"{path} has answers of {', '.join(sorted(names))}; a baseline is one model")
    if len({question.instruction for question in questions}) != len(questions):
        raise UserError(f"{path} has an instruction twice, so answers could not be told apart; copy the file again")
    return tuple(questions), names.pop()


def read_gamed(path: Path, count: int) -> list[dict[str, Any]]:
    """Rows of df_gamed.csv, checked to be of ``count`` instructions, one model after the other.

    The package takes the i-th instruction's difficulty from row i, so the first rows must be of every instruction.
    """
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(read_text(path))))
    columns = set(rows[0]) if rows else set()
    if missing := [name for name in GAMED_COLUMNS if name not in columns]:
        raise UserError(f"gamed_annotations={path} has no column {missing[0]}; give df_gamed.csv of {HUB}")
    try:
        found = {int(row["index"]) for row in rows}
        first = {int(row["index"]) for row in rows[:count]}
        for row in rows:
            float(row["instruction_difficulty"]), float(row["std_delta_len"]), float(row["preference"] or "nan")
    except (ValueError, TypeError) as error:
        raise UserError(f"gamed_annotations={path} has a field that is no number: {error}; copy it again") from error
    if found != set(range(count)) or first != found:
        raise UserError(
            f"gamed_annotations={path} is of {len(found)} instructions (or not model by model), reference_outputs of "
            f"{count}; give files of one benchmark"
        )
    return rows


def read_difficulty(path: Path, count: int) -> dict[int, str]:
    """instruction_difficulty.csv: index -> number, as text."""
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    try:
        found = {int(row.get("index") or row[""]): row["instruction_difficulty"] for row in rows}
        [float(value) for value in found.values()]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"instruction_difficulty={path} has no columns index and instruction_difficulty of numbers ({error}); give "
            f"instruction_difficulty.csv of {HUB}"
        ) from error
    if sorted(found) != list(range(count)):
        raise UserError(f"instruction_difficulty={path} is of {len(found)} instructions, reference_outputs of {count}")
    return found


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
