"""Evaluation records: one JSON file per measured (run, benchmark, split, settings). No record, no table cell.

Files are added, whole or not at all, and never overwritten: what is measured again with another result stands beside
the earlier record as ``<id>.2.json``, and readers take the newest.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from src.errors import UserError
from src.evaluation.items import FOLDER, Items, compressed, content_of, hash_of, read_items
from src.evaluation.record import DataInfo, JudgeInfo, Record, RunInfo, describe_noise, describe_run, section_name
from src.evaluation.record_schema import check

__all__ = [
    "DataInfo",
    "JudgeInfo",
    "Record",
    "RunInfo",
    "describe_noise",
    "describe_run",
    "differing",
    "items_of",
    "newest",
    "read_record",
    "read_records",
    "section_name",
    "write_record",
]

RANKING = "python -m src.evaluation.ranking checkpoint=RUN"
Say = Callable[[str], None]


def write_record(directory: Path, record: Record, items: Items | None = None) -> Path:
    """Add ``<directory>/<id>.json``, with ``items`` beside it; return the path of the record that holds the result.

    A result that the newest record of the same id has already is not written again; another one is added as
    ``<id>.2.json``, …. Two processes that write at once both find a place. Raises ``UserError`` for a record without
    provenance and for a directory that cannot be written.
    """
    content = content_of(items or {})
    named = sorted(metric for metric, values in (items or {}).items() if values)
    record = replace(record, items={"path": "", "hash": hash_of(content), "metrics": named} if named else {}, file=None)
    check(json.loads(text_of(replace(record, items={**record.items, "path": f"{FOLDER}/-"} if named else {}))))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        while True:
            newest = newest_number(directory, record.id)
            if newest and read_record(directory / name_of(record.id, newest)).result == record.result:
                return directory / name_of(record.id, newest)
            if named:
                record = replace(record, items={**record.items, "path": keep_items(directory, record.id, content)})
            path = directory / name_of(record.id, newest + 1)
            if add(path, text_of(record).encode()):
                return path
    except OSError as error:
        raise UserError(
            f"the record cannot be written to {directory / name_of(record.id, 1)}: {error.strerror}; give a folder "
            "that can be written"
        ) from error


def text_of(record: Record) -> str:
    """The record as its file holds it."""
    return json.dumps(record.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def name_of(record_id: str, number: int, ending: str = "json") -> str:
    """``ID.json`` of the first measurement, then ``ID.2.json``, …"""
    return f"{record_id}.{ending}" if number == 1 else f"{record_id}.{number}.{ending}"


def newest_number(directory: Path, record_id: str) -> int:
    """How many records of an identity there are; 0 without any."""
    number = 0
    while (directory / name_of(record_id, number + 1)).exists():
        number += 1
    return number


def keep_items(directory: Path, record_id: str, content: bytes) -> str:
    """Write items beside the records unless the same are there; their path from the records' folder."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    data, number = compressed(content), 0
    while True:
        number += 1
        path = folder / name_of(record_id, number, "json.gz")
        if not path.exists() and add(path, data):
            break
        if path.read_bytes() == data:
            break
    return f"{FOLDER}/{path.name}"


def add(path: Path, content: bytes) -> bool:
    """Make a file that was not there, whole or not at all; whether it was made by this call."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # unlike a rename, it fails where another process was first
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return add_without_links(path, content)
        return True
    finally:
        aside.unlink(missing_ok=True)


def add_without_links(path: Path, content: bytes) -> bool:
    """As ``add``, on a file system without hard links; a reader may meet the file half-written."""
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def read_record(file: Path) -> Record:
    """One record. Raises ``UserError`` naming file and field of what is none."""
    try:
        return replace(Record.from_json(json.loads(file.read_text(encoding="utf-8"))), file=file)
    except (OSError, ValueError, UserError) as error:  # ValueError: invalid JSON or UTF-8
        raise UserError(
            f"{file} is not a usable record: {error}; restore it, or delete it and measure again by `{RANKING}` (or "
            "the benchmark's own command)"
        ) from error


def record_paths(paths: Iterable[Path]) -> list[Path]:
    """The given files, and those directly in the given folders, each once, in order."""
    files: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"no record at {path}: the path does not exist; records are made by `{RANKING}`")
        files.update(path.glob("[!.]*.json") if path.is_dir() else [path])
    return sorted(files)


def read_records(paths: Iterable[Path], say: Say | None = None) -> list[Record]:
    """Records of the given files and folders (``*.json`` directly inside), the newest of each identity, in order.

    ``say`` (standard error by default) is told of measurements that were repeated with another result. Raises
    ``UserError`` for a path that does not exist or a file that is no record.
    """
    found: dict[str, list[Record]] = {}
    for file in record_paths(paths):
        record = read_record(file)
        found.setdefault(record.id, []).append(record)
    for records in found.values():
        if difference := differing(records):
            (say or to_stderr)(difference)
    return [newest(records) for records in found.values()]


def to_stderr(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def newest(records: Iterable[Record]) -> Record:
    """The last measurement among records of one identity."""
    return max(records, key=lambda record: (record.created, number_of(record)))


def number_of(record: Record) -> int:
    """Which measurement of its identity a record is, by its file; 1 is the first."""
    stem = record.file.name.removesuffix(".json").removeprefix(record.id) if record.file else ""
    return int(stem[1:]) if stem[1:].isdecimal() else 1


def differing(records: list[Record]) -> str:
    """What to say of measurements of one identity whose numbers differ; "" where they agree."""
    last = newest(records)
    others = [record for record in records if values_of(record) != values_of(last)]
    if not others:
        return ""
    changed = sorted({name for record in others for name in changes(values_of(record), values_of(last))})
    return (
        f"{last.id} was measured {len(records)} times with different results ({', '.join(changed[:4])}"
        f"{', …' if len(changed) > 4 else ''}); the newest counts: {last.file}, of {last.created}"
    )


def values_of(record: Record) -> dict[str, float | None]:
    """The record's numbers."""
    return {name: metric["value"] for name, metric in record.metrics.items()}


def changes(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> list[str]:
    """Names of metrics that are not the same in both."""
    nothing = object()
    return [name for name in {**one, **other} if one.get(name, nothing) != other.get(name, nothing)]


def items_of(record: Record) -> dict[str, dict[str, float]]:
    """The items of a record that was read, by metric; {} where it has none. Raises ``UserError``."""
    if not record.items or record.file is None:
        return {}
    return read_items(record.file.parent / record.items["path"], record.items["hash"])
