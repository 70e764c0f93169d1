"""`python -m src.evaluation.listwise checkpoint=RUN`: how well rewards rank all responses to a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from src.benchmark_schema import ListwiseConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems

if TYPE_CHECKING:
    from src.evaluation.lists.data import TrainedOn
    from src.evaluation.lists.scoring import ListRules
    from src.schema import TrainConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, ListwiseConfig):
        raise Problems(problems)
    from src.evaluation.lists.options import refuse_contradictions, rules_of

    checked = cast(ListwiseConfig, config)
    refuse_contradictions(checked)
    rules = rules_of(checked)
    return score_stored(checked, rules) if checked.stage == "score" else measure(checked, rules)


def score_stored(config: ListwiseConfig, rules: ListRules) -> int:
    """Scores of stored rewards: no checkpoint, no record."""
    from src.evaluation.finish import show
    from src.evaluation.lists.stored import stored_scores

    if config.dry_run:
        print(f"stage=score would read {config.samples}; it costs nothing", file=sys.stderr)
        return 0
    show(stored_scores(config, rules), "listwise", config.output)
    return 0


def measure(config: ListwiseConfig, rules: ListRules) -> int:
    """Rewards under a checkpoint, kept and scored; a record."""
    from src.evaluation.lists.data import lists_of, toy_lists
    from src.evaluation.lists.measure import measure_lists
    from src.evaluation.lists.rewarding import ListJob
    from src.evaluation.rewards import OFFICIAL, Weights, initial_weights, training_truncation
    from src.evaluation.subject import subject_of
    from src.generation.policy import is_run, trained_config
    from src.training.assemble import build_objective
    from src.training.run import sft_base

    subject = subject_of(config)
    assert subject.policy is not None
    directory = Path(cast(str, config.checkpoint))
    trained = trained_config(directory) if is_run(str(directory)) else None
    if config.benchmark == "toy":
        lists = toy_lists(config.max_items)
    else:
        lists = lists_of(config.dataset, trained_on(trained), config.split, config.max_items)
    weights = None if trained is None else initial_weights(trained, subject.policy.directory, sft_base)
    job = ListJob(
        subject,
        lists,
        OFFICIAL if trained is None else training_truncation(trained),
        None if weights is None or trained is None else Weights(weights, trained.model),
        None if trained is None else build_objective(trained),
        config.device,
        config.micro_batch_size,
    )
    measure_lists(config, job, rules, " ".join(["python -m src.evaluation.listwise", *sys.argv[1:]]))
    return 0


def trained_on(trained: TrainConfig | None) -> list[TrainedOn]:
    """What the run was trained on, and the supervised run that it began from."""
    from src.evaluation.lists.data import TrainedOn
    from src.training.assemble import build_objective, build_source
    from src.training.run import sft_base

    configs = [] if trained is None else [trained, sft_base(trained)]
    return [
        TrainedOn(build_source(one), one.dataset, build_objective(one).needs.rejected)
        for one in configs
        if one is not None
    ]


if __name__ == "__main__":
    entry_point("listwise", main)
