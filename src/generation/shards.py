"""Records kept shard by shard, so that a killed program loses nothing finished and repeats nothing.

A directory holds ``begun.json`` (what it is of), ``shards/000000.jsonl`` … (each whole: written aside, synced,
renamed), ``partial/`` (one journal for each shard in the making: a line for every record that is finished, whatever
becomes of its neighbours) and, once everything is there, ``manifest.json``. Who writes such a directory:

    store = ShardedJsonl(directory, shard_size=64)
    with store.claimed(identity):                            # one process at a time, and one identity a directory
        for shard in store.pending(items):                   # not those that are written already
            with store.journal(shard.index) as journal:      # journal.records: those of a process that was killed
                done = {record["id"]: record for record in journal.records}
                for item in shard.items:
                    if item.id not in done:
                        done[item.id] = work(item)
                        journal.append(done[item.id])
                store.write(shard.index, [done[item.id] for item in shard.items])
        manifest = store.finish("generate", identity, counts)

Who reads one: ``read_manifest(directory)`` (refuses an unfinished one), ``read_records(directory)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from filelock import FileLock, Timeout

from src.data.cache import sync
from src.data.sources.chain import sealed
from src.data.sources.files import read_json_lines
from src.environment import environment
from src.errors import UserError

MANIFEST = "manifest.json"
BEGUN = "begun.json"
FORMAT = 1
"""Part of begun.json; raise it when the files are laid out otherwise."""

Item = TypeVar("Item")
Record = dict[str, Any]


@dataclass(frozen=True)
class Shard(Generic[Item]):
    """Items ``index * shard_size`` and following of all items."""

    index: int
    items: Sequence[Item]


class Journal:
    """Finished records of a shard in the making; ``records`` are those that were there when it was opened.

    ``append`` hands each record to the operating system at once: it outlives the process, though not a power cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records, length = whole_lines(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(length)  # a line that a killed process left half-written

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one finished record."""
        self._file.write(line_of(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file, which stays until the shard is written."""
        self._file.close()


class ShardedJsonl:
    """A directory of JSONL shards of ``shard_size`` items each (see the module's docstring for its use).

    An item may give any number of records, in the order in which ``write`` receives them.
    """

    def __init__(self, directory: str | Path, shard_size: int) -> None:
        if shard_size < 1:
            raise UserError(f"shard_size={shard_size} cannot work; give at least 1")
        self.directory, self.shard_size = Path(directory), shard_size
        self._shards, self._partial = self.directory / "shards", self.directory / "partial"

    @contextmanager
    def claimed(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Make the directory, keep other processes out of it, and refuse one that was begun as something else.

        ``identity``: everything the records depend on, as plain data. Raises ``UserError``.
        """
        with claimed(self.directory):
            begun: Record = {"format": FORMAT, "shard_size": self.shard_size, "identity": plain_data(identity)}
            path = self.directory / BEGUN
            if not path.exists():
                write_durably(path, json_text(begun))
            earlier = read_json(path)
            if earlier.get("shard_size") != self.shard_size:
                raise UserError(
                    f"{self.directory} was begun with shard_size={earlier.get('shard_size')}, and shards of "
                    f"{self.shard_size} would not line up with it; give shard_size={earlier.get('shard_size')}, or "
                    "another directory"
                )
            if differing := different_keys(begun["identity"], earlier.get("identity", {})):
                raise UserError(
                    f"{self.directory} holds records of other settings (different: {', '.join(differing)}); give "
                    f"another directory, or the settings in its {BEGUN}"
                )
            for aside in (*self.directory.glob(".*.json.*"), *self._shards.glob(".*")):
                aside.unlink()  # what a killed process had not renamed yet
            yield

    def path(self, index: int) -> Path:
        """Where shard ``index`` is, or will be."""
        return self._shards / f"{index:06d}.jsonl"

    def pending(self, items: Sequence[Item]) -> Iterator[Shard[Item]]:
        """The shards that are not written yet, in order. The same items in the same order must be given every time."""
        for index, start in enumerate(range(0, len(items), self.shard_size)):
            if not self.path(index).exists():
                yield Shard(index, items[start : start + self.shard_size])

    def finished(self) -> list[Path]:
        """The files of the written shards, in order."""
        return sorted(self._shards.glob("[0-9]*.jsonl"))

    @contextmanager
    def journal(self, index: int) -> Iterator[Journal]:
        """The journal of shard ``index``, open for appending."""
        journal = Journal(self._partial / f"{index:06d}.jsonl")
        try:
            yield journal
        finally:
            journal.close()

    def write(self, index: int, records: Iterable[Mapping[str, Any]], seconds: float = 0.0) -> None:
        """Write shard ``index`` as a whole; its journal goes. ``seconds``: what it took, for the manifest."""
        self._shards.mkdir(parents=True, exist_ok=True)
        write_durably(self.path(index), b"".join(map(line_of, records)))
        (self._partial / f"{index:06d}.jsonl").unlink(missing_ok=True)
        with (self.directory / "seconds.jsonl").open("ab") as file:
            file.write(line_of({"shard": index, "seconds": round(seconds, 3)}))

    def read(self) -> Iterator[Record]:
        """The records of all written shards, in order; raises ``UserError`` with file and line for a damaged one."""
        return read_files(self.finished())

    def content_hash(self) -> str:
        """Hex SHA-256 of the shards' bytes in order."""
        digest = hashlib.sha256()
        for path in self.finished():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def finish(
        self,
        stage: str,
        identity: Mapping[str, Any],
        counts: Mapping[str, Any],
        *,
        chain: Sequence[Mapping[str, Any]] = (),
        **notes: Any,
    ) -> Record:
        """Write the manifest and return it; the one that is there already when its hash is the same.

        ``chain``: the links of the stages before (``read_manifest(of them)["chain"]``), to which this one's is added:
        stage, hash of its identity, hash of its records. The manifest's hash is of stage, identity, counts, content
        and chain; ``notes`` and the times, environment and date are not in it.
        """
        manifest = sealed(stage, plain_data(identity), plain_data(counts), self.content_hash(), chain)
        path = self.directory / MANIFEST
        with suppress(UserError):  # a damaged one is written anew
            if path.exists() and (earlier := read_json(path)).get("hash") == manifest["hash"]:
                return earlier
        manifest |= plain_data(notes) | {
            "seconds": self._seconds(),
            "environment": environment(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_durably(path, json_text(manifest))
        return manifest

    def _seconds(self) -> float:
        """What the shards took, over all processes that finished some; the last word counts on a shard."""
        lines, _ = whole_lines(self.directory / "seconds.jsonl")
        last: dict[int, float] = {line["shard"]: line["seconds"] for line in lines}
        return round(sum(last.values()), 3)


def read_manifest(directory: str | Path) -> Record:
    """The manifest of a finished directory; raises ``UserError`` for one that is absent, unfinished or damaged."""
    folder = Path(directory)
    if not (folder / MANIFEST).exists():
        if (folder / BEGUN).exists():
            raise UserError(f"{folder} is not finished (it has no {MANIFEST}); run the command that began it again")
        raise UserError(f"{folder} holds no {MANIFEST}; give a directory that src.generate or src.annotate wrote")
    return read_json(folder / MANIFEST)


def read_records(directory: str | Path) -> Iterator[Record]:
    """The records of a finished directory; raises ``UserError`` when they are not those that the manifest is of."""
    manifest = read_manifest(directory)
    store = ShardedJsonl(directory, shard_size=1)
    if store.content_hash() != manifest.get("content"):
        raise UserError(
            f"{directory}: the shards are not those that {MANIFEST} describes, a file was changed, lost or added; "
            "restore it, or remove the directory and run the command again"
        )
    return store.read()


def read_files(paths: Iterable[Path]) -> Iterator[Record]:
    """The records of shard files; one without a line is a shard of which nothing came."""
    for path in paths:
        if path.stat().st_size:
            yield from (dict(record) for _, record in read_json_lines(path))


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make ``directory`` and keep other processes out of it; raises ``UserError`` when that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{directory} is being written by another process; wait for it, or stop it") from error
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror}); set output_root to a place where you may write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def whole_lines(path: Path) -> tuple[list[Record], int]:
    """The records of a file that a process may have been killed writing, up to the first broken line, and their bytes.

    ``([], 0)`` when there is no such file.
    """
    records: list[Record] = []
    length = 0
    if not path.exists():
        return records, length
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        records.append(record)
        length += len(line)
    return records, length


def line_of(record: Mapping[str, Any]) -> bytes:
    """One record as a line of JSON; readable text, escaped only where it is no valid Unicode."""
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json.dumps(record, allow_nan=False) + "\n").encode("ascii")


def write_durably(path: Path, content: bytes) -> None:
    """Write aside, force to disk, rename: after any crash the file is the old one or the new one, whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def read_json(path: Path) -> Record:
    """A JSON object from a file of ours; raises ``UserError`` for a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or remove its directory and start again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; restore it, or remove its directory and start again")
    return value


def json_text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode("utf-8")


def plain_data(value: Any) -> Record:
    """``value`` as it comes back from a JSON file (tuples are lists)."""
    return cast(Record, json.loads(json.dumps(value)))


def different_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names under which two mappings do not hold the same."""
    return [key for key in {**one, **other} if key not in one or key not in other or one[key] != other[key]]
