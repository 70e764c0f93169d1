"""What becomes of the records of a shard: split, filter, noise, template, truncation. A function of the shard alone."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from src.data.filter import ScoreFilter
from src.data.noise import Noise
from src.data.pairs import Demonstration, PreferencePair
from src.data.pairset import SCHEMA, SIDES
from src.data.preparation.options import PrepareOptions, truncate
from src.data.sources.base import Skipped, Source
from src.data.splits import TRAIN, VALIDATION, split_of, split_of_record
from src.data.templates import ChatTemplate, Encoded, TemplateRefusal

Record = PreferencePair | Demonstration | Skipped

NOTES = b"notes"
"""Key of ``Notes`` in the metadata of a shard's table."""
IN_TRAIN = "train"
"""Column of a shard's table that tells the splits apart."""
SHARD_SCHEMA = pa.schema([*SCHEMA, (IN_TRAIN, pa.bool_())])
BATCH = 512
"""Records tokenised in one call."""
BATCH_CHARACTERS = 1_000_000
"""A batch that reaches so many characters ends sooner: a tokenizer takes some hundred bytes for each."""


@dataclass
class Notes:
    """What a shard's rows do not tell. ``dropped``: [id, reason] in the source's order; ``truncated`` counts prompts
    and responses; ``gaps``: pairs that the filter saw and kept, and the largest gap among them; ``refusal``: the
    template's first; ``origin``: hash of the shard's ids."""

    origin: str = ""
    dropped: list[list[str]] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=lambda: {"prompts": 0, "responses": 0})
    gaps: list[float] = field(default_factory=lambda: [0, 0, 0.0])
    refusal: str = ""

    @classmethod
    def of(cls, table: pa.Table) -> Notes:
        """Those in a shard's table."""
        return cls(**json.loads(table.schema.metadata[NOTES]))

    def into(self, schema: pa.Schema) -> pa.Schema:
        """``schema`` with these notes in its metadata."""
        return schema.with_metadata({NOTES: json.dumps(asdict(self)).encode()})


@dataclass(frozen=True)
class Work:
    """Settings of a preparation; sent to each worker process once. ``kind``: as for ``prepare``. ``noise`` is settled:
    it needs to see one pair alone."""

    template: ChatTemplate
    noise: Noise
    options: PrepareOptions
    kind: str
    batch: int = field(default_factory=lambda: BATCH)

    def table(self, records: Sequence[Record], origin: str = "") -> pa.Table:
        """The rows that ``records`` give, in their order, with ``Notes`` in the table's metadata."""
        shard = _Shard(self, origin)
        batches = [shard.rows(batch) for batch in groups(records, self.batch, BATCH_CHARACTERS)]
        return pa.Table.from_batches(batches, SHARD_SCHEMA).replace_schema_metadata(
            shard.finished_notes().into(SHARD_SCHEMA).metadata
        )


class _Shard:
    """One shard in the making."""

    def __init__(self, work: Work, origin: str) -> None:
        self.work, self.notes = work, Notes(origin)
        self.bos_id = work.template.tokenizer.bos_token_id
        self.filter = ScoreFilter(work.options.min_score_gap)

    def rows(self, records: Sequence[Record]) -> pa.RecordBatch:
        """The rows of one batch."""
        dropped: dict[int, list[str]] = {}
        kept = list(self._kept(records, dropped))
        encoded = self.work.template.encode_batch([(record.prompt, _texts(record)) for _, record, _ in kept])
        rows = []
        for (place, record, split), result in zip(kept, encoded, strict=True):
            row = self._row(record, split, result)
            if isinstance(row, str):
                dropped[place] = [record.id, row]
            else:
                rows.append(row)
        self.notes.dropped += [dropped[place] for place in sorted(dropped)]
        return _batch_of(rows)

    def finished_notes(self) -> Notes:
        self.notes.gaps = [self.filter.seen, self.filter.kept, self.filter.largest]
        return self.notes

    def _kept(
        self, records: Sequence[Record], dropped: dict[int, list[str]]
    ) -> Iterator[tuple[int, PreferencePair | Demonstration, str]]:
        """(place, record, split) of what is tokenised; what is not goes to ``dropped`` by its place, with the reason.

        Pairs: filter and noise touch train alone. Demonstrations: pairs of the train split have no part in it.
        """
        for place, record in enumerate(records):
            if isinstance(record, Skipped):
                dropped[place] = [record.id, record.reason]
                continue
            split = self._split(record)
            if isinstance(record, Demonstration):
                if split == VALIDATION and self.work.kind == "demonstrations":
                    continue
            elif split == TRAIN:
                if self.work.kind == "demonstrations":
                    continue
                record = self.work.noise.apply(record)
                if not self.filter.keeps(record):
                    dropped[place] = [record.id, self.filter.reason]
                    continue
            reason = _flaw(record)
            if reason:
                dropped[place] = [record.id, reason]
            else:
                yield place, record, split

    def _split(self, record: PreferencePair | Demonstration) -> str:
        if self.work.kind == "held_out":
            return VALIDATION
        return split_of_record(record, self.work.options.validation_fraction, self.work.options.split_seed)

    def _row(
        self, record: PreferencePair | Demonstration, split: str, encoded: Encoded | TemplateRefusal
    ) -> dict[str, Any] | str:
        """The row to write, or why there is none."""
        if isinstance(encoded, TemplateRefusal):
            self.notes.refusal = self.notes.refusal or str(encoded)
            return "refused by the chat template"
        prompt, responses = encoded
        if len(responses) == 2 and responses[0] == responses[1]:
            return "identical responses"
        fitted = truncate(prompt, responses, self.work.options, self.bos_id)
        if isinstance(fitted, str):
            return fitted
        short_prompt, short = fitted
        if len(short) == 2 and short[0] == short[1]:
            return "identical after truncation"
        self.notes.truncated["prompts"] += len(short_prompt) < len(prompt)
        self.notes.truncated["responses"] += sum(
            len(after) < len(before) for after, before in zip(short, responses, strict=True)
        )
        pair = record if isinstance(record, PreferencePair) else None
        return {
            "id": record.id,
            "prompt_ids": short_prompt,
            "chosen_ids": short[0],
            "rejected_ids": short[1] if pair else [],
            "chosen_score": pair.chosen_score if pair else None,
            "rejected_score": pair.rejected_score if pair else None,
            "flipped": pair.flipped if pair else False,
            IN_TRAIN: split == TRAIN,
        }


def groups(records: Iterable[Record], most: int, characters: int) -> Iterator[list[Record]]:
    """``records`` in lists of ``most``, or of fewer that together reach ``characters`` characters."""
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += characters_of(record)
        if len(group) == most or size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def characters_of(record: Record) -> int:
    """Characters of a record's prompt and responses."""
    if isinstance(record, Skipped):
        return 0
    return sum(len(message.content) for message in record.prompt) + sum(map(len, _texts(record)))


def _texts(record: PreferencePair | Demonstration) -> list[str]:
    return [record.chosen, record.rejected] if isinstance(record, PreferencePair) else [record.response]


def _flaw(record: PreferencePair | Demonstration) -> str | None:
    """Why a record is dropped before it is tokenised."""
    texts = _texts(record)
    if not all(text.strip() for text in texts):
        return "empty response"
    if len(texts) == 2 and texts[0] == texts[1]:
        return "identical responses"
    try:
        for text in (record.id, *texts, *(message.content for message in record.prompt)):
            text.encode("utf-8")
    except UnicodeEncodeError:
        return "not valid Unicode"
    return None


def _batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    lists = {f"{side}_ids" for side in SIDES}
    columns = [
        _list_column([row[spec.name] for row in rows])
        if spec.name in lists
        else pa.array([row[spec.name] for row in rows], spec.type)
        for spec in SHARD_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SHARD_SCHEMA)


def _list_column(lists: list[list[int]]) -> pa.Array:
    """Lists of ids as a column; several times as fast as Arrow's own conversion."""
    flat = array("i")
    for ids in lists:
        flat.fromlist(ids)
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    values = pa.array(np.frombuffer(flat, np.int32))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(pa.int32()))


def noised_pairs(source: Source, options: PrepareOptions) -> Iterator[PreferencePair]:
    """The training pairs that noise may change."""
    kept = ScoreFilter(options.min_score_gap)
    for pair in source.pairs():
        split = split_of(pair.prompt, options.validation_fraction, options.split_seed)
        if split == TRAIN and kept.keeps(pair):
            yield pair
