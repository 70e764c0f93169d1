"""Hashing of Arrow tables (hub datasets and parquet files)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000


class HashSink:
    """A write-only file that keeps nothing but the SHA-256 of what is written."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Take ``data`` into the hash."""
        view = memoryview(data)
        self.digest.update(view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Nothing to close."""


def table_hash(table: pa.Table) -> str:
    """Hex SHA-256 of a table's columns and rows, whatever chunks or metadata it is stored with."""
    import pyarrow as pa

    table = table.replace_schema_metadata(None)
    sink = HashSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        for start in range(0, table.num_rows, ROWS):
            writer.write_table(table.slice(start, ROWS).combine_chunks())
    return sink.digest.hexdigest()
