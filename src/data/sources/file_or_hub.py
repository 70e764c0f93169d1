"""What sources share that read the same records from local files or from a hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from src.data.hub import load_hub_dataset
from src.data.sources.base import PairSource
from src.data.sources.files import content_hash, existing, files_of, read_json_lines
from src.data.sources.tables import ROWS, table_hash
from src.errors import UserError


class FileOrHubSource(PairSource):
    """Base of those sources: they say which files, or which hub data set, and make pairs of ``rows``."""

    hub_id: str

    @abstractmethod
    def _files(self) -> list[Path] | None:
        """The local files (parquet or JSON lines), or ``None`` for the hub."""

    @abstractmethod
    def _hub(self) -> Any:
        """The hub's data set."""

    def content(self) -> str:
        """Hash of the files, or of the hub's table."""
        files = self._files()
        return content_hash(files) if files is not None else table_hash(self._hub().data.table)

    def options(self) -> dict[str, Any]:
        """Nothing: the reading has no settings."""
        return {}

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(where it stands, record) of every record; raises ``UserError`` for a file that cannot be read."""
        files = self._files()
        if files is None:
            yield from ((f"{self.hub_id} row {row}", record) for row, record in enumerate(self._hub()))
            return
        for file in files:
            if file.suffix == ".parquet":
                yield from ((f"{file} row {row}", record) for row, record in read_parquet(file))
            else:
                yield from ((f"{file}:{line}", record) for line, record in read_json_lines(file))


class SplitOfHub(FileOrHubSource):
    """Base of the hub data sets with named splits, whose local copy is a file, or a directory of ``<split>*`` files."""

    default_split: ClassVar[str]

    path: str | None
    revision: str | None
    split: str | None

    def _files(self) -> list[Path] | None:
        if self.path is None:
            return None
        files = files_of(self.path, f"**/{self.split or self.default_split}*")
        if existing(self.path).is_file() and self.split is not None:
            raise UserError(
                f"dataset.source.split={self.split} has no meaning for the single file {self.path}; "
                "leave it null, or set path to a directory with one file or more per split"
            )
        return files

    def _hub(self) -> Any:
        return load_hub_dataset(self.hub_id, split=self.split or self.default_split, revision=self.revision)


@contextmanager
def at(where: str) -> Iterator[None]:
    """Put ``where`` in front of any ``UserError`` raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def read_parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (row from 0, record) of a parquet file; raises ``UserError`` when it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        row = 0
        for batch in file.iter_batches(batch_size=ROWS):
            for record in batch.to_pylist():
                yield row, record
                row += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}); copy or download it again") from error
