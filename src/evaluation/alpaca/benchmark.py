"""AlpacaEval 2 as a judged benchmark: the owners' files or the toy world's, and the package's own annotation."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from src.build import build
from src.data.pairs import Message
from src.errors import UserError
from src.evaluation.alpaca.annotations import Annotations, Row
from src.evaluation.alpaca.judging import Choice, Pair, judge_settings, preferences, prompt_template, questions
from src.evaluation.alpaca.package import ANNOTATOR, alpaca_eval, versions
from src.evaluation.alpaca.reference import FILES, Reference, read_list, read_reference, text_of
from src.evaluation.alpaca.scores import Rules, scores_of
from src.evaluation.alpaca.settings import rules_of
from src.evaluation.benchmark import Item, Outputs, Scores
from src.evaluation.judges.base import Judged, JudgeRequest, Opinion
from src.evaluation.outputs import completed
from src.generation.client import Completion

if TYPE_CHECKING:
    from src.benchmark_schema import AlpacaEvalConfig

MODEL = "model"
"""What the measured model is called in the tables given to the package, which only tells it from the baseline."""


@dataclass(frozen=True)
class AlpacaEval:
    """The benchmark over its data. The judge's verdict is its probability of one token against another, so one that
    gives no log-probs cannot judge."""

    reference: Reference
    rules: Rules = field(default_factory=Rules)
    name: str = "alpaca_eval"
    requires_logprobs: ClassVar[bool] = True

    @classmethod
    def official(cls, config: AlpacaEvalConfig) -> AlpacaEval:
        """From the owners' files, local or from the hub."""
        alpaca_eval()
        given = {key: getattr(config, key) for key in FILES}
        return cls(read_reference(given, Path(config.cache_root)).first(config.max_items), rules_of(config))

    @classmethod
    def toy(cls, config: AlpacaEvalConfig) -> AlpacaEval:
        """From the toy world; its gamed answers are judged by an oracle like the one that judges the model."""
        from src.evaluation.alpaca.toy import toy_reference

        alpaca_eval()
        if given := [key for key in FILES if getattr(config, key) is not None]:
            raise UserError(f"{given[0]} would not be read with benchmark=toy, which makes its own; leave it out")
        settings = build(config.judge, "judge")
        taste: Mapping[str, Any] = {}
        if not settings.paid and not settings.problems():
            judge = settings.open(Path(config.cache_root))
            taste = judge.describe()
            judge.close()
        reference = toy_reference(float(taste.get("length_bias", 0.0)), float(taste.get("temperature", 0.25)))
        return cls(reference.first(config.max_items), rules_of(config))

    @cached_property
    def all_items(self) -> tuple[Item, ...]:
        """One single-turn item a question."""
        return tuple(
            Item(id=f"{place:03d}", turns=(question.instruction,), category=question.dataset)
            for place, question in enumerate(self.reference.questions)
        )

    def items(self) -> Sequence[Item]:
        return self.all_items

    def describe(self) -> dict[str, Any]:
        return {
            **self.reference.describe(),
            "annotator": ANNOTATOR,
            "judge_prompts": hashlib.sha256(prompt_template().encode()).hexdigest(),
            "regularization": self.rules.regularization,
            "packages": versions(),
        }

    def sources(self) -> Mapping[str, Mapping[str, str]]:
        """The reference files: key -> path and hash."""
        return self.reference.sources

    def pairs(self, outputs: Outputs) -> list[Pair]:
        """Instruction, the baseline's answer and the model's, in order."""
        answers = [outputs[item.id][0] for item in self.all_items]
        return [
            Pair(question.instruction, question.output, answer)
            for question, answer in zip(self.reference.questions, answers, strict=True)
        ]

    def requests(self, outputs: Outputs) -> list[JudgeRequest]:
        settings = judge_settings()
        return [
            JudgeRequest(
                id=self.all_items[asked.place].id,
                messages=asked.messages,
                settings=settings,
                prompt=(Message("user", self.reference.questions[asked.place].instruction),),
                answers=asked.shown,
                spoken=spoken,
            )
            for asked in questions(self.pairs(outputs))
        ]

    def ask_again(self, request: JudgeRequest, answers: Sequence[Completion]) -> JudgeRequest | None:
        return None  # as the package: what cannot be read counts nowhere

    def score(self, outputs: Outputs, judged: Sequence[Judged]) -> Scores:
        places = {item.id: place for place, item in enumerate(self.all_items)}
        choices = {places[one.request.id]: choice_of(one.answers[-1]) for one in judged}
        pairs = self.pairs(outputs)
        rows = tuple(
            Row(place, preference, len(pair.output_1), len(pair.output_2))
            for place, (pair, preference) in enumerate(zip(pairs, preferences(pairs, choices), strict=True))
        )
        scores = scores_of(Annotations(MODEL, MODEL, None, rows, "the judge's answers"), self.reference, self.rules)
        equal = sum(pair.output_1 == pair.output_2 for pair in pairs)
        return replace(scores, counts={**scores.counts, "equal_answers": equal})

    def answer_tokens(self) -> int:
        return int(judge_settings()["max_tokens"])

    def read_outputs(self, path: Path) -> tuple[str, Outputs]:
        """alpaca-eval's model_outputs.json: the generator's name and one answer to every instruction, in any order.

        Raises ``UserError`` for missing, unknown and contradicting answers, and for several generators.
        """
        rows = read_list(path)
        texts = [[text_of(row, key, f"{path}, row {n}") for key in KEYS] for n, row in enumerate(rows, 1)]
        names = sorted({row[2] for row in texts})
        if len(names) > 1:
            raise UserError(f"{path} has answers of {', '.join(names)}; give those of one model")
        if again := [text for text, count in Counter(row[0] for row in texts).items() if count > 1]:
            raise UserError(f"{path} answers {again[0]!r:.60} twice; leave one answer to each instruction")
        places = self.reference.positions
        unknown = [row[0] for row in texts if row[0] not in places]
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} of {len(rows)} instructions are none of the benchmark's (first: "
                f"{unknown[0]!r:.60}); answers are matched by the instruction's exact text, in any order"
            )
        found = {self.all_items[places[text]].id: (answer,) for text, answer, _ in texts}
        return names[0], completed(self.all_items, found, str(path))


KEYS = ("instruction", "output", "generator")


def choice_of(answer: Completion) -> Choice:
    """An answer in the form that the package's parser reads."""
    logprobs = None if answer.logprobs is None else {"content": answer.logprobs}
    return {"text": answer.text, "finish_reason": answer.finish_reason, "index": 0, "logprobs": logprobs}


def spoken(opinion: Opinion) -> Completion:
    """The oracle's preference as log-probs of "m" (the first answer is better) and "M"."""
    first = 0.5 if opinion.preference is None else opinion.preference
    weights = {"m": first, "M": 1.0 - first}
    # a token of probability 0 is not among the likeliest
    top = [{"token": token, "logprob": math.log(weight)} for token, weight in weights.items() if weight > 0]
    top.sort(key=lambda one: -float(str(one["logprob"])))
    best = top[0]
    return Completion(str(best["token"]), "length", tokens=1, logprobs=[{**best, "top_logprobs": top}])
