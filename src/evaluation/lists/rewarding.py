"""Rewards of all responses under a checkpoint, kept prompt by prompt in the format that ``stage=score`` reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.data.pairs import ScoredResponses
from src.errors import UserError
from src.evaluation.kept import Item, LogProbJob, is_kept, kept_log_probs
from src.evaluation.lists.data import Lists
from src.evaluation.rewards import LogProbScorer, Row, RowLogProbs, Truncation, Weights, as_log_probs, encode
from src.generation.shards import line_of, plain_data, write_durably

if TYPE_CHECKING:
    from src.evaluation.subject import Subject
    from src.objective.objective import Objective

SAMPLES = "samples.jsonl"


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

    def path(self, root: str | Path) -> Path:
        """Where the rewards belong below ``root``: a pure function of the identity."""
        name = f"{self.subject.name}__{self.lists.name}__{json_hash(self.identity)[:10]}"
        return Path(root) / "listwise" / name / SAMPLES

    def log_prob_jobs(self, encoded: Sequence[Encoded], root: str | Path) -> list[tuple[LogProbJob, Path]]:
        """The forwards under the run's weights, and under those it started from; and where each is kept."""
        items = [Item(one.item.id, one.rows) for one in encoded]
        terms = self.objective is not None and self.objective.needs.per_token
        named = ((self.subject.name, self.weights), ("reference", self.reference))
        found = []
        for name, weights in named:
            if weights is not None:
                job = LogProbJob(LogProbScorer(weights, self.device), items, self.micro_batch_size, terms)
                found.append((job, job.directory(root, f"{name}__{self.lists.name}")))
        return found

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


def reward_lists(job: ListJob, encoded: Sequence[Encoded], root: str | Path, shard_size: int) -> tuple[Path, str]:
    """Compute the log-probs that are not kept yet, and write one line per prompt; returns the file and its hash.

    Whatever ends it, finished forwards are kept, and the next call goes on with the next one. One model at a time is
    in memory.
    """
    kept = [kept_log_probs(*planned, shard_size) for planned in job.log_prob_jobs(encoded, root)]
    lines = []
    for one in encoded:
        values, *beside = (found[one.item.id] for found in kept)
        lines.append(line_of(line_of_prompt(job, one, values, beside[0] if beside else None)))
    content, path = b"".join(lines), job.path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content)
    return path, hashlib.sha256(content).hexdigest()


def done_jobs(job: ListJob, encoded: Sequence[Encoded], root: str | Path, shard_size: int) -> tuple[int, int]:
    """(models whose log-probs are kept already, models)."""
    planned = job.log_prob_jobs(encoded, root)
    return sum(is_kept(one, directory, shard_size) for one, directory in planned), len(planned)


def line_of_prompt(
    job: ListJob, one: Encoded, values: list[RowLogProbs], beside: list[RowLogProbs] | None
) -> dict[str, Any]:
    """One prompt with its responses, as they are stored; a number that is not finite is null."""
    rewards = method_rewards(job, values, beside) if job.has_method and values else [None] * len(values)
    responses = []
    for place, (response, row, value) in enumerate(zip(one.item.responses, one.rows, values, strict=True)):
        entry: dict[str, Any] = {"model": response.writer, "text": response.text, "score": response.score}
        entry |= {"sum": finite(value.summed), "tokens": value.tokens, "cut": row.cut}
        if beside is not None:
            entry["reference_sum"] = finite(beside[place].summed)
        responses.append(entry | {"reward": finite(rewards[place])})
    prompt = [{"role": turn.role, "content": turn.content} for turn in one.item.prompt]
    return {"prompt_id": one.item.id, "model": job.subject.name, "prompt": prompt, "responses": responses}


def method_rewards(job: ListJob, values: list[RowLogProbs], beside: list[RowLogProbs] | None) -> list[float]:
    """The run's own rewards, nats × β."""
    assert job.objective is not None
    reference = None if beside is None else as_log_probs(beside)
    found: list[float] = job.objective.reward(as_log_probs(values), reference).double().tolist()
    return found


def finite(value: float | None) -> float | None:
    """``value``; ``None`` (null) for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
