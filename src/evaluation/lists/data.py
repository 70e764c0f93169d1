"""Which responses are ranked: those of a data set to prompts that the run was not trained on, or of the toy world."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from src.build import build
from src.data.cache import json_hash
from src.data.generalization import SeenPairs
from src.data.pairs import ScoredResponse, ScoredResponses, prompt_hash
from src.data.sources.base import Source, has_pairs
from src.data.sources.pairing import ScoredSource
from src.data.splits import TRAIN, VALIDATION, split_of, split_of_record
from src.errors import UserError

if TYPE_CHECKING:
    from src.schema import DatasetConfig

TOY_PROMPTS = 200
TOY_RESPONSES = 8


@dataclass(frozen=True)
class Lists:
    """Prompts with all their responses. ``counts``: prompts that were left out, or kept all the same, by rule."""

    name: str
    items: tuple[ScoredResponses, ...]
    counts: Mapping[str, int]

    @cached_property
    def content(self) -> str:
        """Hex hash of prompts, responses and scores, in their order."""
        rows = [
            [item.id, prompt_hash(item.prompt), [[one.text, one.score] for one in item.responses]]
            for item in self.items
        ]
        return json_hash({"lists": rows})


@dataclass(frozen=True)
class TrainedOn:
    """What a run (or the supervised run that it began from) was trained on. ``pairs``: preference pairs, or else
    demonstrations."""

    source: Source
    dataset: DatasetConfig
    pairs: bool

    def prompts(self) -> set[str]:
        """Hashes of the prompts on the training side of its split."""
        records: Iterator[Any] = self.source.pairs() if self.pairs else self.source.demonstrations()
        fraction, seed = self.dataset.validation_fraction, self.dataset.split_seed
        return {prompt_hash(one.prompt) for one in records if split_of_record(one, fraction, seed) == TRAIN}


def lists_of(
    dataset: DatasetConfig | None, trained: Sequence[TrainedOn], split: str, max_items: int | None = None
) -> Lists:
    """All responses to each prompt of ``dataset``, of the run's own (the first of ``trained``) where that is ``None``.

    ``split`` held_out: without the prompts that any of ``trained`` was trained on; of the run's own data set no others
    than those of its validation split, and those that ``dataset.generalization`` kept from it. ``all``: every prompt.
    A prompt that comes twice counts once. The first ``max_items``. Raises ``UserError`` when nothing is left.
    """
    if dataset is None and not trained:
        raise UserError(
            "there are no responses to rank: checkpoint is a model and no run, so it has no data set of its own; give "
            "dataset=NAME (such as dataset=scored_responses dataset.source.path=FILE), or benchmark=toy"
        )
    own = bool(trained) and (dataset is None or same(dataset, trained[0].dataset))
    dataset = trained[0].dataset if dataset is None else dataset
    source: Source = build(dataset.source, "dataset.source")
    if not isinstance(source, ScoredSource):
        raise UserError(
            f"dataset={dataset.name} has no lists of scored responses, only {spoken(source)}; give a data set with "
            "several scored responses a prompt: dataset=toy, scored_responses or ultrafeedback_full, or benchmark=toy"
        )
    known: set[str] = set().union(*(one.prompts() for one in trained))
    counts = {"trained_on": 0, "training_split": 0, "repeated_prompts": 0}
    seen = set[str]()

    def kept() -> Iterator[ScoredResponses]:
        for item in source.scored_responses():
            identity = prompt_hash(item.prompt)
            if identity in seen:
                counts["repeated_prompts"] += 1
                continue
            seen.add(identity)
            if identity in known:
                counts["trained_on"] += 1
            elif own and split == "held_out" and not is_held_out(item, trained[0]):
                counts["training_split"] += 1
                continue
            if split == "all" or identity not in known:
                yield item

    items = tuple(islice(kept(), max_items))
    if not items:
        raise UserError(
            f"dataset={dataset.name} has no prompt in split={split} ({counts['trained_on']} were trained on); give "
            "another dataset, or split=all to rank what was trained on"
        )
    return Lists(dataset.name, items, counts)


def is_held_out(item: ScoredResponses, trained: TrainedOn) -> bool:
    """Whether a prompt of the run's own data set was kept from it on purpose, and not left out by its pairing."""
    if isinstance(trained.source, SeenPairs) and trained.source.settings.is_unseen(item.prompt):
        return True
    return split_of(item.prompt, trained.dataset.validation_fraction, trained.dataset.split_seed) == VALIDATION


def same(one: Any, other: Any) -> bool:
    """Whether two data sets are the same records in the same split, wherever each is written down."""
    plain = [OmegaConf.to_container(OmegaConf.create(node), resolve=True) for node in (one, other)]
    keys = ("source", "validation_fraction", "split_seed")
    first, second = ({key: node[key] for key in keys} for node in plain if isinstance(node, dict))
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def spoken(source: Source) -> str:
    return "preference pairs" if has_pairs(source) else "demonstrations"


def toy_lists(max_items: int | None = None) -> Lists:
    """Answers of the toy world's writers to its benchmark prompts, which no training data has, with their true scores
    (no annotator's noise, no liking of length)."""
    from src.data.toy.benchmarks import instructions
    from src.data.toy.scorer import score_task
    from src.data.toy.tasks import parse_task
    from src.data.toy.writers import WRITERS, write

    items = []
    for number, prompt in enumerate(instructions(TOY_PROMPTS if max_items is None else min(max_items, TOY_PROMPTS))):
        rng, task = random.Random(f"toy lists {number}"), parse_task(prompt)
        found: dict[str, ScoredResponse] = {}
        for _ in range(10 * TOY_RESPONSES):
            for name, writer in WRITERS.items():
                text = write(writer, task, rng)
                if len(found) < TOY_RESPONSES:
                    found.setdefault(text, ScoredResponse(text, score_task(task, text).overall, name))
            if len(found) == TOY_RESPONSES:
                break
        items.append(ScoredResponses(f"toy-list-{number:04d}", prompt, tuple(found.values())))
    return Lists("toy_benchmark", tuple(items), {})
