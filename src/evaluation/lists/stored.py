"""Rewarded responses from files: one JSON object a line, ``{prompt_id, responses: [{score, reward}]}``.

Lines may have a ``model`` (whose rewards they are; without one the file's name), responses also ``sum``, ``tokens`` and
``reference_sum`` (nats), from which other rewards are made, and ``text`` (reward=length: its characters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.pairs import optional_text, require
from src.data.sources.files import located
from src.errors import UserError
from src.evaluation.finish import ModelScores
from src.evaluation.lists.scoring import ListRules, RewardedResponses, score
from src.evaluation.stored import files_given, stem_of, stored_rows

if TYPE_CHECKING:
    from src.benchmark_schema import ListwiseConfig

FIELDS = {
    "method": ("reward",),
    "average": ("sum", "tokens"),
    "sum": ("sum",),
    "reference": ("sum", "reference_sum"),
    "length": ("text",),
}
"""What a response must have for each reward."""

NAN = float("nan")


def stored_scores(config: ListwiseConfig, rules: ListRules) -> list[ModelScores]:
    """The scores of every model in ``config.samples``, in the order of the files."""
    reward = config.reward or "method"
    models = read_lists(files_given(config.samples, "samples"), reward)
    known = {item.prompt_id for items in models.values() for item in items}
    found = []
    for name, items in models.items():
        try:
            scores = score(items, rules)
        except UserError as error:
            raise UserError(f"samples={config.samples}, model '{name}': {error}") from error
        missing = len(known) - len({item.prompt_id for item in items})
        notes = [f"{missing} prompts that other models of these files have are missing: left out"] if missing else []
        counts = {**scores.counts, "missing": missing}
        found.append(ModelScores(name, None, replace(scores, counts=counts, notes=(*scores.notes, *notes))))
    return found


def read_lists(files: Sequence[str], reward: str) -> dict[str, list[RewardedResponses]]:
    """Model -> its prompts, models in the order of the files. ``reward``: one of ``FIELDS``.

    Raises ``UserError`` with file and line for what is no such line, and for a file in which no response has what the
    reward is made of.
    """
    models: dict[str, list[RewardedResponses]] = {}
    for name in files:
        default, met = stem_of(name), False
        for file, line, record in stored_rows(name, "samples"):
            with located(Path(file), line):
                responses = responses_of(record)
                rewards = tuple(reward_of(entry, reward) for entry in responses)
                met = met or any(has_fields(entry, reward) for entry in responses)
                scores = tuple(number(entry, "score") for entry in responses)
                item = RewardedResponses(str(require(record, "prompt_id")), scores, rewards)
                model = "length" if reward == "length" else str(record.get("model") or default)
                models.setdefault(model, []).append(item)
        if not met:
            needed = " and ".join(FIELDS[reward])
            raise UserError(
                f"samples={name}: no response has {needed}, so there is no reward (reward={reward}) to rank by; give "
                f"a file with {needed} in its responses, or another reward (reward=length: characters of the text)"
            )
    return models


def responses_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The responses of a line; raises ``UserError`` for another shape."""
    responses = require(record, "responses")
    if not isinstance(responses, list) or not all(isinstance(entry, Mapping) for entry in responses):
        raise UserError(f"field 'responses' must be a list of objects with score and reward, not {responses!r:.60}")
    return list(responses)


def has_fields(entry: Mapping[str, Any], reward: str) -> bool:
    return all(entry.get(name) is not None for name in FIELDS[reward])


def reward_of(entry: Mapping[str, Any], reward: str) -> float:
    """The reward of a response; NaN where it lacks what that is made of."""
    if reward == "length":
        text = optional_text(entry, "text")
        return NAN if text is None else float(len(text))
    values = [number(entry, name) for name in FIELDS[reward]]
    if reward == "average":
        return values[0] / max(values[1], 1.0)
    return values[0] - values[1] if reward == "reference" else values[0]


def number(entry: Mapping[str, Any], name: str) -> float:
    """A number of a response; NaN for one that is absent or null. Raises ``UserError`` for anything else."""
    value = entry.get(name)
    if value is None:
        return NAN
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"field '{name}' of a response must be a number or null, not {value!r:.40}")
    return float(value)
