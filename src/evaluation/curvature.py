"""`python -m src.evaluation.curvature checkpoint=RUN`: the loss's Hessian in a run's output layer; writes a record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from src.benchmark_schema import BenchmarkConfig, CurvatureConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from src.data.pairset import PairSet, TokenizedPair
    from src.objective.objective import Objective
    from src.schema import TrainConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, CurvatureConfig):
        raise Problems(problems)
    from src.analysis.curvature import summary
    from src.evaluation.benchmark import Scores
    from src.evaluation.finish import finish
    from src.evaluation.records import DataInfo, describe_run
    from src.evaluation.statistics import mean_estimate
    from src.evaluation.subject import Subject

    checked = cast(CurvatureConfig, config)
    if checked.checkpoint is None:
        raise UserError("checkpoint has no value; give a run directory: checkpoint=...")
    directory = Path(checked.checkpoint)
    subject = Subject(directory.resolve().name, describe_run(directory, checked.which), None)
    trained, objective, pairs, content_hash = prepared(checked, directory)
    found = summary(eigenvalues(checked, directory, trained, objective, pairs))
    metrics = {name: mean_estimate(values) for name, values in found.items()}
    items = {name: {f"batch-{place}": value for place, value in enumerate(values)} for name, values in found.items()}
    scores = Scores(metrics, {"pairs": checked.batches * checked.pairs}, (), {}, items)
    settings = {key: checked[key] for key in ("which", "batches", "pairs", "steps", "seed")}  # type: ignore[index]
    data = DataInfo("train", content_hash, len(pairs))
    finish(cast(BenchmarkConfig, checked), "curvature", subject, scores, data, settings)
    return 0


def prepared(config: CurvatureConfig, directory: Path) -> tuple[TrainConfig, Objective, PairSet, str]:
    """The run's configuration and objective, and its training pairs with their hash."""
    from src.evaluation.ranks.data import refuse_other_data
    from src.evaluation.subject import refuse_other_template, refuse_unfinished
    from src.generation.policy import policy_of_run, trained_config
    from src.training.assemble import build_objective, build_source, prepare_data

    refuse_unfinished(directory)
    trained = trained_config(directory)
    objective = build_objective(trained)
    if not objective.needs.rejected or objective.needs.per_token:
        raise UserError(
            f"{directory} was trained with method={trained.method['name']}, whose reward is not one of the summed "
            "log-probs of two responses; measure a run of another method"
        )
    policy = policy_of_run(directory, config.which)
    refuse_other_template(directory, policy)
    data = prepare_data(trained, policy.template, build_source(trained), objective)
    refuse_other_data(directory, data.manifest)
    wanted = config.batches * config.pairs
    if len(data.train) < wanted:
        raise UserError(
            f"batches={config.batches} of pairs={config.pairs} are {wanted} pairs, but {directory} has "
            f"{len(data.train)} training pairs; give fewer"
        )
    return trained, objective, data.train, data.manifest["content"]["train"]


def eigenvalues(
    config: CurvatureConfig, directory: Path, trained: TrainConfig, objective: Objective, pairs: PairSet
) -> list[Tensor]:
    """Of every batch, ascending."""
    import torch

    from src.analysis.curvature import OutputLayer
    from src.data.collate import collate
    from src.evaluation.rewards import LogProbScorer, Weights
    from src.training.checkpoint import completed

    weights = completed(directory / "checkpoints" / config.which) / "model"
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(config.seed))
    drawn = [pairs[int(index)] for index in order[: config.batches * config.pairs]]
    batches = [drawn[start : start + config.pairs] for start in range(0, len(drawn), config.pairs)]
    references = [
        reference_of(config, trained, weights, batch) if objective.needs.reference else None for batch in batches
    ]
    scorer = LogProbScorer(Weights(weights, trained.model), config.device)
    found = []
    for place, (batch, reference) in enumerate(zip(batches, references, strict=True)):
        layer = OutputLayer.of(scorer.model, collate(batch).to(scorer.device), objective, reference)
        found.append(layer.eigenvalues(config.steps, config.seed))
        print(
            f"  batch {place + 1}/{len(batches)}: {found[-1][0]:.4g} to {found[-1][-1]:.4g}",
            file=sys.stderr,
            flush=True,
        )
    return found


def reference_of(config: CurvatureConfig, trained: TrainConfig, weights: Path, batch: list[TokenizedPair]) -> Any:
    """Log-probs of a batch under the weights that the run started from, on the device."""
    from src.evaluation.rewards import LogProbScorer, Weights, initial_weights
    from src.objective.types import each_tensor
    from src.training.run import sft_base

    path = initial_weights(trained, weights, sft_base)
    if path is None:
        raise UserError(f"the weights that {weights.parent} started from are gone, and its reward compares with them")
    scorer = LogProbScorer(Weights(path, trained.model), config.device)
    found = scorer.pairs(batch, len(batch))
    scorer.close()
    return each_tensor(found, lambda tensor: tensor.to(scorer.device))


if __name__ == "__main__":
    entry_point("curvature", main)
