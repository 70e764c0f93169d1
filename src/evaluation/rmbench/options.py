"""Which keys of an RM-Bench evaluation go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.errors import Problems
from src.evaluation.rmbench.stored import TEXT_REWARDS

if TYPE_CHECKING:
    from src.benchmark_schema import RMBenchConfig


LOG_PROB_REWARDS = ("average", "sum", "norm", "reference", "method")
"""Rewards made of log-probs under weights."""


def refuse_contradictions(config: RMBenchConfig) -> None:
    """Raise ``Problems`` for keys that are missing, unknown, or would not be read."""
    problems = reward_problems(config)
    if config.samples is not None:
        problems += [
            f"{key}={value} would not be read beside samples={config.samples}; give one of the two"
            for key in ("data", "checkpoint")
            if (value := getattr(config, key)) is not None
        ]
        if config.stage != "score":
            problems.append(
                f"samples={config.samples} would not be read without stage=score; add that, or leave it out"
            )
    if config.benchmark == "toy" and config.data is not None:
        problems.append(f"data={config.data} would not be read with benchmark=toy, which has its own; leave it out")
    if config.stage == "all" and config.checkpoint is None:
        problems.append(
            "checkpoint has no value; give a run directory, a model directory or a hub id, or score stored files: "
            "stage=score samples=[FILES]"
        )
    if problems:
        raise Problems(problems)


def reward_problems(config: RMBenchConfig) -> list[str]:
    """What is wrong with the reward and its reference."""
    reward, problems = config.reward, []
    if reward not in (None, *LOG_PROB_REWARDS, *TEXT_REWARDS):
        known = ", ".join((*LOG_PROB_REWARDS, *TEXT_REWARDS))
        return [f"reward={reward} is not known; choose one of: {known}"]
    if reward in LOG_PROB_REWARDS and config.checkpoint is None and config.stage == "score":
        problems.append(
            f"reward={reward} is made of log-probs under weights, and there is no checkpoint; leave it out where "
            f"scores are stored, or choose one that reads texts alone: {', '.join(TEXT_REWARDS)}"
        )
    if reward in TEXT_REWARDS and (config.checkpoint is not None or config.stage != "score"):
        problems.append(
            f"reward={reward} reads the texts alone; give it with stage=score and without a checkpoint, or choose one "
            f"of: {', '.join(LOG_PROB_REWARDS)}"
        )
    if reward == "oracle" and config.benchmark != "toy":
        problems.append("reward=oracle knows the toy world alone; add benchmark=toy, or choose another reward")
    if reward is None and config.stage == "score" and config.checkpoint is None and config.samples is None:
        problems.append(
            "stage=score has nothing to score; give samples=[FILES] with scores, reward=length, or the checkpoint=RUN "
            "whose log-probs are there already"
        )
    if config.reference is not None and reward not in ("reference", "method"):
        problems.append(
            f"reference={config.reference} would not be read with reward={reward or 'average'}; give reward=reference, "
            "or leave it out"
        )
    return problems
