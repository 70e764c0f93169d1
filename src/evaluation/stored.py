"""Files of stored results, scored alone: JSON lines or a JSON list, plain or gzipped, or a directory of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.data.sources.files import existing, open_content, read_json_lines
from src.errors import UserError
from src.generation.shards import MANIFEST, read_records


def files_given(value: Any, key: str) -> list[str]:
    """The file or files that a key names; raises ``UserError`` for none."""
    files = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
    if not files or not all(isinstance(name, str) and name for name in files):
        raise UserError(f"{key}={value} names no file; give {key}=FILE or {key}=[FILE,FILE]")
    if repeated := sorted({name for name in files if files.count(name) > 1}):
        raise UserError(f"{key} names {', '.join(repeated)} twice, so its rows would count twice; name it once")
    return files


def stored_rows(name: str, key: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(file, line or place from 1, object) of a stored file, or of a directory that a stage of ours finished.

    Raises ``UserError`` naming ``key`` for one that is absent, with file and line for a bad row.
    """
    path = existing(name, key)
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    if path.is_dir():
        rows = enumerate(read_records(path), 1)
    else:
        rows = enumerate(json_list(path), 1) if begins_a_list(path) else read_json_lines(path)
    for line, record in rows:
        yield str(path), line, record


def refuse_second_judge(judges: dict[str | None, None], judge: str | None) -> None:
    """Add ``judge`` to those seen so far; raises ``UserError`` for a second one, whose scores cannot be compared."""
    judges.setdefault(judge)
    if len(judges) > 1:
        names = " and ".join("nobody named" if name is None else name for name in judges)
        raise UserError(f"judged by {names}, whose scores cannot be compared; score each judge's apart")


def begins_a_list(path: Path) -> bool:
    """Whether the first character that is no space is a bracket."""
    with open_content(path) as content:
        while block := content.read(64):
            if block.strip():
                return block.lstrip()[:1] == b"["
    return False


def json_list(path: Path) -> list[Mapping[str, Any]]:
    """A file that is one JSON list of objects."""
    with open_content(path) as content:
        try:
            rows = json.loads(content.read())
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}; restore it, or write it again") from error
    if bad := [place for place, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise UserError(f"{path}: item {bad[0]} is no JSON object; give a list of objects")
    if not rows:
        raise UserError(f"{path} holds an empty list; give a file with rows")
    found: list[Mapping[str, Any]] = rows
    return found


def stem_of(name: str) -> str:
    """What a stored file is called where it names no model: its name without endings; a directory's own."""
    path = Path(name).expanduser()
    found = path.resolve().name
    if path.is_dir() and (path / MANIFEST).is_file():
        return found
    for ending in (".gz", ".jsonl", ".json"):
        found = found.removesuffix(ending)
    return found
