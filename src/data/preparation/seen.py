"""Ids that must be unique, told apart in eight bytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b, sha256
from itertools import islice
from typing import Any

import numpy as np

from src.errors import UserError

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


class SeenIds:
    """Refuses an id that comes twice, in 8 bytes an id.

    A hash that comes twice is looked up among the source's ids (``reread`` gives them from the start), so that two
    ids of one hash are told apart.
    """

    def __init__(self, reread: Callable[[], Iterator[str]]) -> None:
        self.reread = reread
        self.count = 0
        self._runs: list[Hashes] = []
        """Sorted hashes, each run more than twice as long as the next: few runs, and each hash is moved few times."""

    def add(self, ids: Sequence[str]) -> str:
        """Note ``ids``; returns a hash of them in hex. Raises ``UserError`` for the first that was seen before."""
        hashes = np.array([id_hash(identity) for identity in ids], np.uint64)
        if len(hashes):
            self._refuse_repeated(ids, hashes)
            self._runs.append(np.sort(hashes))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        self.count += len(ids)
        return sha256(hashes.astype("<u8").tobytes()).hexdigest()

    def _refuse_repeated(self, ids: Sequence[str], hashes: Hashes) -> None:
        known = np.zeros(len(hashes), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[places] == hashes
        suspects = {ids[place] for place in np.flatnonzero(known).tolist()}
        before = {found for found in islice(self.reread(), self.count) if found in suspects} if suspects else set()
        for identity in ids:
            if identity in before:
                raise UserError(
                    f"the id '{identity}' occurs twice in the data; ids must be unique (noise is drawn by id)"
                )
            before.add(identity)


def id_hash(identity: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
