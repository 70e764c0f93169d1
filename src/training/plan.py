"""What a run is going to do, from its configuration and its data alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config import run_directory
from src.data.filter import ScoreFilter, refuse_unscored, score_gap
from src.data.pairs import PreferencePair
from src.data.sources import Source, has_pairs
from src.data.splits import split_of
from src.data.templates import TextTemplate
from src.errors import UserError
from src.objective.objective import Objective
from src.objective.types import Needs
from src.planner.fit import Fit, fit_of
from src.planner.memory import Memory, memory_of
from src.planner.shape import shape_of
from src.planner.sizes import ModelShape, Rows, Setting
from src.schema import DatasetConfig, TrainConfig
from src.training.assemble import (
    build_objective,
    build_source,
    build_template,
    build_tokenizer,
    prepare_data,
    sampler_of,
)
from src.training.checks import chosen_recipe, recipe_exists
from src.training.deferred import plan_note
from src.training.needs import readers_of_scores
from src.training.plan_sizes import Machines, rows_of, setting_of, shares_prompts, work_of
from src.training.run import hash_of_base, sft_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 4.0
"""Rule of thumb for English, used only where no tokenizer is at hand."""

SHOWN_IDS = 3
"""Ids named of the records left out for one reason; the manifest has more."""


@dataclass(frozen=True)
class Example:
    """A prompt and a response to it as the model sees them; the response is the supervised span."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Plan:
    """What a run is going to do. ``exact``: counts are of prepared tokens, not estimated from characters.

    ``fits``: how it goes on each kind of GPU asked about.
    """

    config: TrainConfig
    directory: Path
    recipe: str | None
    needs: Needs
    exact: bool
    pairs: dict[str, int]
    rows: Rows
    steps: int
    shape: ModelShape
    setting: Setting
    memory: Memory
    fits: list[Fit]
    examples: list[Example]
    notes: list[str]


def plan_of(config: TrainConfig, machines: Machines) -> Plan:
    """The plan of a checked configuration; prepares the data when there is a tokenizer (training then reuses it)."""
    objective = build_objective(config)
    base = sft_base(config)
    recipe = chosen_recipe(config)
    notes = [] if base is None else [f"starts from the SFT base {run_directory(base)}"]
    if objective.needs.reference and config.model.init == "scratch":
        notes.append("the reference is the model with its random initial weights, since model.init=scratch")
    if note := plan_note(config, objective, machines.ranks):
        notes.append(note)
    tokenizer, notes = tokenizer_if_any(config, notes)
    counted = estimated_data(config, objective) if tokenizer is None else prepared_counts(config, objective, tokenizer)
    shape = shape_of(config, None if tokenizer is None else len(tokenizer))
    setting, work, rows = setting_of(config, machines), work_of(config, objective, shape), counted["rows"]
    if not shape.known:
        counted["notes"] = [
            *counted["notes"],
            f"what blocks of a {shape.kind} model keep was not measured: activations are counted as a Llama's",
        ]
    return Plan(
        config=config,
        directory=run_directory(config, hash_of_base(base)),
        recipe=recipe if recipe_exists(recipe) else None,
        needs=objective.needs,
        exact=tokenizer is not None,
        steps=sampler_of(config, counted["pairs"]["train"]).steps(config.training.epochs, config.training.max_steps),
        shape=shape,
        setting=setting,
        memory=memory_of(shape, rows, work, setting),
        fits=[fit_of(gpu, shape, rows, work, setting) for gpu in machines.gpus],
        **counted | {"notes": notes + counted["notes"]},
    )


def tokenizer_if_any(config: TrainConfig, notes: list[str]) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """The tokenizer, or ``None`` with a note where the one that the model names cannot be had from here."""
    try:
        return build_tokenizer(config, build_source(config)), notes
    except UserError as error:
        if not (config.model.tokenizer or config.model.path):  # it is made of the data, and these are at fault
            raise
        return None, [*notes, f"lengths are estimated from characters, since there is no tokenizer here: {error}"]


def prepared_counts(config: TrainConfig, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Counts and examples of the prepared data."""
    data = prepare_data(config, build_template(config, tokenizer), build_source(config), objective)
    shown = [data.train[index] for index in range(min(3, len(data.train)))]
    lengths = data.train.lengths()[: sampler_of(config, len(data.train)).pairs]
    return {
        "notes": preparation_notes(data.manifest),
        "pairs": {"train": len(data.train), "validation": len(data.validation)},
        "rows": rows_of(lengths, objective.needs.rejected, packed=shares_prompts(config)),
        "examples": [
            Example(text_of(tokenizer, pair.prompt_ids), text_of(tokenizer, pair.chosen_ids)) for pair in shown
        ],
    }


def preparation_notes(manifest: Mapping[str, Any]) -> list[str]:
    """What preparation left out and why, and what it cut."""
    notes = []
    for reason, entry in manifest["dropped"].items():
        more = ", ..." if entry["count"] > SHOWN_IDS else ""
        notes.append(f"left out: {entry['count']} x {reason} ({', '.join(entry['examples'][:SHOWN_IDS])}{more})")
    cut = [f"{count} {what}" for what, count in manifest["truncated"].items() if count]
    return [*notes, f"cut to the length limits: {', '.join(cut)}"] if cut else notes


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of token ids, special tokens included."""
    return str(tokenizer.decode(ids))


def estimated_data(config: TrainConfig, objective: Objective) -> dict[str, Any]:
    """The same from text alone, by the named template and a rule of thumb for tokens."""
    dataset = config.dataset
    template = TextTemplate.named(config.model.template or "chatml", response_span=dataset.response_span)
    counts, unscored = {"train": 0, "validation": 0}, []
    far_apart = ScoreFilter(dataset.min_score_gap)
    lengths, examples = list[tuple[int, int, int]](), list[Example]()
    for pair in pairs_or_demonstrations(build_source(config)):
        split = split_of(pair.prompt, dataset.validation_fraction, dataset.split_seed)
        if split == "train" and not far_apart.keeps(pair):
            continue
        counts[split] += 1
        if objective.needs.scores and score_gap(pair) is None:
            unscored.append(pair.id)
        if split == "train":
            prompt, chosen = template.render_text(pair.prompt, pair.chosen)
            if len(examples) < 3:
                examples.append(Example(prompt, chosen))
            lengths.append(pair_lengths(prompt, chosen, pair, dataset))
    far_apart.refuse_if_nothing_was_kept()
    refuse_unscored(unscored, sum(counts.values()), readers_of_scores(config, objective))
    out = far_apart.seen - far_apart.kept
    notes = [f"left out: {out} x {far_apart.reason}"] if out else []
    rows = rows_of(np.array(lengths), objective.needs.rejected, packed=shares_prompts(config))
    return {"notes": notes, "pairs": counts, "rows": rows, "examples": examples}


def pairs_or_demonstrations(source: Source) -> Iterator[PreferencePair]:
    """The pairs of a source; of one that has none its demonstrations, as pairs without a rejected response."""
    if has_pairs(source):
        return source.pairs()
    return (
        PreferencePair(found.id, found.opening or found.prompt, found.response, "") for found in source.demonstrations()
    )


def pair_lengths(prompt: str, chosen: str, pair: PreferencePair, dataset: DatasetConfig) -> tuple[int, int, int]:
    """Estimated tokens of the prompt, the chosen and the rejected response, cut to the limits."""
    before = min(int(len(prompt) / CHARACTERS_PER_TOKEN), dataset.max_prompt_length)
    room = dataset.max_length - before
    after = (min(int(len(text) / CHARACTERS_PER_TOKEN), room) for text in (chosen, pair.rejected))
    return (before, *after)  # type: ignore[return-value]
