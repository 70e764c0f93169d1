"""MT-Bench as a judged benchmark: from its owners' files, or on the toy world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.data.sources.files import content_hash, existing
from src.data.toy.benchmarks import as_prompt, conversations
from src.data.toy.tasks import parse_task
from src.data.toy.writers import ideal_answer
from src.errors import UserError
from src.evaluation.benchmark import Item, Outputs, Scores
from src.evaluation.judges.base import Judged, JudgeRequest, Opinion
from src.evaluation.mtbench.files import (
    QUESTIONS,
    REFERENCES,
    TURN,
    Question,
    layout_of,
    named,
    read_answers,
    read_questions,
    read_references,
)
from src.evaluation.mtbench.prompts import OWN, JudgePrompts, read_prompts
from src.evaluation.mtbench.ratings import Judgment, score
from src.generation.client import Completion

if TYPE_CHECKING:
    from src.benchmark_schema import MTBenchConfig

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""Of the answers, by category (FastChat ``common.temperature_config``); others 0.7."""

OTHER_TEMPERATURE = 0.7
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are judged beside a reference (FastChat ``common.NEED_REF_CATS``)."""

JUDGE_SETTINGS = {"temperature": 0, "max_tokens": 2048}
ANSWER_TOKENS = 200
"""About the length of GPT-4's judgments (780 characters on average in stored ones)."""

TOY_ITEMS = 48
TOY_CATEGORIES = {"list": "writing", "sort": "reasoning", "arithmetic": "math"}
"""Categories of the toy world's conversations: drawn and greedy answers, judged without and with a reference."""


@dataclass(frozen=True)
class MTBench:
    """``Benchmark``: every answer of a conversation is rated from 1 to 10, alone, after all that was said before.

    ``references``: question -> reference answers, of at least the categories ``WITH_REFERENCE``. ``by_category``:
    whether answers are drawn at the category's temperature, or all at that of the decoding settings. ``files``: what it
    was read from; ``left_out``: ids of further questions that are not asked.
    """

    questions: tuple[Question, ...]
    references: Mapping[str, tuple[str, ...]]
    prompts: JudgePrompts
    by_category: bool = True
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    name: str = "mt_bench"

    def __post_init__(self) -> None:
        """Raises ``UserError`` for a conversation that is not of two turns, or lacks its reference."""
        for question in self.questions:
            if len(question.turns) != 2:
                raise UserError(
                    f"question {question.id} has {len(question.turns)} turns; the judge's prompts are for two, so give "
                    "questions of two turns"
                )
            if question.category not in WITH_REFERENCE:
                continue
            found = self.references.get(question.id, ())
            if len(found) != 2:
                what = f"a reference for {len(found)} of its 2 turns" if found else "no reference answer"
                raise UserError(
                    f"question {question.id} ({question.category}) has {what}, and answers of that category are judged "
                    "beside one; give reference_answers= a file that has all of these"
                )

    def items(self) -> Sequence[Item]:
        return [
            Item(question.id, question.turns, self.temperature_of(question), question.category)
            for question in self.questions
        ]

    def temperature_of(self, question: Question) -> float | None:
        """That of its category; ``None`` where that of the settings holds for all."""
        return TEMPERATURES.get(question.category, OTHER_TEMPERATURE) if self.by_category else None

    def reference_of(self, question: Question) -> tuple[str, ...] | None:
        """What the judge sees beside the answers; ``None``: nothing."""
        return self.references[question.id] if question.category in WITH_REFERENCE else None

    def describe(self) -> dict[str, Any]:
        used = {question.id: self.reference_of(question) for question in self.questions}
        return {
            "questions": json_hash([asdict(question) for question in self.questions]),
            "references": json_hash(used),
            "judge_prompts": json_hash([asdict(prompt) for _, prompt in sorted(self.prompts.by_name.items())]),
            "judge_settings": JUDGE_SETTINGS,
            "temperatures": "by category" if self.by_category else "one for all",
            "rules": "first [[rating]] else [rating]; without one left out; means over all scores",
        }

    def requests(self, outputs: Outputs) -> list[JudgeRequest]:
        return [
            self.request(question, turn, outputs[question.id])
            for question in self.questions
            if question.id in outputs
            for turn in range(1, len(question.turns) + 1)
        ]

    def request(self, question: Question, turn: int, answers: Sequence[str]) -> JudgeRequest:
        """What the judge is asked about the answer to ``turn``."""
        said = [text for pair in zip(question.turns, answers, strict=True) for text in pair]
        return JudgeRequest(
            id=f"{question.id}{TURN}{turn}",
            messages=self.prompts.messages(turn, question.turns, answers, self.reference_of(question)),
            settings=JUDGE_SETTINGS,
            prompt=as_prompt(*said[: 2 * turn - 1]),
            answers=(answers[turn - 1],),
            spoken=spoken,
        )

    def ask_again(self, request: JudgeRequest, answers: Sequence[Completion]) -> JudgeRequest | None:
        """Never: a judgment without a rating is left out, as FastChat does."""
        return None

    def score(self, outputs: Outputs, judged: Sequence[Judged]) -> Scores:
        judgments = []
        for one in judged:
            question, _, turn = one.request.id.rpartition(TURN)
            judgments += [Judgment(question, int(turn), answer.text) for answer in one.answers]
        layout = layout_of([question for question in self.questions if question.id in outputs])
        return score(judgments, layout.categories, layout.turns)

    def answer_tokens(self) -> int:
        return ANSWER_TOKENS

    def read_outputs(self, path: Path) -> tuple[str, Outputs]:
        """A model's name and its stored answers (FastChat's ``model_answer``) by question, whatever their order; those
        to questions that ``max_items`` left out are passed over."""
        model, found = read_answers(path)
        return model, {name: answers for name, answers in found.items() if name not in self.left_out}

    def first(self, count: int | None) -> MTBench:
        """With the first ``count`` questions only; all for ``None``."""
        if count is None:
            return self
        left_out = frozenset(question.id for question in self.questions[count:])
        return replace(self, questions=self.questions[:count], left_out=left_out)

    def sources(self) -> dict[str, dict[str, str]]:
        """The files it is made of, for the record."""
        return {name: {"path": str(path), "hash": content_hash([path])} for name, path in self.files.items()}


def spoken(opinion: Opinion) -> Completion:
    """The oracle's grade (1 to 5 points) as a rating from 1 to 10, in a judge's words."""
    rating = 1.0 + (opinion.scores[0] - 1.0) * 9.0 / 4.0
    return Completion(f"Rating: [[{rating:.6g}]]", "stop")


def mt_bench(config: MTBenchConfig) -> MTBench:
    """The benchmark that ``config`` asks for: from its owners' files, given or fetched into ``cache_root/mt_bench``, or
    on the toy world."""
    prompts = OWN if config.judge_prompts is None else existing(config.judge_prompts, "judge_prompts")
    by_category = config.decoding.temperature is None
    if config.benchmark == "toy":
        refuse_files(config)
        return toy(read_prompts(prompts), by_category).first(config.max_items)
    folder = Path(config.cache_root) / "mt_bench"
    questions = named(config.questions or "fastchat", QUESTIONS, folder, "questions")
    references = named(config.reference_answers or "simpo", REFERENCES, folder, "reference_answers")
    return MTBench(
        read_questions(questions),
        read_references(references),
        read_prompts(prompts),
        by_category,
        files={"questions": questions, "reference answers": references, "judge prompts": prompts},
    ).first(config.max_items)


def refuse_files(config: MTBenchConfig) -> None:
    """Raise ``UserError`` for files that the toy world does not read."""
    for key in ("questions", "reference_answers"):
        if (value := getattr(config, key)) is not None:
            raise UserError(f"{key}={value} would not be read with benchmark=toy, which has its own; leave it out")


def toy(prompts: JudgePrompts, by_category: bool = True) -> MTBench:
    """The same over the toy world's conversations, whose references are ideal answers."""
    talks = conversations(TOY_ITEMS)
    questions = tuple(Question(talk.id, TOY_CATEGORIES[talk.kind], talk.turns) for talk in talks)
    return MTBench(questions, {one.id: toy_reference(one) for one in questions}, prompts, by_category)


def toy_reference(question: Question) -> tuple[str, ...]:
    """Ideal answers to both turns, the second after the ideal first."""
    rng = random.Random(question.id)
    first = ideal_answer(parse_task(as_prompt(question.turns[0])), rng)
    return first, ideal_answer(parse_task(as_prompt(question.turns[0], first, question.turns[1])), rng)
