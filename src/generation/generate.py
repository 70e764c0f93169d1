"""Responses to prompts, shard by shard, into a directory named by everything that they depend on."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.cache import json_hash
from src.errors import UserError
from src.generation.base import Decoding, Generator, Request, Response, requests_of
from src.generation.prompts import NamedPrompt, prompts_hash
from src.generation.shards import Shard, ShardedJsonl, plain_data

EXAMPLES = 20
"""Ids of skipped prompts that the manifest names."""


@dataclass(frozen=True)
class Job:
    """What is to be generated. ``writer``: the name that every response is recorded under."""

    generator: Generator
    decoding: Decoding
    prompts: Sequence[NamedPrompt]
    writer: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the responses depend on, as plain data: model, decoding, prompts, writer. Hashes all weights."""
        return plain_data(
            {
                "writer": self.writer,
                "model": self.generator.describe(),
                "decoding": self.decoding.describe(),
                "prompts": {"content": prompts_hash(self.prompts), "count": len(self.prompts)},
            }
        )

    def directory(self, root: str | Path, name: str) -> Path:
        """Where the responses belong below ``root``: a pure function of the settings. ``name``: of the prompts."""
        parts = (re.sub(r"[^\w.-]+", "_", part) for part in (self.writer, name))
        return Path(root) / "__".join((*parts, json_hash(self.identity)[:10]))


def generate(
    job: Job, directory: Path, shard_size: int, say: Callable[[str], None] | None = None, **notes: Any
) -> dict[str, Any]:
    """Respond to every prompt of ``job`` that has no response in ``directory`` yet; returns the manifest.

    Whatever ends it, what was finished is kept, and the next call goes on there. ``notes`` go into the manifest.
    Raises ``UserError``, also when an endpoint gave up (exit code 75).
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    refused = {item.id: job.generator.refusal(item.prompt) for item in job.prompts}
    items = [item for item in job.prompts if refused[item.id] is None]
    skipped = skipped_by_reason(refused)
    if not items:
        raise UserError(f"none of {len(job.prompts)} prompts can have a response ({spoken(skipped)})")
    store = ShardedJsonl(directory, shard_size)
    total = -(-len(items) // shard_size)
    with store.claimed(job.identity):
        for shard in store.pending(items):
            started = time.monotonic()
            repeated = write_shard(job, store, shard)
            taken = time.monotonic() - started
            kept = f", {repeated} of them kept from before" if repeated else ""
            say(
                f"  shard {shard.index + 1}/{total}: {len(shard.items) * job.decoding.n} responses, {taken:.1f} s{kept}"
            )
        return store.finish("generate", job.identity, counts_of(store.read(), skipped), **notes)


def write_shard(job: Job, store: ShardedJsonl, shard: Shard[NamedPrompt]) -> int:
    """Write one shard; returns how many of its responses an earlier process had finished."""
    started = time.monotonic()
    with store.journal(shard.index) as journal:
        done = {(record["prompt_id"], record["sample"]): record for record in journal.records}
        earlier = len(done)
        named = {item.id: item for item in shard.items}
        requests = [request for item in shard.items for request in requests_of(item.id, item.prompt, job.decoding)]
        missing = [request for request in requests if (request.prompt_id, request.sample) not in done]
        for index, response in job.generator.respond(missing):
            request = missing[index]
            record = record_of(named[request.prompt_id], request, response, job.writer)
            journal.append(record)
            done[request.prompt_id, request.sample] = record
        records = [done[request.prompt_id, request.sample] for request in requests]
    store.write(shard.index, records, time.monotonic() - started)
    return earlier


def record_of(item: NamedPrompt, request: Request, response: Response, writer: str) -> dict[str, Any]:
    """One line of a shard."""
    return {
        "prompt_id": item.id,
        "prompt": item.messages(),
        "response": response.text,
        "writer": writer,
        "sample": request.sample,
        "seed": request.seed,
        "temperature": request.temperature,
        "finish_reason": response.finish_reason,
        "tokens": response.tokens,
    }


def skipped_by_reason(refused: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Prompts without a response, by reason: how many, and the first ids."""
    skipped: dict[str, dict[str, Any]] = {}
    for identity, reason in refused.items():
        if reason is not None:
            entry = skipped.setdefault(reason, {"count": 0, "examples": []})
            entry["count"] += 1
            if len(entry["examples"]) < EXAMPLES:
                entry["examples"].append(identity)
    return skipped


def spoken(skipped: Mapping[str, Mapping[str, Any]]) -> str:
    """``3 × refused by the chat template``, …"""
    return ", ".join(f"{entry['count']} × {reason}" for reason, entry in sorted(skipped.items()))


def counts_of(records: Iterable[Mapping[str, Any]], skipped: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest counts. ``one_text``: prompts all of whose several responses are the same text."""
    reasons: Counter[str] = Counter()
    texts: dict[str, set[str]] = {}
    responses, tokens, empty = 0, 0, 0
    several: set[str] = set()
    for record in records:
        responses += 1
        tokens += record["tokens"] or 0
        empty += not record["response"].strip()
        reasons[record["finish_reason"]] += 1
        if record["prompt_id"] in texts:
            several.add(record["prompt_id"])
        texts.setdefault(record["prompt_id"], set()).add(record["response"])
    return {
        "prompts": len(texts),
        "responses": responses,
        "tokens": tokens,
        "empty": empty,
        "one_text": sum(len(texts[identity]) == 1 for identity in several),
        "finish_reasons": dict(sorted(reasons.items())),
        "skipped": dict(skipped),
    }
