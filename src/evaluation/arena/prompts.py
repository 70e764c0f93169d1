"""What Arena-Hard's judge is asked, in its owners' words (``judge_prompts.json``: source and licence stand there)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).parent / "judge_prompts.json"

SETTINGS = {"temperature": 0, "max_tokens": 4096}
"""Of every request (judge_config.yaml)."""


@dataclass(frozen=True)
class JudgePrompts:
    """``user`` has places for QUESTION, ANSWER_A and ANSWER_B; ``again``: what is said when there was no label."""

    system: str
    user: str
    again: str

    def messages(self, question: str, a: str, b: str) -> tuple[Mapping[str, str], ...]:
        """The request for one game."""
        text = self.user.format(QUESTION=question, ANSWER_A=a, ANSWER_B=b)
        return ({"role": "system", "content": self.system}, {"role": "user", "content": text})

    def following(self, said: Sequence[str]) -> tuple[Mapping[str, str], ...]:
        """What comes after the request: each answer so far, and the wish for a label."""
        return tuple(
            message
            for text in said
            for message in ({"role": "assistant", "content": text}, {"role": "user", "content": self.again})
        )


@lru_cache(maxsize=1)
def judge_prompts() -> JudgePrompts:
    """The owners'."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return JudgePrompts(found["system"], found["user"], found["again"])
