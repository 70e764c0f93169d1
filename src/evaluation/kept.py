"""Log-probs of many responses, kept shard by shard: a killed program loses one forward and repeats none.

Forwards are cut within a shard, longest first, by the lengths alone, and one journal line holds a whole forward: so a
program that goes on makes the very batches that an uninterrupted one would have made, and gets the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.cache import json_hash
from src.evaluation.finish import finite
from src.evaluation.rewards import LogProbScorer, Row, RowLogProbs, batches
from src.generation.shards import Shard, ShardedJsonl


@dataclass(frozen=True)
class Item:
    """What is scored together: an id that no other item has, and rows."""

    id: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class LogProbJob:
    """Rows to score under the weights of ``scorer``. ``per_token``: whether every token's log-prob is kept, too."""

    scorer: LogProbScorer
    items: Sequence[Item]
    micro_batch_size: int
    per_token: bool = False

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the numbers depend on, to the last bit, as plain data; reads all weights."""
        return self.scorer.weights.describe() | {
            "rows": rows_hash(self.items),
            "micro_batch_size": self.micro_batch_size,
            "per_token": self.per_token,
            "device": self.scorer.device.type,
        }

    def directory(self, root: str | Path, name: str) -> Path:
        """Where the log-probs belong below ``root``: a pure function of what they depend on."""
        return Path(root) / "log_probs" / f"{name}__{json_hash(self.identity)[:10]}"


def rows_hash(items: Sequence[Item]) -> str:
    """Hex SHA-256 of ids and token ids: of template, truncation, texts and tokenizer in one."""
    digest = hashlib.sha256()
    for item in items:
        rows = [[row.prompt_ids, row.response_ids] for row in item.rows]
        digest.update(json.dumps([item.id, rows]).encode() + b"\n")
    return digest.hexdigest()


def kept_log_probs(
    job: LogProbJob, directory: Path, shard_size: int, say: Callable[[str], None] | None = None
) -> dict[str, list[RowLogProbs]]:
    """Item id -> log-probs of its rows, computed where ``directory`` does not hold them yet."""
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    store = ShardedJsonl(directory, shard_size)
    total = -(-len(job.items) // shard_size)
    with store.claimed(job.identity):
        started = time.monotonic()
        pending = list(store.pending(job.items))
        for done, shard in enumerate(pending, 1):
            began = time.monotonic()
            repeated = write_shard(job, store, shard)
            ahead = (time.monotonic() - started) / done * (len(pending) - done)
            kept = f", {repeated} forwards kept from before" if repeated else ""
            taken = time.monotonic() - began
            say(f"  shard {shard.index + 1}/{total}: {taken:.1f} s{kept}; about {ahead:.0f} s to go")
        store.finish("log_probs", job.identity, {"items": len(job.items)})
        return {record["id"]: [from_json(row) for row in record["rows"]] for record in store.read()}


def is_kept(job: LogProbJob, directory: Path, shard_size: int) -> bool:
    """Whether every shard is there already."""
    return not any(True for _ in ShardedJsonl(directory, shard_size).pending(job.items))


def write_shard(job: LogProbJob, store: ShardedJsonl, shard: Shard[Item]) -> int:
    """Write one shard; returns how many of its forwards an earlier process had finished."""
    started = time.monotonic()
    rows = [row for item in shard.items for row in item.rows]
    order = batches(rows, job.micro_batch_size)
    found: list[dict[str, Any]] = [{} for _ in rows]
    with store.journal(shard.index) as journal:
        earlier = len(journal.records)
        for indices, record in zip(order, journal.records, strict=False):
            for index, row in zip(indices, record["rows"], strict=True):
                found[index] = row
        for indices, results in job.scorer.responses(rows, job.micro_batch_size, skip=earlier):
            made = [to_json(result, job.per_token) for result in results]
            journal.append({"rows": made})
            for index, row in zip(indices, made, strict=True):
                found[index] = row
    records, start = [], 0
    for item in shard.items:
        records.append({"id": item.id, "rows": found[start : start + len(item.rows)]})
        start += len(item.rows)
    store.write(shard.index, records, time.monotonic() - started)
    return earlier


def to_json(found: RowLogProbs, per_token: bool) -> dict[str, Any]:
    """One row as JSON, which has no NaN: a number that is not finite becomes null."""
    row: dict[str, Any] = {"sum": finite(found.summed), "tokens": found.tokens, "norm": finite(found.norm)}
    if per_token and found.per_token is not None:
        row["per_token"] = [finite(term) for term in found.per_token]
    return row


def from_json(row: Mapping[str, Any]) -> RowLogProbs:
    """What ``to_json`` wrote."""
    terms = None if "per_token" not in row else tuple(number(term) for term in row["per_token"])
    return RowLogProbs(number(row["sum"]), row["tokens"], number(row["norm"]), terms)


def number(value: float | None) -> float:
    """``value``, or NaN for ``None``."""
    return math.nan if value is None else value
