"""From a configuration to the things a run is made of; training, preflight and ranking share these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from src.build import build
from src.data.cache import json_hash
from src.data.collate import PairBatch, collate
from src.data.generalization import Generalization
from src.data.mismatch import MismatchedPairs
from src.data.noise import Noise, NoNoise
from src.data.pairset import PairSet, TokenizedPair
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.reference import ReferenceStore
from src.data.sampler import WindowSampler
from src.data.sources import Source, has_pairs
from src.data.templates import ChatTemplate
from src.data.tokenizer import load_tokenizer, train_tokenizer, training_texts
from src.errors import UserError
from src.objective.objective import PAIR_METRICS, Objective
from src.schema import TrainConfig
from src.training.needs import refuse_unmet_needs, refuse_unscored_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIRED_PARTS = ("reward", "target", "link", "weight", "reduce", "regularizer")
PARTS = (*REQUIRED_PARTS, "temperature", "perturbation")


def build_objective(config: TrainConfig) -> Objective:
    """The method's parts, checked and built; raises ``UserError`` for a part that refuses its constants, or that
    needs what this configuration cannot give."""
    refuse_unknown_parts(config)
    parts = {name: build(config.method[name], f"method.{name}") for name in PARTS if name in config.method}
    objective = Objective(**parts)
    refuse_unmet_needs(config, objective)
    return objective


def refuse_unknown_parts(config: TrainConfig) -> None:
    """Raise ``UserError`` when the method lacks a part, or has one that nothing reads."""
    given = [str(name) for name, value in config.method.items() if isinstance(value, Mapping)]
    if missing := [name for name in REQUIRED_PARTS if name not in given]:
        raise UserError(f"method={config.method.get('name')} lacks the parts {', '.join(missing)}; see conf/method")
    if unread := [name for name in given if name not in PARTS]:
        raise UserError(
            f"method.{unread[0]} is no part of a method, so it would change nothing; remove it, parts are: "
            + ", ".join(PARTS)
        )


def check_best_metric(config: TrainConfig) -> None:
    """Raise ``UserError`` when the metric that decides the best checkpoint is none that validation gives."""
    known = ("loss", *PAIR_METRICS)
    if config.checkpoint.best_metric not in known:
        raise UserError(
            f"checkpoint.best_metric={config.checkpoint.best_metric} is no validation metric; "
            f"choose one of: {', '.join(known)}"
        )


def build_source(config: TrainConfig) -> Source:
    """The source of preference pairs that ``dataset.source`` names, less what ``dataset.generalization`` holds back."""
    source: Source = build(config.dataset.source, "dataset.source")
    if config.dataset.generalization is None:
        return source
    held_back: Generalization = build(config.dataset.generalization, "dataset.generalization")
    return held_back.of(source)


def build_noise(config: TrainConfig) -> Noise:
    """What ``noise`` names."""
    noise: Noise = build(config.noise, "noise")
    return noise


def build_tokenizer(config: TrainConfig, source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or one trained on the training split where the model has none of its own."""
    named = config.model.tokenizer or config.model.path
    if named is not None:
        revision = config.model.revision if named == config.model.path else None
        return load_tokenizer(named, revision)
    vocabulary = int(config.model.architecture["vocab_size"])
    split = (config.dataset.validation_fraction, config.dataset.split_seed)
    texts = training_texts(source.pairs() if has_pairs(source) else source.demonstrations(), *split)
    origin = json_hash([type(source).__name__, source.fingerprint(), *split])
    tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, vocabulary, Path(config.cache_root), origin)
    return tokenizer


def build_template(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The chat template that turns conversations into token ids."""
    return ChatTemplate(
        tokenizer,
        template=config.model.template,
        response_span=config.dataset.response_span,
        stop_token=list(config.model.stop_tokens),
    )


def prepare_options(config: TrainConfig) -> PrepareOptions:
    """Lengths, truncation and split of the data set."""
    dataset = config.dataset
    return PrepareOptions(
        max_length=dataset.max_length,
        max_prompt_length=dataset.max_prompt_length,
        truncation=dataset.truncation,
        validation_fraction=dataset.validation_fraction,
        split_seed=dataset.split_seed,
        min_score_gap=dataset.min_score_gap,
    )


def prepare_data(config: TrainConfig, template: ChatTemplate, source: Source, objective: Objective) -> PreparedData:
    """Prepared pairs, or demonstrations for an objective that uses no rejected response (with validation pairs)."""
    kind = "demonstrations" if has_pairs(source) else "demonstrations_alone"
    if objective.needs.rejected:
        kind = "pairs"
    options, workers = prepare_options(config), config.prepare_workers
    data = prepare(source, build_noise(config), template, options, Path(config.cache_root), kind, workers)
    refuse_unscored_pairs(config, objective, data)
    if objective.needs.mismatched:
        for pairs in (data.train, data.validation):
            MismatchedPairs(pairs, config.dataset.max_length).refuse_one_prompt()
    return data


def prepare_test_pairs(config: TrainConfig, template: ChatTemplate, pairs: Source) -> PreparedData:
    """Pairs to test on, all of them in the validation split: prepared as those of the run, without noise or filter."""
    options, workers = prepare_options(config), config.prepare_workers
    return prepare(pairs, NoNoise(), template, options, Path(config.cache_root), "held_out", workers)


def sampler_of(config: TrainConfig, pairs: int, ranks: int = 1, lengths: Sequence[int] = ()) -> WindowSampler:
    """The order in which a run sees its ``pairs`` prepared pairs (or the first ``training.max_pairs``), and which of
    them share a forward of ``ranks`` ranks; ``lengths``: tokens of each pair, where a forward may have only so many."""
    training = config.training
    return WindowSampler(
        at_most(pairs, training.max_pairs),
        training.global_batch_size,
        training.micro_batch_size * ranks,
        config.seed,
        ranks,
        training.max_tokens_per_forward if lengths else None,
        lengths,
    )


@dataclass(frozen=True)
class Mismatched:
    """The mismatched pairs of a split, and the reference's log-probs of them where there is a reference."""

    pairs: Sequence[TokenizedPair]
    reference: ReferenceStore | None = None


@dataclass(frozen=True)
class PreparedLoader:
    """Batches of prepared pairs on a device, with their reference log-probs where there is a store.

    ``validation_pairs`` limits validation to the first so many pairs of ``held_out``; ``None`` takes all.
    ``train_mismatched`` and ``validation_mismatched`` are there only for an objective that needs them.
    """

    train: PairSet
    held_out: PairSet
    sampler: WindowSampler
    device: torch.device
    validation_batch: int
    validation_pairs: int | None = None
    train_reference: ReferenceStore | None = None
    validation_reference: ReferenceStore | None = None
    train_mismatched: Mismatched | None = None
    validation_mismatched: Mismatched | None = None

    def window(self, step: int) -> Sequence[PairBatch]:
        return [
            self.batch(self.train, indices, self.train_reference, self.train_mismatched)
            for indices in self.sampler.window(step)
        ]

    def validation(self) -> Sequence[PairBatch]:
        chunks = in_order(at_most(len(self.held_out), self.validation_pairs), self.validation_batch)
        return [
            self.batch(self.held_out, indices, self.validation_reference, self.validation_mismatched)
            for indices in chunks
        ]

    def batch(
        self,
        pairs: Sequence[TokenizedPair],
        indices: Sequence[int],
        reference: ReferenceStore | None,
        mismatched: Mismatched | None = None,
    ) -> PairBatch:
        rows = None if reference is None else reference.rows(indices)
        batch = collate([pairs[index] for index in indices], rows).to(self.device)
        if mismatched is None:
            return batch
        return replace(batch, mismatched=self.batch(mismatched.pairs, indices, mismatched.reference))

    def with_mismatched(self, max_length: int) -> PreparedLoader:
        """The same, whose batches have mismatched responses too, in rows of at most ``max_length`` tokens."""
        train, held_out = (Mismatched(MismatchedPairs(pairs, max_length)) for pairs in (self.train, self.held_out))
        return replace(self, train_mismatched=train, validation_mismatched=held_out)


def in_order(count: int, size: int) -> list[range]:
    """0..count-1 in chunks of ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def at_most(count: int, limit: int | None) -> int:
    """``count``, or ``limit`` where that is smaller."""
    return count if limit is None else min(count, limit)
