"""Arena-Hard v0.1 as a judged benchmark: from its owners' files, or on the toy world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.data.pairs import Message, Prompt
from src.data.sources.files import content_hash, existing
from src.data.toy.benchmarks import instructions
from src.data.toy.tasks import parse_task
from src.data.toy.writers import WRITERS, write
from src.errors import Problems
from src.evaluation.arena.files import BASELINE_ANSWERS, QUESTIONS, Question, read_answers, read_questions
from src.evaluation.arena.lengths import answer_lengths
from src.evaluation.arena.prompts import SETTINGS, judge_prompts
from src.evaluation.arena.scores import score
from src.evaluation.arena.stored import Judgment, Judgments, duels_of_judgments, same_baseline
from src.evaluation.arena.verdicts import RULES, Rules
from src.evaluation.benchmark import Item, Outputs, Scores
from src.evaluation.fetch import fetched
from src.evaluation.judges.base import Judged, JudgeRequest, Opinion
from src.evaluation.outputs import completed
from src.generation.client import Completion

if TYPE_CHECKING:
    from src.benchmark_schema import ArenaHardConfig

ANSWER_TOKENS = 950
"""About the length of GPT-4's judgments (3800 characters on average in stored ones)."""

OF_FILES = ("unknown_questions", "duplicate_judgments", "relabelled", "missing_games", "missing_questions")
"""Counts that only stored judgments can have: here every question is judged once, in both orders."""

TOY_ITEMS = 100
TOY_BASELINE = "clerk"
SIGNIFICANT, SLIGHT = 1.0, 0.1
"""Points between two answers from which on the oracle speaks of a significant, and of a slight difference."""


@dataclass(frozen=True)
class ArenaHard:
    """``Benchmark``: every answer is compared with the baseline's, once shown as B and once as A.

    ``baseline``: name of the model compared with; ``answers``: its answers by question. ``rounds`` and ``seed``: of the
    bootstrap. ``tokenizer``: a directory whose tokenizer may count tokens. ``files``: what it was read from;
    ``left_out``: ids of further questions that are not asked.
    """

    questions: tuple[Question, ...]
    baseline: str
    answers: Mapping[str, str]
    rules: Rules
    rounds: int
    seed: int
    tokenizer: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    name: str = "arena_hard"

    def items(self) -> Sequence[Item]:
        return [Item(one.id, (one.prompt,), category=one.cluster) for one in self.questions]

    def describe(self) -> dict[str, Any]:
        return {
            "questions": json_hash([asdict(one) for one in self.questions]),
            "baseline": self.baseline,
            "baseline_answers": json_hash([self.answers[one.id] for one in self.questions]),
            "judge_prompts": json_hash([asdict(judge_prompts()), SETTINGS, self.rules.attempts]),
            "rules": self.rules.name,
            "rounds": self.rounds,
            "seed": self.seed,
        }

    def requests(self, outputs: Outputs) -> list[JudgeRequest]:
        return [self.request(one, game, outputs[one.id][0]) for one in self.questions for game in (1, 2)]

    def request(self, question: Question, game: int, answer: str) -> JudgeRequest:
        """One game: in the first the baseline is shown as A, in the second the model."""
        shown = (self.answers[question.id], answer) if game == 1 else (answer, self.answers[question.id])
        return JudgeRequest(
            id=f"{question.id}:game-{game}",
            messages=judge_prompts().messages(question.prompt, *shown),
            settings=SETTINGS,
            prompt=as_prompt(question.prompt),
            answers=shown,
            spoken=spoken,
        )

    def ask_again(self, request: JudgeRequest, answers: Sequence[Completion]) -> JudgeRequest | None:
        """By the rules of v0.1 once more, where no label is in what was said so far. Contradictory labels stay."""
        said = [answer.text for answer in answers]
        if len(said) >= self.rules.attempts or self.rules.labels_of(joined(said)):
            return None
        return replace(request, messages=(*request.messages, *judge_prompts().following(said)))

    def score(self, outputs: Outputs, judged: Sequence[Judged]) -> Scores:
        verdicts = {one.request.id: self.rules.read(joined([answer.text for answer in one.answers])) for one in judged}
        rows = [
            Judgment(one.id, (verdicts[f"{one.id}:game-1"], verdicts[f"{one.id}:game-2"])) for one in self.questions
        ]
        ids = [one.id for one in self.questions]
        duels = duels_of_judgments(Judgments("", None, rows), self.rules, "last", ids)
        (found,) = score([duels], self.rules, self.rounds, self.seed, self.baseline)
        counts = {name: count for name, count in found.counts.items() if name not in OF_FILES}
        counts["asked_again"] = sum(len(one.answers) > 1 for one in judged)
        lengths = answer_lengths([outputs[one.id][0] for one in self.questions], self.tokenizer)
        return replace(found, counts=counts, details={**found.details, "answers": lengths})

    def answer_tokens(self) -> int:
        return ANSWER_TOKENS

    def read_outputs(self, path: Path) -> tuple[str, Outputs]:
        """A model's name and its stored answers by question, whatever their order; those to questions that
        ``max_items`` left out are passed over."""
        model, found = read_answers(path)
        return model, {one: (answer,) for one, answer in found.items() if one not in self.left_out}

    def first(self, count: int | None) -> ArenaHard:
        """With the first ``count`` questions only; all for ``None``."""
        if count is None:
            return self
        left_out = frozenset(one.id for one in self.questions[count:])
        return replace(self, questions=self.questions[:count], left_out=left_out)

    def sources(self) -> dict[str, dict[str, str]]:
        """The files it is made of, for the record."""
        return {name: {"path": str(path), "hash": content_hash([path])} for name, path in self.files.items()}


def joined(said: Sequence[str]) -> str:
    """Several answers to one request as the owners keep them: one text."""
    return "".join(f"\n{text}" for text in said)


def as_prompt(text: str) -> Prompt:
    """A single user turn."""
    return (Message("user", text),)


def spoken(opinion: Opinion) -> Completion:
    """The oracle's gap in points as one of the five verdicts, in a judge's words."""
    a, b = opinion.scores
    gap = a - b
    better, worse = ("A", "B") if gap > 0 else ("B", "A")
    if abs(gap) < SLIGHT:
        return Completion("My final verdict is tie: [[A=B]].", "stop")
    sign, degree = (">>", "significantly") if abs(gap) >= SIGNIFICANT else (">", "slightly")
    return Completion(f"Assistant {better} is {degree} better: [[{better}{sign}{worse}]].", "stop")


def arena_hard(config: ArenaHardConfig) -> ArenaHard:
    """The benchmark that ``config`` asks for: from its owners' files, given or fetched into ``cache_root/arena_hard``,
    or on the toy world."""
    settings: dict[str, Any] = {
        "rules": RULES[config.rules],
        "rounds": config.rounds,
        "seed": config.seed,
        "tokenizer": tokenizer_directory(config),
    }
    if config.benchmark == "toy":
        refuse_files(config)
        questions, answers = toy_world()
        return ArenaHard(questions, f"toy {TOY_BASELINE}", answers, **settings).first(config.max_items)
    folder = Path(config.cache_root) / "arena_hard"
    files = {
        name: fetched(source, folder, key) if (value := getattr(config, key)) is None else existing(value, key)
        for name, key, source in (
            ("questions", "questions", QUESTIONS),
            ("baseline answers", "baseline_answers", BASELINE_ANSWERS),
        )
    }
    questions = read_questions(files["questions"])
    baseline, found = read_answers(files["baseline answers"])
    same_baseline(config.baseline, baseline, found)
    items = [Item(one.id, (one.prompt,)) for one in questions]
    whole = completed(items, {one: (text,) for one, text in found.items()}, str(files["baseline answers"]))
    answers = {one: texts[0] for one, texts in whole.items()}
    return ArenaHard(questions, baseline, answers, files=files, **settings).first(config.max_items)


def tokenizer_directory(config: ArenaHardConfig) -> str | None:
    """Where the tokenizer of ``config.checkpoint`` is, if it is a directory here."""
    if config.checkpoint is None:
        return None
    from src.generation.policy import is_run

    directory = Path(config.checkpoint)
    if is_run(config.checkpoint):
        directory = directory / "checkpoints" / config.which / "model"
    return str(directory) if directory.is_dir() else None


def refuse_files(config: ArenaHardConfig) -> None:
    """Raise ``Problems`` for files that the toy world does not read."""
    problems = [
        f"{key}={value} would not be read with benchmark=toy, which has its own; leave it out"
        for key in ("questions", "baseline_answers", "baseline")
        if (value := getattr(config, key)) is not None
    ]
    if problems:
        raise Problems(problems)


def toy_world() -> tuple[tuple[Question, ...], dict[str, str]]:
    """The toy world's instructions, and answers of one of its writers as the baseline; the same at every call."""
    questions, answers = [], {}
    for number, prompt in enumerate(instructions(TOY_ITEMS)):
        task = parse_task(prompt)
        question = Question(f"toy-hard-{number:04d}", prompt[0].content, task.kind)
        questions.append(question)
        answers[question.id] = write(WRITERS[TOY_BASELINE], task, random.Random(f"toy arena-hard {number}"))
    return tuple(questions), answers
