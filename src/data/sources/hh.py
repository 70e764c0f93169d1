"""Anthropic's HH-RLHF: raw transcripts, a chosen and a rejected one per record.

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.hub import load_hub_dataset
from src.data.pairs import Message, PreferencePair, Prompt, text_field
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import FileOrHubSource
from src.data.sources.files import existing, files_of
from src.errors import UserError

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"
TURN = re.compile(r"\n\n(Human|Assistant):")
SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class HHRLHF(FileOrHubSource):
    """HH-RLHF from a local file or directory (``path``) or from the hub (``hub_id``).

    The prompt is everything up to and including the last ``\\n\\nAssistant:`` of a transcript.
    A directory is laid out as the hub repository: ``<subset>/<split>.jsonl[.gz]``. ``subset`` is one of ``SUBSETS``,
    ``None`` all of them. Records are read one by one, whatever the size of the data.
    """

    path: str | None = None
    hub_id: str = "Anthropic/hh-rlhf"
    revision: str | None = None
    subset: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.subset is not None and self.subset not in SUBSETS:
            why = "has no pairs" if self.subset == "red-team-attempts" else "is unknown"
            raise UserError(
                f"dataset.source.subset={self.subset} {why}; use one of {', '.join(SUBSETS)}, or null for all"
            )

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """One pair per record, named by its position; raises ``UserError`` for records of another shape."""
        for position, (where, record) in enumerate(self.rows(), 1):
            identity = f"hh-{position:06d}"
            try:
                chosen, rejected = text_field(record, "chosen"), text_field(record, "rejected")
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            yield pair_of(identity, chosen, rejected)

    def _files(self) -> list[Path] | None:
        if self.path is None:
            return None
        pattern = f"{self.subset or '*'}/{self.split or 'train'}.jsonl*"
        files = files_of(self.path, pattern)
        if existing(self.path).is_file():
            for key, value in (("subset", self.subset), ("split", self.split)):
                if value is not None:
                    raise UserError(
                        f"dataset.source.{key}={value} has no meaning for the single file {self.path}; "
                        f"leave {key} null, or set path to a directory laid out as <subset>/<split>.jsonl.gz"
                    )
        return files

    def _hub(self) -> Any:
        return load_hub_dataset(self.hub_id, split=self.split or "train", revision=self.revision, data_dir=self.subset)


def pair_of(identity: str, chosen: str, rejected: str) -> PreferencePair | Skipped:
    """The pair in two transcripts, or why there is none (what counts as one is in the module's source)."""
    (prompt_text, chosen_response), (other_text, rejected_response) = cut(chosen), cut(rejected)
    if not prompt_text or not other_text:
        return Skipped(identity, "no assistant turn")
    if prompt_text != other_text:
        return Skipped(identity, "chosen and rejected have different prompts")
    if TURN.search(chosen_response) or TURN.search(rejected_response):
        return Skipped(identity, "does not end with an assistant turn")
    prompt = parse_prompt(prompt_text)
    if prompt is None:
        return Skipped(identity, "prompt does not end with a human turn")
    return PreferencePair(identity, prompt, without_space(chosen_response), without_space(rejected_response))


def cut(transcript: str) -> tuple[str, str]:
    """(prompt up to and including the last ``\\n\\nAssistant:``, response); an empty prompt when there is none."""
    end = transcript.rfind(ASSISTANT)
    if end < 0:
        return "", transcript
    end += len(ASSISTANT)
    return transcript[:end], transcript[end:]


def parse_prompt(text: str) -> Prompt | None:
    """The turns before the final ``\\n\\nAssistant:``; ``None`` unless they begin with a turn and end with a human's.

    Nothing but the one space after each colon is taken away, so the plain template gives the transcript back.
    """
    before, *parts = TURN.split(text.removesuffix(ASSISTANT))
    messages = tuple(
        Message(ROLE_OF[name], without_space(content)) for name, content in zip(parts[::2], parts[1::2], strict=True)
    )
    if before or not messages or messages[-1].role != "user":
        return None
    return messages


def without_space(text: str) -> str:
    """``text`` without the one space that follows a turn's colon."""
    return text.removeprefix(" ")
