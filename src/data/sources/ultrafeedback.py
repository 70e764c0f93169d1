"""Binarized UltraFeedback: chosen and rejected as message lists, both scores kept.

Source: https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized (Tunstall et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.hub import load_hub_dataset
from src.data.pairs import PreferencePair, prompt_from_json, require, score_field, text_field
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import FileOrHubSource
from src.data.sources.files import existing, files_of
from src.errors import UserError

DEFAULT_SPLIT = "train_prefs"


@dataclass(frozen=True)
class UltraFeedbackBinarized(FileOrHubSource):
    """The data set from the hub, or from ``path``: a parquet or JSON-lines file, or a directory of them.

    ``split`` (default ``train_prefs``; the other one is ``test_prefs``) picks the hub's split or, in a
    directory, the files whose names begin with it.
    """

    path: str | None = None
    hub_id: str = "HuggingFaceH4/ultrafeedback_binarized"
    revision: str | None = None
    split: str | None = None

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """One pair per row, named by its position; raises ``UserError`` with file and row for a bad record."""
        for position, (where, record) in enumerate(self.rows(), 1):
            try:
                yield pair_of(f"uf-{position:06d}", record)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error

    def _files(self) -> list[Path] | None:
        if self.path is None:
            return None
        files = files_of(self.path, f"**/{self.split or DEFAULT_SPLIT}*")
        if existing(self.path).is_file() and self.split is not None:
            raise UserError(
                f"dataset.source.split={self.split} has no meaning for the single file {self.path}; "
                "leave it null, or set path to a directory with one file or more per split"
            )
        return files

    def _hub(self) -> Any:
        return load_hub_dataset(self.hub_id, split=self.split or DEFAULT_SPLIT, revision=self.revision)


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
