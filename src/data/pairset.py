"""Tokenised pairs on disk: an Arrow file that is written in batches and read through a memory map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """The pairs of one split, in the source's order; memory-mapped, so it costs memory only where it is read.

    Nothing that a training reads of it goes by Arrow's ``to_numpy``, which imports pandas: a fifth of a second.
    """

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
            prompt_ids=row["prompt_ids"].as_py(),
            chosen_ids=row["chosen_ids"].as_py(),
            rejected_ids=row["rejected_ids"].as_py(),
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
        columns = [pc.list_value_length(self._columns[f"{side}_ids"]).combine_chunks() for side in SIDES]
        return np.stack([np.from_dlpack(column) for column in columns], axis=1).astype(np.int64)

    def scores(self) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Scores, shape [pairs, 2]: chosen, rejected (NaN where there is none), and flipped flags, [pairs]."""
        columns = [self._columns[f"{side}_score"].to_numpy() for side in ("chosen", "rejected")]
        return np.stack(columns, axis=1).astype(np.float64), self._columns["flipped"].to_numpy()

    def unscored(self) -> list[str]:
        """Ids of the pairs that lack a score."""
        missing = pc.or_(pc.is_null(self._columns["chosen_score"]), pc.is_null(self._columns["rejected_score"]))
        ids: list[str] = self._columns["id"].filter(missing).to_pylist()
        return ids


class PairWriter:
    """Writes pairs to an Arrow file, ``batch`` rows at a time however they come, and hashes what it writes.

    The hash is of the values, so it does not change with the version of Arrow.
    """

    def __init__(self, path: Path, batch: int = 1000) -> None:
        self.count, self.batch, self.digest = 0, batch, hashlib.sha256()
        self._rest = SCHEMA.empty_table()
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def add(self, rows: pa.Table) -> None:
        """Append ``rows``, whose columns are those of the schema."""
        whole = rows.cast(SCHEMA).combine_chunks()
        for line in _hashed(whole):
            self.digest.update(line)
        self.count += len(whole)
        waiting = pa.concat_tables([self._rest, whole])
        done = len(waiting) - len(waiting) % self.batch
        for start in range(0, done, self.batch):
            self._write(waiting.slice(start, self.batch))
        self._rest = waiting.slice(done)

    def close(self) -> None:
        """Write what is left and end the file."""
        if len(self._rest):
            self._write(self._rest)
        self._rest = SCHEMA.empty_table()
        self._writer.close()
        self._sink.close()

    def _write(self, rows: pa.Table) -> None:
        # taken, not sliced: no bit of a neighbour is left in what is written
        (batch,) = rows.take(np.arange(len(rows))).combine_chunks().to_batches()
        self._writer.write_batch(batch)


def _hashed(rows: pa.Table) -> Iterator[bytes]:
    """What is hashed of each row: all but the ids of tokens as JSON, with their numbers, then those as int32."""
    names = ("id", "chosen_score", "rejected_score", "flipped")
    lengths = [pc.list_value_length(rows.column(f"{side}_ids")).to_pylist() for side in SIDES]
    tokens = [
        rows.column(f"{side}_ids").combine_chunks().flatten().to_numpy().astype("<i4", copy=False) for side in SIDES
    ]
    heads = zip(*(rows.column(name).to_pylist() for name in names), *lengths, strict=True)
    places = [0, 0, 0]
    for head in heads:
        parts = [json.dumps(head).encode() + b"\n"]
        for number, size in enumerate(head[len(names) :]):
            parts.append(tokens[number][places[number] : places[number] + size].tobytes())
            places[number] += size
        yield b"".join(parts)
