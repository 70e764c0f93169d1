"""Our own format: one ``PreferencePair`` as a JSON object a line (``PreferencePair.to_json``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.data.pairs import PreferencePair
from src.data.sources.base import PairSource
from src.data.sources.chain import check_made
from src.data.sources.files import content_hash, existing, located, read_json_lines


@dataclass(frozen=True)
class LocalPairs(PairSource):
    """Pairs from a ``.jsonl`` or ``.jsonl.gz`` file."""

    path: str

    def records(self) -> Iterator[PreferencePair]:
        """The file's pairs in its order; raises ``UserError`` with file and line for a bad record."""
        file = existing(self.path)
        for line, record in read_json_lines(file):
            with located(file, line):
                pair = PreferencePair.from_json(record)
            yield pair

    def content(self) -> str:
        """Hash of the uncompressed file; raises ``UserError`` when it is not what a manifest beside it describes."""
        file = existing(self.path)
        check_made(file)
        return content_hash([file])

    def options(self) -> dict[str, Any]:
        """Nothing: the reading has no settings."""
        return {}
