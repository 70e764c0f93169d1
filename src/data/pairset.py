"""Tokenised pairs on disk: an Arrow file that is written in batches and read through a memory map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("flipped", pa.bool_()),
    ]
)
SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class TokenizedPair:
    """One pair as token ids; ``index`` is its place in its set.

    A response's ids end with the stop token unless truncation cut it. ``rejected_ids`` is empty for a
    demonstration. Scores are in the source's unit, ``None`` when there are none.
    """

    index: int
    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_score: float | None
    rejected_score: float | None
    flipped: bool


class PairSet(Sequence[TokenizedPair]):
    """The pairs of one split, in the source's order; memory-mapped, so it costs memory only where it is read."""

    def __init__(self, path: Path, manifest_hash: str) -> None:
        self.path, self.manifest_hash = path, manifest_hash
        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self._columns = {name: self._table.column(name) for name in SCHEMA.names}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> TokenizedPair:  # type: ignore[override]
        """Pair ``index`` (negative from the end); raises ``IndexError`` outside the set."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        row = {name: column[place] for name, column in self._columns.items()}
        return TokenizedPair(
            index=place,
            id=row["id"].as_py(),
            prompt_ids=_ids(row["prompt_ids"]),
            chosen_ids=_ids(row["chosen_ids"]),
            rejected_ids=_ids(row["rejected_ids"]),
            chosen_score=row["chosen_score"].as_py(),
            rejected_score=row["rejected_score"].as_py(),
            flipped=row["flipped"].as_py(),
        )

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[PairSet], tuple[Path, str]]:
        """Pickled by path, so that another process maps the file itself."""
        return type(self), (self.path, self.manifest_hash)

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Numbers of tokens, shape [pairs, 3]: prompt, chosen, rejected; read without the ids."""
        columns = [pc.list_value_length(self._columns[f"{side}_ids"]).to_numpy() for side in SIDES]
        return np.stack(columns, axis=1).astype(np.int64)

    def scores(self) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Scores, shape [pairs, 2]: chosen, rejected (NaN where there is none), and flipped flags, [pairs]."""
        columns = [self._columns[f"{side}_score"].to_numpy() for side in ("chosen", "rejected")]
        return np.stack(columns, axis=1).astype(np.float64), self._columns["flipped"].to_numpy()

    def unscored(self) -> list[str]:
        """Ids of the pairs that lack a score."""
        missing = pc.or_(pc.is_null(self._columns["chosen_score"]), pc.is_null(self._columns["rejected_score"]))
        ids: list[str] = self._columns["id"].filter(missing).to_pylist()
        return ids


def _ids(scalar: Any) -> list[int]:
    return scalar.values.to_numpy().tolist()  # type: ignore[no-any-return]


class PairWriter:
    """Writes pairs to an Arrow file, ``batch`` rows at a time, and hashes what it writes.

    The hash is of the values, so it does not change with the version of Arrow.
    """

    def __init__(self, path: Path, batch: int = 1000) -> None:
        self.rows: list[dict[str, Any]] = []
        self.count, self.batch, self.digest = 0, batch, hashlib.sha256()
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row, a value for each name of the schema."""
        ids = [row[f"{side}_ids"] for side in SIDES]
        head = [row["id"], row["chosen_score"], row["rejected_score"], row["flipped"], *map(len, ids)]
        self.digest.update(json.dumps(head).encode() + b"\n")
        for part in ids:
            self.digest.update(np.asarray(part, dtype="<i4").tobytes())
        self.rows.append(row)
        self.count += 1
        if len(self.rows) >= self.batch:
            self._flush()

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        self._sink.close()

    def _flush(self) -> None:
        if self.rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=SCHEMA))
            self.rows = []
