"""Reading data files: one record at a time, and every complaint with file and line number."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from src.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 20
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")


@contextmanager
def located(path: Path, line: int) -> Iterator[None]:
    """Put ``path:line:`` in front of any ``UserError`` raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}:{line}: {error}") from error


def existing(path: str | Path, key: str = "dataset.source.path") -> Path:
    """``path`` with ``~`` expanded; raises ``UserError`` naming ``key`` when nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{key}={path}: no such file (looked for {found.absolute()}); set {key} to a file that exists")
    return found


def files_of(path: str | Path, pattern: str) -> list[Path]:
    """``[path]`` for a file; for a directory the files below it that match ``pattern``, sorted.

    Raises ``UserError`` when the path does not exist or the directory holds no such file.
    """
    found = existing(path)
    if not found.is_dir():
        return [found]
    files = sorted(found.glob(pattern))
    if not files:
        raise UserError(f"dataset.source.path={path} is a directory without a file that matches {pattern}")
    return files


def data_files(path: str | Path) -> list[Path]:
    """``[path]`` for a file; for a directory all parquet and JSON-lines files below it, sorted.

    Raises ``UserError`` when the path does not exist or the directory holds no such file.
    """
    found = existing(path)
    if not found.is_dir():
        return [found]
    files = sorted(file for file in found.rglob("*") if file.name.endswith(ENDINGS) and file.is_file())
    if not files:
        raise UserError(f"dataset.source.path={path} is a directory without a file that ends in {', '.join(ENDINGS)}")
    return files


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a plain or gzip file (told apart by content, not by name).

    Raises ``UserError`` for a directory, an unreadable, an empty, or a damaged file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a .jsonl or .jsonl.gz file")
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
        if not magic:
            raise UserError(f"{path} is empty; it must hold one JSON object a line")
        opener = gzip.open if magic == GZIP_MAGIC else open
        with opener(path, "rb") as content:
            yield cast(BinaryIO, content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged or truncated gzip file ({error}); copy or download it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number from 1, record) of a JSON-lines file, plain or gzipped; blank lines are passed over.

    Raises ``UserError`` with file and line number for text that is no UTF-8, no JSON or no JSON object,
    and without a line number for what ``open_content`` raises or a file without a record.
    """
    records = 0
    with open_content(path) as content:
        for number, line in enumerate(content, 1):
            if not line.strip():
                continue
            with located(path, number):
                record = parse_record(line)
            records += 1
            yield number, record
    if not records:
        raise UserError(f"{path} holds no record; it must hold one JSON object a line")


def parse_record(line: bytes) -> Mapping[str, Any]:
    """One line as a JSON object; raises ``UserError`` otherwise."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg} at column {error.colno}; each line must be one object") from error
    except RecursionError as error:
        raise UserError("not usable JSON: nested too deeply") from error
    if not isinstance(record, dict):
        raise UserError(f"each line must be a JSON object, this one is a {type(record).__name__}")
    return record


def content_hash(paths: Iterable[Path]) -> str:
    """Hex SHA-256 of the uncompressed contents of ``paths`` in their order (names do not count)."""
    digest = hashlib.sha256()
    for path in paths:
        inner = hashlib.sha256()
        with open_content(path) as content:
            while block := content.read(CHUNK):
                inner.update(block)
        digest.update(inner.digest())
    return digest.hexdigest()
