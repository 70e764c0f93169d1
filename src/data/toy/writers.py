"""The named response writers: who answers how well, at what length and in which style.

A response is an answer body (perhaps with mistakes, omissions, or in a layout that was not asked for)
wrapped in a style: concise (the body alone), detailed plain (sentences around it) or detailed markdown
(the same under headings). Skill and verbosity are separate, so length and quality are only loosely tied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from src.data.toy.lexicon import CATEGORIES, CLOSINGS, DETAILS, LEADS, WORDS
from src.data.toy.tasks import LETTERS, ChoiceTask, ItemsTask, NumberTask, Task

STYLES = ("concise", "plain", "markdown")


@dataclass(frozen=True, slots=True)
class Writer:
    """Probabilities of what a writer does: mistakes are per item, the others per response."""

    name: str
    mistake: float  # an item, number or letter is wrong
    omission: float  # an item or asked-for part is left out
    wrong_layout: float  # another layout than the one asked for
    detailed: float  # wraps the answer in sentences
    markdown: float  # a detailed answer is under markdown headings
    sentences: int  # most explaining sentences in a detailed answer


WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (
        Writer("expert", 0.04, 0.04, 0.05, 0.15, 0.2, 1),
        Writer("teacher", 0.06, 0.05, 0.08, 0.85, 0.3, 2),
        Writer("editor", 0.15, 0.10, 0.20, 0.75, 0.9, 2),
        Writer("clerk", 0.20, 0.20, 0.15, 0.10, 0.1, 1),
        Writer("rambler", 0.22, 0.15, 0.40, 0.95, 0.2, 2),
        Writer("novice", 0.40, 0.30, 0.50, 0.30, 0.2, 1),
    )
}


def write(writer: Writer, task: Task, rng: random.Random) -> str:
    """One response of ``writer`` to ``task``."""
    layout = _other_layout(task, rng) if rng.random() < writer.wrong_layout else task.layout
    body = draw_body(task, rng, mistake=writer.mistake, omission=writer.omission, layout=layout)
    style = "concise"
    if rng.random() < writer.detailed:
        style = "markdown" if rng.random() < writer.markdown else "plain"
    return dress(body, style, rng, sentences=rng.randint(0, writer.sentences))


def ideal_answer(task: Task, rng: random.Random) -> str:
    """A right, complete, concise answer in the asked layout."""
    return draw_body(task, rng, mistake=0.0, omission=0.0, layout=task.layout)


def dress(body: str, style: str, rng: random.Random, sentences: int = 2) -> str:
    """The body in one of ``STYLES``; ``sentences`` explaining sentences go into the detailed ones."""
    if style == "concise":
        return body
    details = " ".join(rng.sample(DETAILS, sentences))
    lead, closing = rng.choice(LEADS), rng.choice(CLOSINGS)
    if style == "plain":
        return "\n".join(part for part in (lead, body, details, closing) if part)
    note = f"## Note\n{details}" if details else ""
    return "\n".join(part for part in ("## Answer", f"{lead}\n{body}", note, closing) if part)


def draw_body(task: Task, rng: random.Random, *, mistake: float, omission: float, layout: str) -> str:
    """An answer with the given probabilities of mistakes and omissions, laid out as ``layout``."""
    if isinstance(task, ItemsTask):
        return lay_out_items(_draw_items(task, rng, mistake, omission), layout)
    if isinstance(task, NumberTask):
        return _draw_number(task, rng, mistake, omission, layout)
    answer = task.answer
    if rng.random() < mistake:
        answer = rng.choice([index for index in range(len(LETTERS)) if index != answer])
    word_only = layout == "letter_word" and rng.random() < omission
    return task.options[answer] if word_only else lay_out_choice(task, answer, layout)


def _draw_items(task: ItemsTask, rng: random.Random, mistake: float, omission: float) -> list[str]:
    if task.category is not None:
        allowed = [word for word in CATEGORIES[task.category] if word not in task.excluded]
        items = rng.sample(allowed, task.count)
    else:
        items = list(task.expected)
    for index in range(len(items)):
        if rng.random() >= mistake:
            continue
        if task.category is not None:  # a word that was excluded, said before, or of another category
            wrong = [*task.excluded, *items[:index], rng.choice(WORDS), rng.choice(WORDS)]
            items[index] = rng.choice(wrong)
        elif index + 1 < len(items) and rng.random() < 0.7:
            items[index], items[index + 1] = items[index + 1], items[index]
        else:
            items[index] = str(rng.randint(1, 20)) if items[index].isdigit() else rng.choice(WORDS)
    kept = [item for item in items if rng.random() >= omission]
    return kept or items[:1]


def _draw_number(task: NumberTask, rng: random.Random, mistake: float, omission: float, layout: str) -> str:
    value = task.value
    if rng.random() < mistake:
        value = max(0, value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10)))
    partial = rng.random() < omission
    if layout == "equation":
        return f"= {value}" if partial else f"{task.left} {task.operator} {task.right} = {value}"
    if layout == "sentence":
        unit = "" if partial or task.unit is None else f" {task.unit}"
        return f"The answer is {value}{unit}."
    return str(value)


def lay_out_items(items: list[str], layout: str) -> str:
    """Items in a layout: commas, bullets, numbered, brackets, dashes, slashes, or plain spaces ("words")."""
    if layout == "bullets":
        return "\n".join(f"- {item}" for item in items)
    if layout == "numbered":
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    if layout == "brackets":
        return " ".join(f"[ {item} ]" for item in items)
    return {"commas": ", ", "dashes": " - ", "slashes": " / ", "words": " "}[layout].join(items)


def lay_out_choice(task: ChoiceTask, index: int, layout: str) -> str:
    """An option as its letter, or as letter and word."""
    return f"{LETTERS[index]}) {task.options[index]}" if layout == "letter_word" else LETTERS[index]


def _other_layout(task: Task, rng: random.Random) -> str:
    if isinstance(task, ChoiceTask):
        layouts = ["letter", "letter_word"]
    elif isinstance(task, NumberTask):
        layouts = ["number", "equation", "sentence"]
    else:
        layouts = [
            "commas",
            "words",
            *(("bullets", "numbered") if task.kind != "rewrite" else ("slashes", "brackets")),
        ]
    return rng.choice([layout for layout in layouts if layout != task.layout])
