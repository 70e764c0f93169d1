"""What the judge of MT-Bench is asked: FastChat's prompts for single answers, with questions, answers and references.

The texts stand in ``judge_prompts.jsonl`` beside this file (source and licence in ``judge_prompts.NOTICE.md``).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.pairs import text_field
from src.data.sources.files import located, read_json_lines
from src.errors import UserError

OWN = Path(__file__).parent / "judge_prompts.jsonl"
NAMES = ("single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn")
"""First turn and both turns, without and with reference answers."""

PLACES = (
    ("question", "answer"),
    ("question_1", "answer_1", "question_2", "answer_2"),
    ("question", "answer", "ref_answer_1"),
    ("question_1", "answer_1", "ref_answer_1", "question_2", "answer_2", "ref_answer_2"),
)
"""What each of ``NAMES`` shows."""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A system prompt and a template with places in braces."""

    name: str
    system: str
    template: str

    def messages(self, values: Mapping[str, str]) -> tuple[dict[str, str], ...]:
        """What is sent. Braces in ``values`` stay as they are; an empty system prompt is not sent."""
        user = {"role": "user", "content": self.template.format(**values)}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


@dataclass(frozen=True)
class JudgePrompts:
    """The four prompts by name."""

    by_name: Mapping[str, JudgePrompt]

    def messages(
        self, turn: int, questions: Sequence[str], answers: Sequence[str], references: Sequence[str] | None
    ) -> tuple[dict[str, str], ...]:
        """The messages about the answer to ``turn`` (1 or 2). The second shows both turns; ``references``: the
        reference answers, or ``None`` for a question that is judged without."""
        name = NAMES[(turn == 2) + 2 * (references is not None)]
        values = {"question": questions[0], "answer": answers[0]}
        for number, (question, answer) in enumerate(zip(questions, answers, strict=False), 1):
            values |= {f"question_{number}": question, f"answer_{number}": answer}
        values |= {f"ref_answer_{number}": text for number, text in enumerate(references or (), 1)}
        return self.by_name[name].messages(values)


def read_prompts(path: Path) -> JudgePrompts:
    """The four prompts of a ``judge_prompts.jsonl``, which may hold others too.

    Raises ``UserError`` for a prompt that is absent, or does not show what it must.
    """
    found = {}
    for line, record in read_json_lines(path):
        with located(path, line):
            name = text_field(record, "name")
            if name not in NAMES:
                continue
            system, template = record.get("system_prompt") or "", text_field(record, "prompt_template")
            require_places(name, template, PLACES[NAMES.index(name)])
            found[name] = JudgePrompt(name, str(system), template)
    if absent := [name for name in NAMES if name not in found]:
        raise UserError(
            f"{path} has no prompt {', '.join(absent)}; give FastChat's judge_prompts.jsonl, or leave judge_prompts out"
        )
    return JudgePrompts(found)


def require_places(name: str, template: str, wanted: Sequence[str]) -> None:
    """Raise ``UserError`` for a template that cannot be filled, or would not show all of ``wanted``."""
    try:
        places = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise UserError(
            f"the template of '{name}' cannot be filled: {error}; write {{{{ and }}}} for braces"
        ) from error
    if places != set(wanted):
        raise UserError(
            f"the template of '{name}' has the places {', '.join(sorted(places))}; it must have "
            f"{', '.join(sorted(wanted))}"
        )
