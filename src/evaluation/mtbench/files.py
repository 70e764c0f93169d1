"""The files of FastChat's ``llm_judge``: questions, reference answers, models' answers, judgments.

Each is JSON lines (or one JSON list), plain or gzipped. What MT-Bench itself is (questions, references) is no part of
this repository: it is read from a file, or fetched once from the revision named here and checked by its hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from src.data.pairs import optional_text, require, text_field
from src.data.sources.files import existing, located
from src.errors import UserError
from src.evaluation.fetch import fetched
from src.evaluation.mtbench.ratings import Judgment
from src.evaluation.stored import files_given, refuse_second_judge, stem_of, stored_rows

FASTCHAT = (
    "https://raw.githubusercontent.com/lm-sys/FastChat/0e6d3e4beaab66f4d3f93db72541a4abab8af28d/"
    "fastchat/llm_judge/data/mt_bench/"
)
SIMPO = (
    "https://raw.githubusercontent.com/princeton-nlp/SimPO/1b3e8f3528a23bce3da514a2dce8ea7490d4bc75/"
    "eval/mt-bench/gpt-4-1106-preview.jsonl"
)
QUESTIONS = {
    "fastchat": (FASTCHAT + "question.jsonl", "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7")
}
REFERENCES = {
    "fastchat": (
        FASTCHAT + "reference_answer/gpt-4.jsonl",
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    ),
    "simpo": (SIMPO, "fe030678a33dbbd3d729e7569375150b8830a53f5b11f820a75b630db317f56f"),
}
"""Address and SHA-256 of the content: FastChat's own, and those that the SimPO paper judged with."""

TURN = ":turn-"
"""Between question and turn in the ids of our own judgments."""

OFFICIAL = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_ID, PER_CATEGORY, OFFICIAL_TURNS = 81, 10, 2

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of several user turns."""

    id: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Which questions there are: id -> category, and how many turns each has. Enough to score judgments."""

    categories: Mapping[str, str]
    turns: int


@dataclass
class ModelJudgments:
    """The judgments of one model's answers, in the order of the files."""

    model: str
    judge: str | None
    judgments: list[Judgment] = field(default_factory=list)


def official_layout() -> Layout:
    """The 80 questions of MT-Bench: ids 81 to 160, ten a category."""
    ids = range(FIRST_ID, FIRST_ID + PER_CATEGORY * len(OFFICIAL))
    return Layout({str(i): OFFICIAL[(i - FIRST_ID) // PER_CATEGORY] for i in ids}, OFFICIAL_TURNS)


def layout_of(questions: Sequence[Question]) -> Layout:
    """The layout of questions that were read."""
    return Layout({question.id: question.category for question in questions}, len(questions[0].turns))


def read_questions(path: Path) -> tuple[Question, ...]:
    """``question.jsonl``. Raises ``UserError`` for a question that is there twice or has another number of turns."""

    def question(record: Mapping[str, Any]) -> Question:
        return Question(identity(record), text_field(record, "category"), texts(record, "turns"))

    found = tuple(by_question(path, question).values())
    short = next((one for one in found if len(one.turns) != len(found[0].turns)), None)
    if short is not None:
        raise UserError(
            f"{path}: question {short.id} has {len(short.turns)} turns and question {found[0].id} "
            f"{len(found[0].turns)}; all must have the same number"
        )
    return found


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """Question -> the reference answers of its turns, from a file of FastChat's ``reference_answer``."""
    return by_question(path, answer_turns)


def read_answers(path: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """A model's name and its answers by question, from a file of FastChat's ``model_answer``."""
    names: dict[str, None] = {}

    def answer(record: Mapping[str, Any]) -> tuple[str, ...]:
        names.setdefault(text_field(record, "model_id"))
        return answer_turns(record)

    found = by_question(path, answer)
    if len(names) > 1:
        raise UserError(f"{path} holds answers of several models ({', '.join(names)}); give a file for each")
    return next(iter(names)), found


def answer_turns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The turns of the first choice of an answer, the one that FastChat judges."""
    choices = require(record, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise UserError(f"field 'choices' must be a list of objects with 'turns', not {choices!r:.60}")
    return texts(choices[0], "turns")


def by_question(path: Path, read: Callable[[Mapping[str, Any]], Value]) -> dict[str, Value]:
    """Question id -> what ``read`` makes of its line; raises ``UserError`` with file and line for an id twice."""
    found: dict[str, Value] = {}
    for _, line, record in stored_rows(str(path), "file"):
        with located(path, line):
            if (name := identity(record)) in found:
                raise UserError(f"question {name} is there twice; keep one of the two lines")
            found[name] = read(record)
    return found


def identity(record: Mapping[str, Any]) -> str:
    """The question's id as text."""
    value = require(record, "question_id")
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"field 'question_id' must be a whole number or a text, not {value!r:.40}")
    return str(value)


def texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that is a list of texts, at least one."""
    values = require(record, name)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"field '{name}' must be a list of texts, not {values!r:.60}")
    return tuple(values)


def read_judgments(given: Any, layout: Layout) -> list[ModelJudgments]:
    """Judgments of single answers (``gpt-4_single.jsonl``), model by model in the order in which they first occur.

    ``given``: a file or a list of them; a judgments directory of ours is one too, whose model is named by it. Raises
    ``UserError`` with file and line for a line that is none, a question or turn that ``layout`` does not have, and for
    a second judge: scores of different judges cannot stand side by side.
    """
    found: dict[str, ModelJudgments] = {}
    judges: dict[str | None, None] = {}
    for name in files_given(given, "judgments"):
        for file, line, record in stored_rows(name, "judgments"):
            with located(Path(file), line):
                row = as_fastchat(record, stem_of(name))
                model, judge = text_field(row, "model"), judge_of(row)
                refuse_second_judge(judges, judge)
                judgment = judgment_of(row, layout)
            found.setdefault(model, ModelJudgments(model, judge)).judgments.append(judgment)
    return list(found.values())


def as_fastchat(record: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """A line of a judgments directory of ours under FastChat's names; any other line as it is."""
    question, mark, turn = str(record.get("id")).rpartition(TURN)
    if not (mark and turn.isdecimal() and isinstance(record.get("judge"), Mapping)):
        return record
    judge = record["judge"].get("model")
    return {"question_id": question, "turn": int(turn), "judgment": record.get("text"), "model": model, "judge": judge}


def judge_of(record: Mapping[str, Any]) -> str | None:
    """Who judged: FastChat writes ``[model, name of the prompt]``; a plain name is read too."""
    value = record.get("judge")
    value = value[0] if isinstance(value, list) and value else value
    if value is not None and not isinstance(value, str):
        raise UserError(f"field 'judge' must be a name or [name, prompt], not {record.get('judge')!r:.60}")
    return value


def judgment_of(record: Mapping[str, Any], layout: Layout) -> Judgment:
    """One line of a judgment file."""
    if "g1_winner" in record or "g1_judgment" in record:
        raise UserError("a comparison of two models; give judgments of single answers (FastChat's *_single.jsonl)")
    question, turn = identity(record), require(record, "turn")
    if question not in layout.categories:
        raise UserError(
            f"question {question} is none of the {len(layout.categories)} questions; give in questions= the file that "
            "was judged"
        )
    if turn not in range(1, layout.turns + 1) or isinstance(turn, bool):
        raise UserError(f"field 'turn' must be from 1 to {layout.turns}, not {turn!r:.40}")
    text, stored = optional_text(record, "judgment"), record.get("score")
    if stored is not None and (isinstance(stored, bool) or not isinstance(stored, (int, float))):
        raise UserError(f"field 'score' must be a number, not {stored!r:.40}")
    if text is None and "score" not in record:
        raise UserError("neither 'judgment' (the judge's text) nor 'score' is there, so there is nothing to count")
    return Judgment(question, turn, text, math.nan if stored is None and text is None else stored)


def named(value: str, sources: Mapping[str, tuple[str, str]], folder: Path, key: str) -> Path:
    """The file that a key names: one of ``sources``, fetched into ``folder``, or a path."""
    return fetched(sources[value], folder, key) if value in sources else existing(value, key)
