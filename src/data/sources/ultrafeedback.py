"""Binarized UltraFeedback: chosen and rejected as message lists, both scores kept.

Source: https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized (Tunstall et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from src.data.pairs import PreferencePair, prompt_from_json, require, score_field, text_field
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import SplitOfHub, at
from src.errors import UserError


@dataclass(frozen=True)
class UltraFeedbackBinarized(SplitOfHub):
    """The data set from the hub, or from ``path``: a parquet or JSON-lines file, or a directory of them.

    ``split`` (default ``train_prefs``; the other one is ``test_prefs``) picks the hub's split or, in a
    directory, the files whose names begin with it.
    """

    default_split: ClassVar[str] = "train_prefs"

    path: str | None = None
    hub_id: str = "HuggingFaceH4/ultrafeedback_binarized"
    revision: str | None = None
    split: str | None = None

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """One pair per row, named by its position; raises ``UserError`` with file and row for a bad record."""
        for position, (where, record) in enumerate(self.rows(), 1):
            with at(where):
                pair = pair_of(f"uf-{position:06d}", record)
            yield pair


def pair_of(identity: str, record: Mapping[str, Any]) -> PreferencePair | Skipped:
    """The pair in a row ``{chosen: [messages], rejected: [messages], score_chosen, score_rejected}``."""
    chosen, rejected = messages(record, "chosen"), messages(record, "rejected")
    if chosen[:-1] != rejected[:-1]:
        return Skipped(identity, "chosen and rejected have different prompts")
    return PreferencePair(
        identity,
        prompt_from_json(chosen[:-1]),
        text_field(chosen[-1], "content"),
        text_field(rejected[-1], "content"),
        chosen_score=score_field(record, "score_chosen"),
        rejected_score=score_field(record, "score_rejected"),
    )


def messages(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The message list in field ``name``; raises ``UserError`` unless it ends with an assistant turn."""
    value = require(record, name)
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise UserError(f"field '{name}' must be a list of messages with role and content, not {value!r:.60}")
    if len(value) < 2 or value[-1].get("role") != "assistant":
        raise UserError(f"field '{name}' must hold the prompt's messages and then the assistant's response")
    return value
