"""Log-probs of pairs under weights, kept shard by shard as they are computed: a killed ranking goes on from there."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.data.cache import json_hash
from src.data.pairset import TokenizedPair
from src.generation.shards import MANIFEST, Shard, ShardedJsonl, plain_data, read_records
from src.objective.types import PairLogProbs, ResponseLogProbs

if TYPE_CHECKING:
    from src.evaluation.rewards import LogProbScorer, Weights

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairJob:
    """``pairs`` under ``weights``. ``name``: for the directory; ``data``: what the pairs are made from, as plain data;
    ``per_token``: whether the terms of the sums are kept too."""

    name: str
    weights: Weights
    data: Mapping[str, Any]
    pairs: Sequence[TokenizedPair]
    per_token: bool
    device: str
    micro_batch_size: int

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the log-probs depend on. Hashes all weights."""
        return plain_data(
            {**self.weights.describe(), "data": dict(self.data), "pairs": len(self.pairs), "per_token": self.per_token}
        )

    def directory(self, root: str | Path) -> Path:
        """Where they belong: a pure function of the identity."""
        return Path(root) / "ranking" / "log_probs" / f"{self.name}__{json_hash(self.identity)[:10]}"

    def done(self, root: str | Path, shard_size: int) -> tuple[int, int]:
        """(shards that are written, shards in all)."""
        total = -(-len(self.pairs) // shard_size)
        store = ShardedJsonl(self.directory(root), shard_size)
        return (total if (store.directory / MANIFEST).exists() else len(store.finished())), total


def kept_log_probs(job: PairJob, root: str | Path, shard_size: int) -> tuple[PairLogProbs, dict[str, Any]]:
    """Log-probs of all pairs, computed where they are not kept yet, and the manifest of what is kept."""
    from src.evaluation.rewards import LogProbScorer

    store = ShardedJsonl(job.directory(root), shard_size)
    scorer = LogProbScorer(job.weights, job.device)
    total = -(-len(job.pairs) // shard_size)
    with store.claimed(job.identity):
        for shard in store.pending(job.pairs):
            started = time.monotonic()
            rows = rows_of(job, store, shard, scorer)
            taken = time.monotonic() - started
            store.write(shard.index, rows, taken)
            said = f"  {job.name}: {shard.index + 1}/{total}: {len(shard.items)} pairs, {taken:.1f} s"
            print(said, file=sys.stderr, flush=True)
        manifest = store.finish("ranking", job.identity, {"pairs": len(job.pairs)})
    rows = list(read_records(store.directory))
    return PairLogProbs(*(tensors_of(rows, side, job.per_token) for side in SIDES)), manifest


def rows_of(
    job: PairJob, store: ShardedJsonl, shard: Shard[TokenizedPair], scorer: LogProbScorer
) -> list[dict[str, Any]]:
    """The rows of one shard. Forwards are the same whoever computes them: one that an earlier process had not
    finished is repeated as a whole."""
    with store.journal(shard.index) as journal:
        done = {row["id"]: row for record in journal.records for row in record["rows"]}
        for start in range(0, len(shard.items), job.micro_batch_size):
            pairs = shard.items[start : start + job.micro_batch_size]
            if all(pair.id in done for pair in pairs):
                continue
            found = scorer.pairs(pairs, job.micro_batch_size, per_token=job.per_token)
            rows = [row_of(found, place, pair) for place, pair in enumerate(pairs)]
            journal.append({"rows": rows})
            done |= {row["id"]: row for row in rows}
        return [done[pair.id] for pair in shard.items]


def row_of(found: PairLogProbs, place: int, pair: TokenizedPair) -> dict[str, Any]:
    """One pair as it is kept; sums that are not finite are null."""
    row: dict[str, Any] = {"id": pair.id}
    for side in SIDES:
        values: ResponseLogProbs = getattr(found, side)
        row[f"{side}_sum"] = number(float(values.summed[place].double()))
        row[f"{side}_tokens"] = int(values.tokens[place])
        if values.per_token is not None:
            start, size = len(pair.prompt_ids), len(getattr(pair, f"{side}_ids"))
            terms = values.per_token[place, start : start + size].double().tolist()
            row[f"{side}_terms"] = [number(term) for term in terms]
    return row


def number(value: float) -> float | None:
    """``value``; null for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def tensors_of(rows: Sequence[Mapping[str, Any]], side: str, per_token: bool) -> ResponseLogProbs:
    """Kept rows as the tensors that a method's reward takes: float32 as they were computed."""

    def column(name: str) -> torch.Tensor:
        values = [math.nan if row[f"{side}_{name}"] is None else row[f"{side}_{name}"] for row in rows]
        return torch.tensor(values, dtype=torch.float32)

    terms = None
    if per_token:
        longest = max(len(row[f"{side}_terms"]) for row in rows)
        terms = torch.zeros(len(rows), longest)
        for place, row in enumerate(rows):
            kept = [math.nan if term is None else term for term in row[f"{side}_terms"]]
            terms[place, : len(kept)] = torch.tensor(kept, dtype=torch.float32)
    return ResponseLogProbs(column("sum"), column("tokens"), terms)
