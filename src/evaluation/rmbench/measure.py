"""A checkpoint measured: log-probs of all answers kept, rewards made of them, scored, recorded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.data.sources.files import content_hash, existing
from src.errors import UserError
from src.evaluation.finish import finish, finite, say
from src.evaluation.kept import Item, LogProbJob, is_kept, kept_log_probs
from src.evaluation.records import DataInfo
from src.evaluation.rewards import LogProbScorer, Row, RowLogProbs, Truncation, Weights, as_log_probs, batches, encode
from src.evaluation.rmbench.items import Kept, StyleItem, items_hash, kept_items, layout_of
from src.evaluation.rmbench.scores import ScoredItem, scores_of
from src.evaluation.rmbench.stored import items_given, refuse_none
from src.evaluation.stored import files_given
from src.generation.policy import Policy, local_directory
from src.generation.shards import line_of, write_durably
from src.generation.transformers_backend import context_of

if TYPE_CHECKING:
    from torch import Tensor

    from src.benchmark_schema import RMBenchConfig
    from src.evaluation.subject import Subject
    from src.objective.types import ResponseLogProbs

STYLES = range(3)
MethodReward = Callable[["ResponseLogProbs", "ResponseLogProbs | None"], "Tensor"]
"""A method's reward, [n], of log-probs under the policy and, where it has one, under the reference."""

TokenLogProbs = Sequence[RowLogProbs]


@dataclass(frozen=True)
class RewardPlan:
    """How answers become rewards. ``reference``: weights that the reward compares with, ``None`` where it needs none.
    ``method``: the run's own reward; ``per_token``: whether it needs every token's log-prob."""

    name: str
    truncation: Truncation
    reference: Weights | None = None
    method: MethodReward | None = None
    per_token: bool = False

    def rewards(self, policy: TokenLogProbs, reference: TokenLogProbs | None) -> list[float]:
        """One number per answer."""
        if self.method is not None:
            found = self.method(as_log_probs(policy), None if reference is None else as_log_probs(reference))
            return [float(value) for value in found.double()]
        if self.name == "reference":
            assert reference is not None
            return [one.summed - other.summed for one, other in zip(policy, reference, strict=True)]
        kinds = {"average": "average", "sum": "summed", "norm": "norm"}
        return [float(getattr(one, kinds[self.name])) for one in policy]


def measure(config: RMBenchConfig, subject: Subject, plan: RewardPlan, command: str) -> None:
    """Compute the log-probs that are not there yet, then reward, score, record and show; ``dry_run`` stops before."""
    policy = subject.policy
    assert policy is not None
    kept = kept_items(items_given(config), scored=False)
    refuse_none(len(kept.items), "3 + 3 answers (chosen, rejected)")
    rows = encoded_items(policy, kept.items, plan.truncation)
    say("\n".join(plan_lines(config, plan, kept, rows)))
    if config.dry_run:
        return
    jobs = [
        LogProbJob(LogProbScorer(weights, config.device), rows, config.micro_batch_size, plan.per_token)
        for weights in (Weights(policy.directory, policy.model), plan.reference)
        if weights is not None
    ]
    name = re.sub(r"[^\w.-]+", "_", subject.name)
    # the reference's are named by nothing of the run, so that all runs that started there share them
    found = [log_probs(config, job, label) for job, label in zip(jobs, (name, "reference"), strict=False)]
    samples, scored = rewarded(kept.items, plan, found, subject.name)
    identity = json_hash([[job.identity for job in jobs], plan.name, items_hash(kept.items)])[:10]
    path = Path(config.output_root) / f"rm_bench__{name}__{plan.name}__{identity}" / "samples.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, b"".join(map(line_of, samples)))
    say(f"rewards: {path}")
    sources: dict[str, Any] = {"samples": {"path": str(path), "hash": content_hash([path])}}
    if config.data is not None:
        files = files_given(config.data, "data")
        sources["data"] = {"path": ", ".join(files), "hash": content_hash([existing(file, "data") for file in files])}
    finish(
        config,
        "rm_bench",
        subject,
        scores_of(scored, layout_of(config.benchmark), kept, notes_of(config, policy, rows)),
        DataInfo(config.benchmark, items_hash(kept.items), len(kept.items)),
        {
            "reward": plan.name,
            "reference": None if plan.reference is None else str(plan.reference.path),
            "truncation": plan.truncation.describe(),
            "max_items": config.max_items,
        },
        sources=sources,
        command=command,
    )


def reference_of(config: RMBenchConfig, initial: Path | None, policy: Policy) -> Weights:
    """The weights named, or where the run started; raises ``UserError`` when there are none."""
    if config.reference is not None:
        return Weights(local_directory(config.reference), policy.model)
    if initial is None:
        raise UserError(
            f"reward={config.reward} compares with a reference, and none is known for checkpoint={config.checkpoint} "
            "(a model, a run from random weights, or one whose SFT base is gone); give reference= a model directory or "
            "hub id, or reward=average"
        )
    return Weights(initial, policy.model)


def encoded_items(policy: Policy, items: Sequence[StyleItem], truncation: Truncation) -> list[Item]:
    """Rows of every item, chosen answers before rejected ones. The two of a style are truncated together, as the
    owners' script does it."""
    if bare := [f"{item.part}:{item.id}" for item in items if not item.prompt]:
        raise UserError(f"{len(bare)} items have no prompt (first: {bare[0]}), so no model can score them; restore it")
    groups = [(item.prompt, (item.chosen[style], item.rejected[style])) for item in items for style in STYLES]
    encoded = encode(policy.template, groups, truncation)
    found, seen = [], dict[str, int]()
    for place, item in enumerate(items):
        styles = encoded[len(STYLES) * place : len(STYLES) * (place + 1)]
        name = f"{item.part}:{item.id}"
        seen[name] = seen.get(name, 0) + 1
        rows = (*(style[0] for style in styles), *(style[1] for style in styles))
        found.append(Item(name if seen[name] == 1 else f"{name}#{seen[name]}", rows))
    return found


def log_probs(config: RMBenchConfig, job: LogProbJob, label: str) -> list[list[RowLogProbs]]:
    """Those of every item, in order: from the disk, or computed now."""
    directory = job.directory(config.output_root, label)
    if config.stage == "score" and not is_kept(job, directory, config.shard_size):
        raise UserError(
            f"stage=score scores what is there already, and {directory} does not hold all log-probs under "
            f"{job.scorer.weights.path}; leave stage out to compute the rest"
        )
    say(f"log-probs under {job.scorer.weights.path}: {directory}")
    found = kept_log_probs(job, directory, config.shard_size, say)
    job.scorer.close()  # before the reference is read: two large models need not fit side by side
    return [found[item.id] for item in job.items]


def rewarded(
    items: Sequence[StyleItem], plan: RewardPlan, found: Sequence[list[list[RowLogProbs]]], model: str
) -> tuple[list[dict[str, Any]], list[ScoredItem]]:
    """Every item as the owners' result files have it, with what its rewards are made of besides; and its scores."""
    samples, scored = [], []
    for place, item in enumerate(items):
        policy = found[0][place]
        reference = found[1][place] if len(found) > 1 else None
        rewards = plan.rewards(policy, reference)
        chosen, rejected = rewards[: len(STYLES)], rewards[len(STYLES) :]
        scored.append(ScoredItem(item.part, tuple(chosen), tuple(rejected), item.id))
        sample = dict(item.content) | {"domain": item.part, "model": model}
        sample |= {"score_chosen": list(map(finite, chosen)), "score_rejected": list(map(finite, rejected))}
        sample["log_probs"] = {"sum": [finite(row.summed) for row in policy], "tokens": [row.tokens for row in policy]}
        if reference is not None:
            sample["log_probs"]["reference_sum"] = [finite(row.summed) for row in reference]
        samples.append(sample)
    return samples, scored


def plan_lines(config: RMBenchConfig, plan: RewardPlan, kept: Kept, items: Sequence[Item]) -> list[str]:
    """What is to be done, in words."""
    rows = [row for item in items for row in item.rows]
    shards = [items[start : start + config.shard_size] for start in range(0, len(items), config.shard_size)]
    in_shards = [[row for item in shard for row in item.rows] for shard in shards]
    forwards = sum(len(batches(part, config.micro_batch_size)) for part in in_shards)
    parts = dict[str, int]()
    for item in kept.items:
        parts[item.part] = parts.get(item.part, 0) + 1
    listed = ", ".join(f"{part} {count}" for part, count in parts.items())
    under = (
        "the run's weights" if plan.reference is None else f"the run's weights and its reference {plan.reference.path}"
    )
    times = "" if plan.reference is None else "twice "
    return [
        f"RM-Bench: {len(items)} items ({listed}), {len(rows)} answers; reward={plan.name} under {under}",
        f"  {times}{forwards} forwards of up to {config.micro_batch_size} answers, {sum(map(len, rows))} tokens; "
        f"{sum(row.cut for row in rows)} answers or their prompts are cut (truncation={plan.truncation.name}); "
        "no paid call",
    ]


def notes_of(config: RMBenchConfig, policy: Policy, items: Sequence[Item]) -> list[str]:
    """What a reader must know of how the rewards came about."""
    rows: list[Row] = [row for item in items for row in item.rows]
    notes = []
    if config.max_items is not None:
        notes.append(f"a trial: the first {config.max_items} items of each part")
    if cut := sum(row.cut for row in rows):
        notes.append(f"{cut} of {len(rows)} answers, or their prompts, were cut to fit")
    context = context_of(policy) or math.inf
    if longer := sum(len(row) > context for row in rows):
        notes.append(f"{longer} of {len(rows)} answers end beyond the {context} tokens that the model was made for")
    return notes
