"""Rewards of all responses under a checkpoint, kept prompt by prompt in the format that ``stage=score`` reads."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.data.pairs import ScoredResponses
from src.errors import UserError
from src.evaluation.lists.data import Lists
from src.evaluation.rewards import (
    LogProbScorer,
    Row,
    RowLogProbs,
    Truncation,
    Weights,
    as_log_probs,
    batches,
    encode,
)
from src.generation.shards import Shard, ShardedJsonl, plain_data

if TYPE_CHECKING:
    from src.evaluation.subject import Subject
    from src.objective.objective import Objective


@dataclass(frozen=True)
class Encoded:
    """A prompt, its responses and their token ids."""

    item: ScoredResponses
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ListJob:
    """What is rewarded: ``lists`` under the weights of ``subject``.

    ``reference``: where the run started from, ``None`` where there is none. ``objective``: the run's own, whose reward
    is ``reward=method``; ``None`` for a model that is no run.
    """

    subject: Subject
    lists: Lists
    truncation: Truncation
    reference: Weights | None
    objective: Objective | None
    device: str
    micro_batch_size: int

    @property
    def weights(self) -> Weights:
        """Those that are measured."""
        policy = self.subject.policy
        assert policy is not None
        return Weights(policy.directory, policy.model)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the kept rewards depend on, as plain data. Hashes all weights."""
        policy = self.subject.policy
        assert policy is not None
        return plain_data(
            {
                "model": self.subject.name,
                "weights": self.weights.describe(),
                "reference": None if self.reference is None else self.reference.describe(),
                "template": policy.template.hash,
                "truncation": self.truncation.describe(),
                "reward": None if self.objective is None else repr(self.objective.reward),
                "lists": {"name": self.lists.name, "content": self.lists.content, "prompts": len(self.lists.items)},
            }
        )

    def directory(self, root: str | Path) -> Path:
        """Where they belong below ``root``: a pure function of the identity."""
        return Path(root) / "listwise" / f"{self.subject.name}__{self.lists.name}__{json_hash(self.identity)[:10]}"

    @property
    def has_method(self) -> bool:
        """Whether the run's own reward can be computed."""
        objective = self.objective
        return objective is not None and (self.reference is not None or not objective.needs.reference)

    def encoded(self) -> tuple[list[Encoded], dict[str, int]]:
        """Token ids of every prompt that has some, and how many have none (``refused``)."""
        policy = self.subject.policy
        assert policy is not None
        found, refused, reason = [], 0, ""
        for item in self.lists.items:
            if not item.responses:
                found.append(Encoded(item, ()))
                continue
            try:
                texts = [response.text for response in item.responses]
                (rows,) = encode(policy.template, [(item.prompt, texts)], self.truncation)
            except UserError as error:
                refused, reason = refused + 1, str(error)
                continue
            found.append(Encoded(item, tuple(rows)))
        if not found:
            raise UserError(f"none of {refused} prompts can be given to the model; the last one: {reason}")
        cut = sum(row.cut for one in found for row in one.rows)
        return found, {"refused": refused, "cut": cut}


def reward_lists(job: ListJob, encoded: Sequence[Encoded], directory: Path, shard_size: int) -> dict[str, Any]:
    """Compute what is not in ``directory`` yet, shard by shard; returns the manifest.

    Whatever ends it, finished forwards are kept, and the next call goes on with the next one.
    """
    store = ShardedJsonl(directory, shard_size)
    total = -(-len(encoded) // shard_size)
    policy = LogProbScorer(job.weights, job.device)
    reference = None if job.reference is None else LogProbScorer(job.reference, job.device)
    with store.claimed(job.identity):
        for shard in store.pending(encoded):
            started = time.monotonic()
            store.write(shard.index, lines_of(job, store, shard, policy, reference), time.monotonic() - started)
            taken, responses = time.monotonic() - started, sum(len(one.rows) for one in shard.items)
            print(
                f"  shard {shard.index + 1}/{total}: {responses} responses, {taken:.1f} s", file=sys.stderr, flush=True
            )
        counts = {"prompts": len(encoded), "responses": sum(len(one.rows) for one in encoded)}
        return store.finish("listwise", job.identity, counts)


def lines_of(
    job: ListJob,
    store: ShardedJsonl,
    shard: Shard[Encoded],
    policy: LogProbScorer,
    reference: LogProbScorer | None,
) -> list[dict[str, Any]]:
    """The lines of one shard; forwards that an earlier process finished are read from its journal."""
    rows = [row for one in shard.items for row in one.rows]
    found: dict[int, dict[str, Any]] = {}
    with store.journal(shard.index) as journal:
        for record in journal.records:
            found |= {entry.pop("row"): entry for entry in record["rows"]}
        for indices, values in rewarded(job, rows, policy, reference, skip=len(journal.records)):
            journal.append({"rows": [{"row": index, **value} for index, value in zip(indices, values, strict=True)]})
            found |= dict(zip(indices, values, strict=True))
    places = iter(range(len(rows)))
    return [line_of(job, one, [found[next(places)] for _ in one.rows]) for one in shard.items]


def rewarded(
    job: ListJob, rows: Sequence[Row], policy: LogProbScorer, reference: LogProbScorer | None, skip: int
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """(indices, what is kept of each response) of one forward after the other."""
    if skip >= len(batches(rows, job.micro_batch_size)):
        return
    others = None if reference is None else reference.responses(rows, job.micro_batch_size, skip)
    for indices, values in policy.responses(rows, job.micro_batch_size, skip):
        beside = None if others is None else next(others)[1]
        kept = [
            {"sum": finite(value.summed), "tokens": value.tokens, "cut": rows[index].cut}
            for index, value in zip(indices, values, strict=True)
        ]
        if beside is not None:
            for entry, value in zip(kept, beside, strict=True):
                entry["reference_sum"] = finite(value.summed)
        if job.has_method:
            for entry, number in zip(kept, method_rewards(job, values, beside), strict=True):
                entry["reward"] = finite(number)
        yield indices, kept


def method_rewards(job: ListJob, values: list[RowLogProbs], beside: list[RowLogProbs] | None) -> list[float]:
    """The run's own rewards, nats × β."""
    assert job.objective is not None
    reference = None if beside is None else as_log_probs(beside)
    found: list[float] = job.objective.reward(as_log_probs(values), reference).double().tolist()
    return found


def line_of(job: ListJob, one: Encoded, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One prompt with its responses, as they are stored."""
    item = one.item
    responses = [
        {"model": response.writer, "text": response.text, "score": response.score, **value}
        for response, value in zip(item.responses, values, strict=True)
    ]
    prompt = [{"role": turn.role, "content": turn.content} for turn in item.prompt]
    return {"prompt_id": item.id, "model": job.subject.name, "prompt": prompt, "responses": responses}


def finite(value: float) -> float | None:
    """``value``; ``None`` (null) for what JSON cannot hold."""
    return value if math.isfinite(value) else None
