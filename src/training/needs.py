"""Whether data, batch and method go together: what a method needs and cannot have is refused before training."""

from __future__ import annotations

from dataclasses import fields

from src.combinations import adapter_problems
from src.data.filter import ScoreFilter, refuse_unscored, score_gap
from src.data.prepare import PreparedData
from src.data.sources import Source, has_pairs
from src.errors import Problems, UserError
from src.objective.objective import Objective
from src.planner.shape import parameter_share
from src.schema import TrainConfig

OF_PAIRS = ("reference", "scores", "mismatched", "per_token", "anchor_gaps", "gradient_norms", "statistics", "state")
"""Needs that demonstrations cannot serve: they have one response, whose loss looks at nothing else."""


def refuse_unmet_needs(config: TrainConfig, objective: Objective) -> None:
    """Raise ``Problems`` for everything that the method needs and this configuration cannot give, whatever the data."""
    problems = demonstration_problems(config, objective) + lone_pair_problems(config, objective)
    problems += token_budget_problems(config, objective)
    if problems:
        raise Problems(problems)


def demonstration_problems(config: TrainConfig, objective: Objective) -> list[str]:
    """Parts and keys that an objective without rejected responses would not read, or could not serve."""
    if objective.link.needs.rejected:
        return []
    link, name = type(objective.link).__name__, config.method["name"]
    problems = []
    for slot, part in objective.parts.items():
        wanted = [need.name for need in fields(part.needs) if need.name in OF_PAIRS and getattr(part.needs, need.name)]
        if wanted:
            problems.append(
                f"method.{slot}={type(part).__name__} needs {' and '.join(wanted).replace('_', ' ')}, but "
                f"link={link} of method={name} trains on demonstrations, which have no rejected response and so none "
                "of it; take a link that compares responses (src.objective.links.Logistic), or a part that needs less"
            )
    if config.dataset.min_score_gap:
        problems.append(
            f"dataset.min_score_gap={config.dataset.min_score_gap:g} filters preference pairs, but method={name} "
            "trains on demonstrations, so nothing would be filtered; leave it out"
        )
    return problems


def token_budget_problems(config: TrainConfig, objective: Objective) -> list[str]:
    """A number of pairs per forward that follows from their lengths, where the method's numbers depend on it."""
    most = config.training.max_tokens_per_forward
    if most is None or objective.needs.statistics != "forward":
        return []
    return [
        f"training.max_tokens_per_forward={most} lets lengths decide how many pairs a forward has, but method="
        f"{config.method['name']} takes statistics over the pairs of one forward (method.statistics=forward), so they "
        "would change with them; leave it out, or set method.statistics to a number of pairs or to window"
    ]


def lone_pair_problems(config: TrainConfig, objective: Objective) -> list[str]:
    """Groups of a single pair where a part compares the pairs of its group."""
    needs = objective.needs
    if not needs.spread:
        return []
    training, evaluation = config.training, config.evaluation
    sizes = {
        "forward": {
            "training.micro_batch_size": training.micro_batch_size,
            "evaluation.micro_batch_size": evaluation.micro_batch_size,
        },
        "window": {"training.global_batch_size": training.global_batch_size},
    }
    within = sizes.get(str(needs.statistics), {})
    slots = [f"{slot}={type(part).__name__}" for slot, part in objective.parts.items() if part.needs.spread]
    other = "" if needs.statistics == "window" else ", or take the statistics over more than a forward"
    return [
        f"{key}=1 leaves one pair for the statistics of method={config.method['name']} ({', '.join(slots)}), which "
        f"compares the pairs of one {needs.statistics}; use {key}=2 or more{other} (method.statistics)"
        for key, size in within.items()
        if size == 1
    ]


def refuse_untrainable(config: TrainConfig) -> None:
    """Raise ``UserError`` when the architecture has nothing of what is to be trained."""
    chosen = config.model.trainable != "full" or config.adapter.name != "none"
    sound = config.adapter.r >= 1 and not adapter_problems(config)
    if chosen and sound and config.model.architecture:
        parameter_share(config, None)


def refuse_source_without_pairs(config: TrainConfig, objective: Objective, source: Source) -> None:
    """Raise ``UserError`` when pairs are needed, to train or to choose a checkpoint, and the source has demonstrations
    alone."""
    if has_pairs(source):
        return
    what = f"dataset={config.dataset.name} ({type(source).__name__}) has demonstrations alone"
    if objective.needs.rejected:
        raise UserError(
            f"method={config.method['name']} compares a chosen with a rejected response, but {what}; use it with "
            "method=sft, or a data set of preference pairs (dataset=ultrafeedback_binarized)"
        )
    if config.checkpoint.best_metric != "loss":
        raise UserError(
            f"checkpoint.best_metric={config.checkpoint.best_metric} is measured on pairs, but {what}; use "
            "selection@checkpoint=by_loss"
        )


def refuse_unscored_source(config: TrainConfig, objective: Objective, source: Source) -> None:
    """Raise ``UserError`` when scores are needed and the first pair has none; the rest is looked at when prepared."""
    first = next(iter(source.pairs()), None)
    if first is None or score_gap(first) is not None:
        return
    if objective.needs.scores:
        raise UserError(
            f"{readers_of_scores(config, objective)} needs the scores of both responses, but pair '{first.id}' of "
            f"dataset={config.dataset.name} ({type(source).__name__}) has none; use a scored data set "
            "(dataset=ultrafeedback_binarized, or chosen_score and rejected_score in a file of yours), or a method "
            "that needs no scores"
        )
    ScoreFilter(config.dataset.min_score_gap).keeps(first)


def refuse_unscored_pairs(config: TrainConfig, objective: Objective, data: PreparedData) -> None:
    """Raise ``UserError`` when scores are needed and some prepared pair has none, in either split."""
    if objective.needs.scores:
        unscored = [*data.train.unscored(), *data.validation.unscored()]
        refuse_unscored(unscored, len(data.train) + len(data.validation), readers_of_scores(config, objective))


def readers_of_scores(config: TrainConfig, objective: Objective) -> str:
    """The method and its parts that read scores."""
    parts = [f"{slot}={type(part).__name__}" for slot, part in objective.parts.items() if part.needs.scores]
    return f"method={config.method['name']} ({', '.join(parts)})"
