"""The files of Arena-Hard's owners: questions and answers in the layouts of 2024 and 2025, judgments, battles.

Each is JSON lines or a JSON list, plain or gzipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.pairs import optional_text, require, text_field
from src.data.sources.files import located
from src.errors import UserError
from src.evaluation.stored import stored_rows

CATEGORY = "arena-hard-v0.1"
OWNERS = (
    "https://raw.githubusercontent.com/lmarena/arena-hard-auto/196f6b826783b3da7310e361a805fa36f0be83f3/"
    "data/arena-hard-v0.1/"
)
QUESTIONS = (OWNERS + "question.jsonl", "2650242d2883f22b2abd498f273b6a7e02253cce533f5c91a858e1d44aa3002f")
BASELINE_ANSWERS = (
    OWNERS + "model_answer/gpt-4-0314.jsonl",
    "0f6abc84de4600fde987d9db70f838f4ecdbd27a2f1f4058c12aa322a6f791b2",
)
"""Address and SHA-256 of the content (Apache-2.0)."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt; ``cluster``: its topic, by which Arena-Hard was sampled."""

    id: str
    prompt: str
    cluster: str = ""


def question_id(record: Mapping[str, Any]) -> str:
    """``uid`` (2025) or ``question_id`` (2024): the same ids."""
    return text_field(record, "uid") if "uid" in record else text_field(record, "question_id")


def read_questions(path: Path) -> tuple[Question, ...]:
    """``question.jsonl``, in its order. Raises ``UserError`` for an id that is there twice, or another benchmark's."""
    found: dict[str, Question] = {}
    for _, line, record in stored_rows(str(path), "questions"):
        with located(path, line):
            refuse_other_category(record)
            prompt = turn_text(record, "turns", "content") if "turns" in record else text_field(record, "prompt")
            question = Question(question_id(record), prompt, optional_text(record, "cluster") or "")
            if question.id in found:
                raise UserError(f"question {question.id} is there twice; keep one of the two lines")
            found[question.id] = question
    return tuple(found.values())


def read_answers(path: Path) -> tuple[str, dict[str, str]]:
    """A model's name and its answers by question, from a file of ``model_answer``.

    Raises ``UserError`` with file and line for a question answered twice, and for answers of several models.
    """
    names: dict[str, None] = {}
    found: dict[str, str] = {}
    for _, line, record in stored_rows(str(path), "outputs"):
        with located(path, line):
            names.setdefault(text_field(record, "model_id" if "model_id" in record else "model"))
            question = question_id(record)
            if question in found:
                raise UserError(f"question {question} is answered twice; keep one of the two lines")
            found[question] = answer_text(record)
    if len(names) > 1:
        raise UserError(f"{path} holds answers of several models ({', '.join(names)}); give a file for each")
    return next(iter(names)), found


def answer_text(record: Mapping[str, Any]) -> str:
    """The answer of a line: ``messages[-1].content.answer`` (2025) or ``choices[0].turns[0].content`` (2024)."""
    if "choices" in record:
        choices = require(record, "choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise UserError(f"field 'choices' must be a list of objects with 'turns', not {choices!r:.60}")
        return turn_text(choices[0], "turns", "content")
    messages = require(record, "messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], Mapping):
        raise UserError(f"field 'messages' must be a list of messages, not {messages!r:.60}")
    if messages[-1].get("role", "assistant") != "assistant":
        raise UserError("the last of 'messages' is not the assistant's, so there is no answer; remove the line")
    content = require(messages[-1], "content")
    return text_field(content, "answer") if isinstance(content, Mapping) else text_field(messages[-1], "content")


def turn_text(record: Mapping[str, Any], name: str, part: str) -> str:
    """The text of the only turn in a list of turns."""
    turns = require(record, name)
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], Mapping):
        raise UserError(f"field '{name}' must be a list of one turn with '{part}', not {turns!r:.60}")
    return text_field(turns[0], part)


def refuse_other_category(record: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for what is of Arena-Hard v2.0 (its categories have baselines of their own)."""
    category = optional_text(record, "category")
    if category not in (None, CATEGORY):
        raise UserError(f"category '{category}' is not of {CATEGORY}, which is what is scored here; give its files")
