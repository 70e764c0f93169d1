"""`python -m src.evaluation.rm_bench checkpoint=RUN`: RM-Bench of a run's reward, or of stored scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from src.benchmark_schema import RMBenchConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.evaluation.rmbench.measure import RewardPlan
    from src.generation.policy import Policy
    from src.schema import TrainConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, RMBenchConfig):
        raise Problems(problems)
    from src.evaluation.rmbench.options import refuse_contradictions

    checked = cast(RMBenchConfig, config)
    refuse_contradictions(checked)
    return score_stored(checked) if checked.checkpoint is None else score_checkpoint(checked)


def score_stored(config: RMBenchConfig) -> int:
    """Stored scores, or a reward that reads the texts alone: no checkpoint, no record."""
    from src.evaluation.finish import show
    from src.evaluation.rmbench.stored import stored_scores

    if config.dry_run:
        print(
            f"stage=score would read {config.samples or config.data or 'the items'}; it costs nothing", file=sys.stderr
        )
        return 0
    show(stored_scores(config), "rm_bench", config.output)
    return 0


def score_checkpoint(config: RMBenchConfig) -> int:
    """Rewards under a checkpoint, kept and scored; a record."""
    from src.evaluation.rmbench.measure import measure
    from src.evaluation.subject import subject_of
    from src.generation.policy import is_run, trained_config

    subject = subject_of(config)
    assert subject.policy is not None
    directory = Path(cast(str, config.checkpoint))
    trained = trained_config(directory) if is_run(str(directory)) else None
    plan = plan_of(config, trained, subject.policy)
    measure(config, subject, plan, " ".join(["python -m src.evaluation.rm_bench", *sys.argv[1:]]))
    return 0


def plan_of(config: RMBenchConfig, trained: TrainConfig | None, policy: Policy) -> RewardPlan:
    """The reward and its truncation; raises ``UserError`` for what only a run has."""
    from src.evaluation.rewards import OFFICIAL, initial_weights, training_truncation
    from src.evaluation.rmbench.measure import RewardPlan, reference_of
    from src.training.assemble import build_objective
    from src.training.run import sft_base

    name = config.reward or "average"
    for key, value in (("reward", "method"), ("truncation", "training")):
        if trained is None and getattr(config, key) == value:
            raise UserError(
                f"{key}={value} is that of a run, and checkpoint={config.checkpoint} is a model; leave {key} out"
            )
    truncation = OFFICIAL if trained is None or config.truncation == "official" else training_truncation(trained)
    if name not in ("reference", "method"):
        return RewardPlan(name, truncation)
    initial = None if trained is None else initial_weights(trained, policy.directory, sft_base)
    if name == "reference" or trained is None:
        return RewardPlan(name, truncation, reference_of(config, initial, policy))
    objective = build_objective(trained)
    reference = reference_of(config, initial, policy) if objective.needs.reference else None
    return RewardPlan(name, truncation, reference, objective.reward, objective.needs.per_token)


if __name__ == "__main__":
    entry_point("rm_bench", main)
