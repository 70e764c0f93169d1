"""A checkpoint measured: rewards kept, scored, recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from src.errors import UserError
from src.evaluation.finish import finish
from src.evaluation.lists.rewarding import Encoded, ListJob, done_jobs, reward_lists
from src.evaluation.lists.scoring import ListRules, score
from src.evaluation.lists.stored import read_lists
from src.evaluation.records import DataInfo
from src.evaluation.rewards import batches

if TYPE_CHECKING:
    from src.benchmark_schema import ListwiseConfig
    from src.evaluation.benchmark import Scores


def measure_lists(config: ListwiseConfig, job: ListJob, rules: ListRules, command: str) -> None:
    """Reward what is not rewarded yet, then score, record and show; with ``dry_run`` only say what that would take."""
    reward = reward_of(config, job)
    encoded, counts = job.encoded()
    print("\n".join(plan_of(job, encoded, config)), file=sys.stderr, flush=True)
    if config.dry_run:
        return
    path, content = reward_lists(job, encoded, config.output_root, config.shard_size)
    print(f"rewards: {path}", file=sys.stderr)
    ((_, items),) = read_lists([str(path)], reward).items()
    scores = with_counts(score(items, rules), {**job.lists.counts, **counts}, config.split)
    if config.reward is None and reward != "method" and job.objective is not None:
        told = "the weights that the run started from are not there, which its own reward needs: ranked by average"
        scores = replace(scores, notes=(*scores.notes, told))
    settings = {
        "reward": reward,
        "gains": rules.gains.kind,
        "zero": "prompt" if rules.gains.zero is None else rules.gains.zero,
        "k": list(rules.k),
        "n": rules.n if rules.n is None or isinstance(rules.n, str) else list(rules.n),
        "lists": job.lists.name,
        "max_items": config.max_items,
        "truncation": job.truncation.name,
    }
    split = "benchmark" if config.benchmark == "toy" else config.split
    data = DataInfo(f"{job.lists.name}:{split}", job.lists.content, len(job.lists.items))
    sources = {"rewards": {"path": str(path), "hash": content}}
    finish(config, "listwise", job.subject, scores, data, settings, sources=sources, command=command)


def reward_of(config: ListwiseConfig, job: ListJob) -> str:
    """The reward that is ranked by; raises ``UserError`` for one that this checkpoint does not have."""
    if config.reward is None:
        return "method" if job.has_method else "average"
    if config.reward == "method" and not job.has_method:
        why = "is no run, so it has no method" if job.objective is None else "needs a reference, and that is gone"
        raise UserError(f"reward=method: {config.checkpoint} {why}; give reward=average or reward=sum")
    if config.reward == "reference" and job.reference is None:
        raise UserError(
            f"reward=reference needs the weights that {config.checkpoint} started from, and they are not there; give "
            "reward=average or reward=sum"
        )
    return config.reward


def plan_of(job: ListJob, encoded: list[Encoded], config: ListwiseConfig) -> list[str]:
    """What is to be done, in words."""
    rows = [row for one in encoded for row in one.rows]
    done, models = done_jobs(job, encoded, config.output_root, config.shard_size)
    forwards = len(batches(rows, job.micro_batch_size))
    under = "the run's weights" if models == 1 else "the run's weights and as many under those it started from"
    tokens = sum(map(len, rows))
    return [
        f"{len(encoded)} prompts, {len(rows)} responses: {tokens} tokens in about {forwards} forwards under {under}",
        f"  kept already: {done} of {models}; no paid call",
    ]


def with_counts(scores: Scores, counts: Mapping[str, int], split: str) -> Scores:
    """Scores with what was left out before there were rewards."""
    said = {
        "trained_on": f"prompts that the run was trained on: {'left out' if split == 'held_out' else 'kept'}",
        "repeated_prompts": "prompts that occurred before: the first counts",
        "refused": "prompts that the template or the truncation refuses: left out",
        "cut": "responses that were cut to fit, or their prompt",
    }
    notes = [f"{counts[name]} {text}" for name, text in said.items() if counts.get(name)]
    return replace(scores, counts={**scores.counts, **counts}, notes=(*scores.notes, *notes))
