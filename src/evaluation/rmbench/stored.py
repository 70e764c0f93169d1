"""Scoring without a model: files of scored items as they are, or items under a reward that reads the texts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from src.data.pairs import Prompt
from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.finish import ModelScores
from src.evaluation.rmbench.items import (
    Layout,
    StyleItem,
    first_of_each,
    hub_files,
    kept_items,
    layout_of,
    read_items,
    toy_items,
)
from src.evaluation.rmbench.scores import ScoredItem, scores_of
from src.evaluation.stored import files_given

if TYPE_CHECKING:
    from src.benchmark_schema import RMBenchConfig

TextReward = Callable[[Prompt, str], float]


def oracle(prompt: Prompt, response: str) -> float:
    """The toy world's ground truth, 1 to 5."""
    from src.data.toy.scorer import score_response

    return score_response(prompt, response).overall


TEXT_REWARDS: Mapping[str, TextReward] = {
    "length": lambda _, response: float(len(response)),
    "shortness": lambda _, response: -float(len(response)),
    "words": lambda _, response: float(len(response.split())),
    "constant": lambda _, response: 0.0,
    "oracle": oracle,
}
"""Characters (Unicode), their negative, words between white space, the same for all, and the toy world's truth: what a
reward must be better than, and what it cannot be better than."""


def items_given(config: RMBenchConfig) -> list[StyleItem]:
    """The items to score: the files of ``data``, the toy world's, or the owners' from the hub."""
    layout = layout_of(config.benchmark)
    if config.data is not None:
        return first_of_each(read_items(files_given(config.data, "data"), layout, "data"), config.max_items)
    if config.benchmark == "toy":
        return first_of_each(toy_items(), config.max_items)
    return first_of_each(read_items(hub_files(), layout, "data"), config.max_items)


def stored_scores(config: RMBenchConfig) -> list[ModelScores]:
    """Scores of every model in ``config.samples``, in the files' order, or of a reward of texts."""
    layout = layout_of(config.benchmark)
    if config.samples is None:
        items = items_given(config)
    else:
        files = files_given(config.samples, "samples")
        items = first_of_each(read_items(files, layout, "samples"), config.max_items)
    if config.reward is not None:
        return [scored_by(config.reward, items, layout)]
    if not any(item.scores is not None for item in items):
        raise UserError(
            f"samples={config.samples} holds items without scores (score_chosen, score_rejected); give a reward that "
            f"reads their texts alone (reward={'|'.join(TEXT_REWARDS)}), or checkpoint=RUN data=[FILES] to score them "
            "by a model"
        )
    models: dict[str, list[StyleItem]] = {}
    for item in items:
        models.setdefault(item.model, []).append(item)
    return [ModelScores(name, None, as_they_are(own, layout)) for name, own in models.items()]


def scored_by(name: str, items: Sequence[StyleItem], layout: Layout) -> ModelScores:
    """The items under a reward of texts; raises ``UserError`` where none has answers."""
    reward = TEXT_REWARDS[name]
    kept = kept_items(items, scored=False)
    refuse_none(len(kept.items), "3 + 3 answers (chosen, rejected)")
    found = []
    for item in kept.items:
        chosen, rejected = (tuple(reward(item.prompt, text) for text in side) for side in (item.chosen, item.rejected))
        found.append(ScoredItem(item.part, chosen, rejected, item.id))
    return ModelScores(name, None, scores_of(found, layout, kept))


def as_they_are(items: Sequence[StyleItem], layout: Layout) -> Scores:
    """Stored scores."""
    kept = kept_items(items, scored=True)
    refuse_none(len(kept.items), "3 + 3 scores (score_chosen, score_rejected)")
    found = [ScoredItem(item.part, *item.scores, item.id) for item in kept.items if item.scores is not None]
    return scores_of(found, layout, kept)


def refuse_none(count: int, what: str) -> None:
    """Raise ``UserError`` where no item can be used."""
    if not count:
        raise UserError(f"no item has {what}, so there is nothing to score; give RM-Bench's files or results on them")
