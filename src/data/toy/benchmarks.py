"""Test items of the toy world in the shapes of the public benchmarks, on prompts that no training data has.

``instructions`` is AlpacaEval-shaped (single prompts), ``conversations`` MT-Bench-shaped (two user turns),
``style_items`` RM-Bench-shaped (right and wrong answers in three styles), ``exact_match_items`` and
``choice_items`` have the shapes of GSM8K and ARC in lm-eval.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from src.data.pairs import Message, Prompt
from src.data.toy.grammar import draw_follow_up
from src.data.toy.scorer import score_task
from src.data.toy.source import draw_prompts
from src.data.toy.tasks import ChoiceTask, NumberTask, parse_task
from src.data.toy.writers import STYLES, draw_body, dress, ideal_answer, lay_out_choice


@dataclass(frozen=True, slots=True)
class StyleItem:
    """A prompt with right (``chosen``) and wrong (``rejected``) answers, each concise, detailed plain, detailed
    markdown (the order of ``STYLES``)."""

    id: str
    kind: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two user turns, the second of which follows on the model's own answer to the first."""

    id: str
    kind: str
    turns: tuple[str, str]


@dataclass(frozen=True, slots=True)
class QuestionItem:
    """A question with its answer; ``choices`` are empty for open questions."""

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


def instructions(count: int, seed: int = 0) -> list[Prompt]:
    """Single prompts of all kinds."""
    return list(islice(draw_prompts("benchmark", seed), count))


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Two-turn conversations that start with a list, a sort and an arithmetic question in turn."""
    rng = random.Random(f"toy conversations {seed}")
    kinds = ("list", "sort", "arithmetic")
    firsts = {kind: draw_prompts("benchmark", seed, kind) for kind in kinds}
    return [
        Conversation(f"toy-talk-{seed}-{number:04d}", kind, (next(firsts[kind])[0].content, draw_follow_up(rng, kind)))
        for number, kind in zip(range(count), kinds * count, strict=False)
    ]


def style_items(count: int, seed: int = 0) -> list[StyleItem]:
    """Right and wrong answers of the same layout in three styles."""
    items = []
    for number, prompt in enumerate(instructions(count, seed)):
        rng = random.Random(f"toy styles {seed} {number}")
        task = parse_task(prompt)
        right = ideal_answer(task, rng)
        wrong = right
        while score_task(task, wrong).aspects["correctness"] > 4.5:
            wrong = draw_body(task, rng, mistake=0.5, omission=0.0, layout=task.layout)
        chosen, rejected = (tuple(dress(body, style, rng) for style in STYLES) for body in (right, wrong))
        items.append(StyleItem(f"toy-style-{seed}-{number:04d}", task.kind, prompt, chosen, rejected))
    return items


def exact_match_items(count: int, seed: int = 0) -> list[QuestionItem]:
    """Arithmetic questions; the answer is the number."""
    items = []
    for number, prompt in enumerate(islice(draw_prompts("benchmark", seed, "arithmetic"), count)):
        task = parse_task(prompt)
        if isinstance(task, NumberTask):
            items.append(QuestionItem(f"toy-sum-{seed}-{number:04d}", prompt[0].content, str(task.value)))
    return items


def choice_items(count: int, seed: int = 0) -> list[QuestionItem]:
    """Multiple choice questions; ``choices`` are what a response could be and ``answer`` is the right one."""
    items = []
    for number, prompt in enumerate(islice(draw_prompts("benchmark", seed, "choice"), count)):
        task = parse_task(prompt)
        if isinstance(task, ChoiceTask):
            choices = tuple(lay_out_choice(task, index, task.layout) for index in range(len(task.options)))
            items.append(
                QuestionItem(f"toy-choice-{seed}-{number:04d}", prompt[0].content, choices[task.answer], choices)
            )
    return items


def as_prompt(*turns: str) -> Prompt:
    """Alternating user and assistant turns as a prompt."""
    return tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(turns))
