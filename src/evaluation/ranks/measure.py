"""A run's pairs measured: log-probs under its weights and its reference, rewards, and one kept row per pair."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.ranks.keeping import SIDES, PairJob, kept_log_probs
from src.evaluation.ranks.scoring import counts_of, items_of, notes_of
from src.evaluation.statistics import ranking_metrics
from src.generation.shards import line_of, write_durably

if TYPE_CHECKING:
    from src.objective.objective import Objective
    from src.objective.types import PairLogProbs
    from src.schema import RankingConfig

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class RankingJob:
    """What is measured. ``policy``: the pairs under the run's weights; ``reference``: under those it started from,
    ``None`` where they are gone; ``name``: of the run."""

    name: str
    policy: PairJob
    reference: PairJob | None
    objective: Objective

    def directory(self, root: str | Path, which: str, split: str) -> Path:
        """Where the rows are kept: a pure function of everything that they depend on."""
        parts = [
            self.policy.identity,
            None if self.reference is None else self.reference.identity,
            repr(self.objective.reward),
        ]
        return Path(root) / "ranking" / f"{self.name}__{which}__{split}__{json_hash({'rows': parts})[:10]}"

    def plan(self, config: RankingConfig) -> list[str]:
        """What is to be done, in words."""
        pairs = self.policy.pairs
        tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
        forwards = -(-len(pairs) // config.micro_batch_size)
        lines = [f"{len(pairs)} pairs, {tokens} tokens and {forwards} forwards a model; no paid call"]
        for title, job in (("run", self.policy), ("reference", self.reference)):
            if job is not None:
                done, total = job.done(config.output_root, config.shard_size)
                lines.append(f"  {title}: {done} of {total} shards are there")
        return lines


def measured(config: RankingConfig, job: RankingJob) -> tuple[Scores, dict[str, Any]]:
    """Scores of all pairs, and where their rows are kept (name -> path and hash).

    Raises ``UserError`` for log-probs that are not finite.
    """
    root = config.output_root
    policy, kept = kept_log_probs(job.policy, root, config.shard_size)
    sources = {"log_probs": {"path": str(job.policy.directory(root)), "hash": kept["content"]}}
    reference = None
    if job.reference is not None:
        reference, kept = kept_log_probs(job.reference, root, config.shard_size)
        sources["reference_log_probs"] = {"path": str(job.reference.directory(root)), "hash": kept["content"]}
    columns = columns_of(job, policy, reference)
    scores = scored(columns, config.min_score_gap, [pair.id for pair in job.policy.pairs])
    path = job.directory(root, config.which, config.split) / SAMPLES
    sources["samples"] = {"path": str(path), "hash": written(path, job, columns)}
    return scores, sources


def columns_of(job: RankingJob, policy: PairLogProbs, reference: PairLogProbs | None) -> dict[str, Any]:
    """The arguments of ``ranking_metrics``."""
    pairs = job.policy.pairs
    columns: dict[str, Any] = {
        "chosen_scores": [pair.chosen_score for pair in pairs],
        "rejected_scores": [pair.rejected_score for pair in pairs],
        "flipped": [pair.flipped for pair in pairs],
        "prompt_ids": [prompt_id(pair.prompt_ids) for pair in pairs],
    }
    for side in SIDES:
        values = getattr(policy, side)
        columns |= {f"{side}_sum": values.summed.double().numpy(), f"{side}_tokens": values.tokens.numpy()}
        if reference is not None:
            columns[f"reference_{side}_sum"] = getattr(reference, side).summed.double().numpy()
    if reference is not None or not job.objective.needs.reference:
        rewards = job.objective.rewards(policy, reference)
        columns |= {
            "chosen_reward": rewards.chosen.double().numpy(),
            "rejected_reward": rewards.rejected.double().numpy(),
        }
    return columns


def scored(columns: Mapping[str, Any], min_score_gap: float, ids: Sequence[str]) -> Scores:
    """The metrics, and how many pairs fell under which rule; ``ids``: of the pairs."""
    metrics = ranking_metrics(**columns, min_score_gap=min_score_gap)
    told = {"rows": len(columns["flipped"]), "duplicates": 0, "not_finite": 0}  # ids are unique, and all is finite
    counts = {**told, **counts_of(columns, min_score_gap), "missing": 0}
    return Scores(metrics, counts, tuple(notes_of(counts)), items=items_of(columns, ids, min_score_gap))


def prompt_id(ids: list[int]) -> str:
    """Sixteen hex digits of a prompt's token ids: equal for pairs of one prompt."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def written(path: Path, job: RankingJob, columns: Mapping[str, Any]) -> str:
    """Write one row per pair, in the format that ``stage=score`` reads; returns the file's hash."""
    pairs = job.policy.pairs
    names = [name for name in columns if name not in ("chosen_scores", "rejected_scores", "flipped", "prompt_ids")]
    lines = []
    for place, pair in enumerate(pairs):
        row = {
            "id": pair.id,
            "model": job.name,
            "prompt_id": columns["prompt_ids"][place],
            "flipped": pair.flipped,
            "chosen_score": pair.chosen_score,
            "rejected_score": pair.rejected_score,
        }
        lines.append(line_of(row | {name: float(columns[name][place]) for name in names}))
    content = b"".join(lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); set output_root to a place where you may write"
        ) from error
    print(f"rows: {path}", file=sys.stderr)
    return hashlib.sha256(content).hexdigest()


def noted(scores: Scores, notes: list[str]) -> Scores:
    """Scores with further notes."""
    return replace(scores, notes=(*scores.notes, *notes))
