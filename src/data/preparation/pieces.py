"""A source cut into pieces, and a shard on the disk made of a piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from src.data.cache import sync
from src.data.preparation.seen import SeenIds
from src.data.preparation.work import Notes, Record, Work, characters_of, groups
from src.data.sources.base import Skipped, Source, read_records

RECORDS = 2048
"""Records of a piece."""
CHARACTERS = 4_000_000
"""A piece that reaches so many characters ends sooner; bounds the memory of a worker where texts are long."""


@dataclass(frozen=True)
class Piece:
    """Records of one shard before anything is done to them; ``origin`` hashes their ids."""

    records: list[Record]
    characters: int
    origin: str


def pieces_of(source: Source, kind: str) -> Iterator[Piece]:
    """The records of ``source`` in pieces; raises ``UserError`` for a bad record or an id that comes twice.

    ``demonstrations``: the pairs, whose validation split is used, then the demonstrations; likewise where there are no
    pairs (``demonstrations_alone``), but what the source skipped.
    """
    yield from _pieces(lambda: read_records(source))
    if kind in ("demonstrations", "demonstrations_alone"):
        yield from _pieces(source.demonstrations)


def _pieces(read: Callable[[], Iterator[Record]]) -> Iterator[Piece]:
    seen = SeenIds(lambda: _ids(read()))
    for records in groups(read(), RECORDS, CHARACTERS):
        yield Piece(records, sum(map(characters_of, records)), seen.add(list(_ids(iter(records)))))


def _ids(records: Iterator[Record]) -> Iterator[str]:
    return (record.id for record in records if not isinstance(record, Skipped))


def make_shard(work: Work, piece: Piece, path: Path) -> None:
    """Write one shard: aside, to the disk, then under its name."""
    table = work.table(piece.records, piece.origin)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def read_shard(path: Path) -> pa.Table:
    """The table of a shard."""
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()


def is_whole(path: Path, origin: str) -> bool:
    """Whether the shard is there, and of these records (a source may overlook a change in its fingerprint)."""
    try:
        with pa.OSFile(str(path), "rb") as source:
            return Notes.of(pa.ipc.open_file(source)).origin == origin
    except (OSError, pa.ArrowInvalid):
        return False
