"""What the manifest says of prepared data, gathered shard by shard in memory that does not grow with the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.data.filter import ScoreFilter
from src.data.pairset import SIDES, PairWriter
from src.data.preparation.options import PrepareOptions
from src.data.preparation.work import IN_TRAIN, Notes
from src.data.splits import TRAIN, VALIDATION
from src.errors import UserError

EXAMPLES = 20
"""Ids named for each reason; where there are more, a file of their own names all."""
LISTED = 10_000
"""Flipped ids named in the manifest; where there are more, likewise."""
QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
EDGES = (0, 1, *sorted(base << power for power in range(15) for base in (2, 3)))
"""Lower edges of the histograms' bins in tokens: 0, 1, 2, 3, 4, 6, 8, 12, …, two an octave; the last is open."""

Counts = np.ndarray[Any, np.dtype[np.int64]]


class Lengths:
    """How many sequences of one kind have 0, 1, 2, … tokens: exact quantiles without a number per sequence."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(1, np.int64)

    def add(self, lengths: Counts) -> None:
        """Count sequences of ``lengths`` tokens, [n]."""
        more = np.bincount(lengths, minlength=len(self.counts)).astype(np.int64)
        more[: len(self.counts)] += self.counts
        self.counts = more

    def tokens(self) -> int:
        """Sum of all lengths."""
        return int(np.arange(len(self.counts)) @ self.counts)

    def quantiles(self) -> dict[str, float]:
        """``QUANTILES`` by linear interpolation between neighbours in rank, as ``numpy.quantile`` gives them."""
        ends = np.cumsum(self.counts)
        places = np.array(list(QUANTILES.values())) * (ends[-1] - 1)
        below, above = (np.searchsorted(ends, rank(places), side="right") for rank in (np.floor, np.ceil))
        share = places - np.floor(places)
        # as numpy does it, so that the last digit is the same
        values = np.where(share < 0.5, below + (above - below) * share, above - (above - below) * (1 - share))
        return dict(zip(QUANTILES, values.tolist(), strict=True))

    def histogram(self) -> list[int]:
        """Numbers of sequences between two of ``EDGES``."""
        bins = np.searchsorted(EDGES, np.arange(len(self.counts)), side="right") - 1
        return np.bincount(bins, self.counts, minlength=len(EDGES)).astype(int).tolist()  # type: ignore[no-any-return]


class Tally:
    """What the manifest says of one split."""

    def __init__(self) -> None:
        self.sides = {side: Lengths() for side in SIDES}

    def add(self, rows: pa.Table) -> None:
        """Count the rows of one shard."""
        for side, lengths in self.sides.items():
            lengths.add(pc.list_value_length(rows.column(f"{side}_ids")).to_numpy().astype(np.int64))

    def used(self) -> dict[str, Lengths]:
        """The sides that have tokens: demonstrations have no rejected one."""
        return {side: lengths for side, lengths in self.sides.items() if lengths.tokens()}

    def tokens(self) -> dict[str, int]:
        """Sums per side, and in all (a prompt counts once per response: each is a sequence of its own)."""
        sums = {side: lengths.tokens() for side, lengths in self.sides.items()}
        responses = 2 if sums["rejected"] else 1
        return sums | {"total": responses * sums["prompt"] + sums["chosen"] + sums["rejected"]}


class Lines:
    """A file with one JSON value a line, and the hash of their list as JSON; ``first`` are the first ``LISTED``."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.first = path, 0, list[Any]()
        self._digest, self._file = hashlib.sha256(b"["), path.open("w", encoding="ascii", newline="\n")

    def add(self, values: Iterable[Any]) -> None:
        """Append values."""
        for value in values:
            text = json.dumps(value)
            self._digest.update((", " if self.count else "").encode() + text.encode())
            self._file.write(text + "\n")
            self.count += 1
            if self.count <= LISTED:
                self.first.append(value)

    def close(self) -> None:
        """End the file."""
        self._file.close()

    @property
    def hash(self) -> str:
        """Hex SHA-256 of ``json.dumps(list of all values)``."""
        digest = self._digest.copy()
        digest.update(b"]")
        return digest.hexdigest()


class Measures:
    """Writes both splits into ``folder`` shard by shard, and measures them; a context that closes the files."""

    def __init__(self, folder: Path, options: PrepareOptions, kind: str) -> None:
        self.options = options
        self.needed = (VALIDATION,) if kind == "held_out" else (TRAIN, VALIDATION)
        self.filter = ScoreFilter(options.min_score_gap)
        self.reasons: dict[str, dict[str, Any]] = {}
        self.truncated = {"prompts": 0, "responses": 0}
        self.refusal = ""
        self.tallies = {TRAIN: Tally(), VALIDATION: Tally()}
        self.writers = {split: PairWriter(folder / f"{split}.arrow") for split in self.tallies}
        self.flipped, self.dropped = Lines(folder / "flipped.jsonl"), Lines(folder / "dropped.jsonl")

    def __enter__(self) -> Measures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.writers.values():
            file.close()
        self.flipped.close()
        self.dropped.close()

    def add(self, table: pa.Table) -> None:
        """Take in the next shard."""
        notes = Notes.of(table)
        for split, mask in ((TRAIN, table.column(IN_TRAIN)), (VALIDATION, pc.invert(table.column(IN_TRAIN)))):
            rows = table.filter(mask).drop_columns([IN_TRAIN])
            self.writers[split].add(rows)
            self.tallies[split].add(rows)
        self.flipped.add(table.column("id").filter(table.column("flipped")).to_pylist())
        for identity, reason in notes.dropped:
            entry = self.reasons.setdefault(reason, {"count": 0, "examples": []})
            entry["count"] += 1
            if len(entry["examples"]) < EXAMPLES:
                entry["examples"].append(identity)
            self.dropped.add([{"id": identity, "reason": reason}])
        for name, count in notes.truncated.items():
            self.truncated[name] += count
        seen, kept, largest = notes.gaps
        self.filter.seen, self.filter.kept = self.filter.seen + int(seen), self.filter.kept + int(kept)
        self.filter.largest = max(self.filter.largest, largest)
        self.refusal = self.refusal or notes.refusal

    def finished(self, findings: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's measured part, with ``findings`` of the noise, when the files are closed.

        Raises ``UserError`` for an empty split.
        """
        counts = {split: writer.count for split, writer in self.writers.items()}
        self._refuse_empty(counts)
        return {
            "counts": counts,
            "dropped": dict(sorted(self.reasons.items())),
            "truncated": self.truncated,
            "flipped": {"count": self.flipped.count, "hash": self.flipped.hash}
            | ({"ids": self.flipped.first} if self.flipped.count <= LISTED else {"file": self.flipped.path.name})
            | dict(findings),
            "lengths": {
                split: {side: lengths.quantiles() for side, lengths in tally.used().items()}
                for split, tally in self.tallies.items()
            },
            "tokens": {split: tally.tokens() for split, tally in self.tallies.items()},
            "content": {split: writer.digest.hexdigest() for split, writer in self.writers.items()},
        }

    def further(self) -> dict[str, Any]:
        """What the manifest says besides and its hash leaves out, since it follows from the rest: histograms of the
        lengths, and files with all ids where the manifest has only some. Files that say no more are removed."""
        many = {
            self.flipped: self.flipped.count > LISTED,
            self.dropped: any(entry["count"] > EXAMPLES for entry in self.reasons.values()),
        }
        for lines in (lines for lines, wanted in many.items() if not wanted):
            lines.path.unlink()
        histograms: dict[str, Any] = {
            split: {side: lengths.histogram() for side, lengths in tally.used().items()}
            for split, tally in self.tallies.items()
        }
        return {
            "histograms": {"edges": list(EDGES)} | histograms,
            "files": {
                lines.path.name: {"lines": lines.count, "hash": lines.hash} for lines, wanted in many.items() if wanted
            },
        }

    def _refuse_empty(self, counts: dict[str, int]) -> None:
        if all(counts[split] for split in self.needed):
            return
        self.filter.refuse_if_nothing_was_kept()
        reasons = ", ".join(f"{entry['count']} × {reason}" for reason, entry in sorted(self.reasons.items()))
        why = f"; dropped: {reasons or 'nothing'}" + (f" ({self.refusal})" if self.refusal else "")
        if not any(counts.values()):
            raise UserError(
                f"no record of the data can be used{why}; check dataset.source and the length limits "
                f"(max_length={self.options.max_length}, max_prompt_length={self.options.max_prompt_length})"
            )
        empty = next(split for split, count in counts.items() if not count)
        raise UserError(
            f"the {empty} split is empty with dataset.validation_fraction={self.options.validation_fraction} "
            f"({counts[TRAIN]} train, {counts[VALIDATION]} validation{why}); "
            "change dataset.validation_fraction or dataset.split_seed, or give more data"
        )
