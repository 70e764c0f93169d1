"""A benchmark of a few toy questions, a configuration for it, and a model so small that it answers at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from src.benchmark_schema import JudgedConfig
from src.data.toy.benchmarks import as_prompt, conversations, instructions
from src.evaluation.benchmark import Item, Outputs, Scores
from src.evaluation.judges.base import Judged, JudgeRequest, Opinion
from src.evaluation.statistics import mean_estimate
from src.generation.client import Completion
from tests.support import ROOT

GRADE = re.compile(r"\[\[(\d+\.?\d*)\]\]")


def spoken(opinion: Opinion) -> Completion:
    """A grade as a judge writes it."""
    return Completion(f"It is fine. [[{opinion.scores[0]:.2f}]]", "stop", 8, 20)


def grade_of(answers: Sequence[Completion]) -> float | None:
    """The first grade in the answers."""
    return next((float(match[1]) for answer in answers if (match := GRADE.search(answer.text))), None)


@dataclass(frozen=True)
class Grades:
    """Every answer graded by itself; a judge that gives no grade is asked once more."""

    questions: tuple[Item, ...]
    settings: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 16})
    name: str = "grades"
    rule: str = "mean"

    def items(self) -> Sequence[Item]:
        return self.questions

    def describe(self) -> dict[str, Any]:
        return {"questions": [item.turns for item in self.questions], "judge_prompts": "grade it", "rule": self.rule}

    def requests(self, outputs: Outputs) -> list[JudgeRequest]:
        return [
            self.request(item, turn, outputs[item.id]) for item in self.questions for turn in range(len(item.turns))
        ]

    def request(self, item: Item, turn: int, answers: tuple[str, ...]) -> JudgeRequest:
        said = [text for pair in zip(item.turns, answers, strict=True) for text in pair][: 2 * turn + 1]
        content = f"Grade this answer to {said!r}: {answers[turn]}"
        messages = ({"role": "user", "content": content},)
        return JudgeRequest(f"{item.id}:{turn}", messages, self.settings, as_prompt(*said), (answers[turn],), spoken)

    def ask_again(self, request: JudgeRequest, answers: Sequence[Completion]) -> JudgeRequest | None:
        if grade_of(answers) is not None or len(answers) > 1:
            return None
        more = (*request.messages, {"role": "assistant", "content": answers[0].text}, {"role": "user", "content": "?"})
        return JudgeRequest(request.id, more, request.settings, request.prompt, request.answers, request.spoken)

    def score(self, outputs: Outputs, judged: Sequence[Judged]) -> Scores:
        grades = [grade_of(one.answers) for one in judged]
        known = [grade for grade in grades if grade is not None]
        return Scores({"grade": mean_estimate(known)}, {"graded": len(known), "unparsable": len(grades) - len(known)})

    def answer_tokens(self) -> int:
        return 8


def grades(count: int = 4, turns: int = 1) -> Grades:
    """Single questions, or conversations with two temperatures."""
    if turns == 1:
        prompts = instructions(count)
        return Grades(tuple(Item(f"q{number}", (prompt[0].content,)) for number, prompt in enumerate(prompts)))
    talks = conversations(count)
    drawn = (0.0, 0.7)
    return Grades(tuple(Item(talk.id, talk.turns, drawn[number % 2]) for number, talk in enumerate(talks)))


def answers_of(benchmark: Grades) -> dict[str, tuple[str, ...]]:
    """Some answer to every question."""
    return {
        item.id: tuple(f"answer {turn} of {item.id}" for turn in range(len(item.turns))) for item in benchmark.items()
    }


def config_of(folder: Path, **changes: Any) -> JudgedConfig:
    """conf/evaluation with the oracle, below ``folder``; ``changes``: keys, dotted with two underscores."""
    common, judged = (OmegaConf.load(ROOT / "conf" / "evaluation" / f"{name}.yaml") for name in ("common", "judged"))
    loaded: Any = OmegaConf.merge(common, judged)
    del loaded["hydra"]
    values = {
        "benchmark": "toy",
        "output_root": str(folder / "evaluations"),
        "records_root": str(folder / "records"),
        "cache_root": str(folder / "cache"),
        "judge": OmegaConf.load(ROOT / "conf" / "judge" / "oracle.yaml"),
        "generator": {**OmegaConf.load(ROOT / "conf" / "generator" / "transformers.yaml"), "device": "cpu"},
        "decoding": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0},
        "shard_size": 3,
        **changes,
    }
    merged: Any = OmegaConf.merge(OmegaConf.structured(JudgedConfig), loaded, values)
    return merged  # type: ignore[no-any-return]


def openai_judge(base_url: str, **changes: Any) -> dict[str, Any]:
    """conf/judge/openai for a server of this machine, which gives up soon."""
    target = "src.evaluation.judges.settings.OpenAI"
    return {"_target_": target, "base_url": base_url, "model": "judge-1", "concurrency": 2, "tries": 1, **changes}


def write_outputs(path: Path, outputs: dict[str, tuple[str, ...]]) -> Path:
    """A file of stored answers, as ``read_outputs`` of these tests reads it."""
    path.write_text(json.dumps({"model": "stored", "outputs": outputs}))
    return path


def read_outputs(path: Path) -> tuple[str, Outputs]:
    content = json.loads(path.read_text())
    return content["model"], {identity: tuple(answers) for identity, answers in content["outputs"].items()}


def records_in(folder: Path) -> list[dict[str, Any]]:
    """The records below ``folder``."""
    return [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]


def mean_of(values: Sequence[float]) -> float:
    return fmean(values)
