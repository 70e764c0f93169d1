"""The shards of a source in order, made by this process or by workers, each once.

What a shard holds depends on the source alone, so neither the number of workers nor who finishes first shows in the
result. A shard that is there under its name is whole: after a kill the next run takes it as it is and goes on.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa

from src.data.preparation.pieces import Piece, is_whole, make_shard, pieces_of, read_shard
from src.data.preparation.work import Work
from src.data.preparation.workers import PreparationStopped, Workers
from src.data.sources.base import Source
from src.errors import UserError

SERIAL_CHARACTERS = 4_000_000
"""Tokenised by this process before workers start by themselves: some thousands of pairs, or about what costs as much
as their start."""
MOST_WORKERS = 8
"""That start by themselves; from about there reading the source, which one process does, is what takes the time."""

Promise = Future[None] | None
"""A worker's, or ``None`` where the shard is there."""


class Shards:
    """The tables of a source's shards, in order, made in ``folder`` or found there; a context that ends its workers.

    ``workers``: processes that tokenise; 1 is this process alone. ``None`` begins alone, and where there is more than
    ``SERIAL_CHARACTERS`` to do, goes on with a worker for each core, at most ``MOST_WORKERS``.
    """

    def __init__(self, source: Source, work: Work, folder: Path, workers: int | None = None) -> None:
        self.source, self.work, self.folder = source, work, folder
        self.count = workers or min(cores(), MOST_WORKERS)
        self.alone_for = SERIAL_CHARACTERS if workers is None else 0
        self.found = 0
        """Shards that were there already."""
        self._workers: Workers | None = None

    def __enter__(self) -> Shards:
        self.folder.mkdir(exist_ok=True)
        for unfinished in self.folder.glob(".*"):
            unfinished.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._workers:
            self._workers.close()
        spoiled = isinstance(error, UserError) and not isinstance(error, PreparationStopped)
        if spoiled or not any(self.folder.glob("[0-9]*")):
            # wrong data is wrong the next time too, and right data has another name
            shutil.rmtree(self.folder, ignore_errors=True)

    def tables(self) -> Iterator[pa.Table]:
        """One table a shard; raises the first ``UserError`` in the source's order, whoever met it first."""
        waiting: deque[tuple[Path, Promise]] = deque()
        pieces = enumerate(pieces_of(self.source, self.work.kind))
        refused: UserError | None = None
        while True:
            try:
                number, piece = next(pieces, (0, None))
            except UserError as error:
                refused, piece = error, None
            if piece is None:
                break
            waiting.append(self._begun(number, piece))
            while waiting and (len(waiting) > 2 * self.count or _is_done(waiting[0][1])):
                yield _table(*waiting.popleft())
        while waiting:
            yield _table(*waiting.popleft())
        if refused:
            raise refused

    def _begun(self, number: int, piece: Piece) -> tuple[Path, Promise]:
        path = self.folder / f"{number:06d}.arrow"
        if is_whole(path, piece.origin):
            self.found += 1
            return path, None
        if self.count == 1 or self.alone_for > 0:
            self.alone_for -= piece.characters
            make_shard(self.work, piece, path)
            return path, None
        self._workers = self._workers or Workers(self.count, self.work)
        return path, self._workers.submit(piece, path)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_done(promise: Promise) -> bool:
    return promise is None or promise.done()


def _table(path: Path, promise: Promise) -> pa.Table:
    if promise:
        promise.result()
    return read_shard(path)
