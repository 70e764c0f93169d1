"""UltraChat-200k: conversations of several turns, for supervised fine-tuning alone.

Source: Ding et al. 2023 and Tunstall et al. 2023, https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k;
a row is {prompt, prompt_id, messages: [{role, content}]}, splits train_sft and test_sft.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from src.data.pairs import Demonstration, PreferencePair, Prompt, prompt_from_json, require, text_field
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import SplitOfHub, at
from src.errors import UserError

TURNS = ("all", "last")


@dataclass(frozen=True)
class UltraChat(SplitOfHub):
    """The data set from the hub, or from ``path``: a parquet or JSON-lines file, or a directory of ``<split>*`` files.

    ``turns``: ``all`` makes a demonstration of every assistant turn, with all turns before it as the prompt, so each
    is supervised once and in its context, as in training on the whole conversation (the SFT of Zephyr and SimPO, which
    besides supervises the user's turns); ``last`` makes one of the last assistant turn alone.
    It has no preference pairs: a run holds conversations back to validate on (``Demonstration.opening``).
    """

    default_split: ClassVar[str] = "train_sft"
    has_pairs: ClassVar[bool] = False

    path: str | None = None
    hub_id: str = "HuggingFaceH4/ultrachat_200k"
    revision: str | None = None
    split: str | None = None
    turns: str = "all"

    def __post_init__(self) -> None:
        if self.turns not in TURNS:
            raise UserError(f"dataset.source.turns={self.turns} is unknown; use one of {', '.join(TURNS)}")

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """Conversations without an assistant's turn; there is no pair."""
        for identity, found in self._conversations():
            if not found:
                yield Skipped(identity, "no assistant turn")

    def demonstrations(self) -> Iterator[Demonstration]:
        """Assistant turns, named ``<conversation>/<turn>`` from 1; ``UserError`` with file and row for a bad record."""
        for identity, found in self._conversations():
            last = len(found)
            for turn, (prompt, response) in enumerate(found, 1):
                if self.turns == "all" or turn == last:
                    yield Demonstration(f"{identity}/{turn}", prompt, response, opening=found[0][0])

    def options(self) -> dict[str, Any]:
        """Which turns."""
        return {"turns": self.turns}

    def _conversations(self) -> Iterator[tuple[str, list[tuple[Prompt, str]]]]:
        for position, (where, record) in enumerate(self.rows(), 1):
            with at(where):
                found = assistant_turns(record)
            yield f"uc-{position:06d}", found


def assistant_turns(record: Mapping[str, Any]) -> list[tuple[Prompt, str]]:
    """(turns before it, text) of every assistant turn; raises ``UserError`` unless roles and texts are in order."""
    messages = require(record, "messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise UserError(f"field 'messages' must be a list of messages with role and content, not {messages!r:.60}")
    found = []
    for place, message in enumerate(messages):
        with at(f"message {place}"):
            if text_field(message, "role") == "assistant":
                found.append((prompt_from_json(messages[:place]), text_field(message, "content")))
    return found
