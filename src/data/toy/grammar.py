"""Draws the prompts of the toy world: short instructions of six kinds."""

from __future__ import annotations

import random

from src.data.pairs import Message, Prompt
from src.data.toy.lexicon import CATEGORIES, COUNT_WORDS, NAMES, UNITS, WORDS
from src.data.toy.tasks import CHOICE_LAYOUTS, KINDS, LIST_LAYOUTS, NUMBER_LAYOUTS, REWRITE_LAYOUTS, parse_task
from src.data.toy.writers import ideal_answer


def draw_prompt(rng: random.Random, kind: str | None = None) -> Prompt:
    """A prompt of the given kind, or of a kind drawn at random."""
    kind = kind or rng.choice(KINDS)
    if kind == "two_turn":
        return _draw_two_turns(rng)
    return (Message("user", _FIRST[kind](rng)),)


def draw_follow_up(rng: random.Random, kind: str) -> str:
    """A second user turn that fits a first question of ``kind`` (list, sort or arithmetic)."""
    if kind == "arithmetic":
        change = rng.choice(("add 1", "add 2", "add 3", "add 4", "take away 1", "take away 2"))  # never below zero
        return f"Now {change}. {rng.choice(list(NUMBER_LAYOUTS))}"
    change = rng.choice(("the same", "in reverse order", f"only the first {COUNT_WORDS[rng.randint(1, 2)]}"))
    return f"Now {change} {rng.choice(list(LIST_LAYOUTS))}."


def _draw_two_turns(rng: random.Random) -> Prompt:
    kind = rng.choice(("list", "sort", "arithmetic"))
    first = Message("user", _FIRST[kind](rng))
    answer = ideal_answer(parse_task((first,)), rng)
    return (first, Message("assistant", answer), Message("user", draw_follow_up(rng, kind)))


def _list(rng: random.Random) -> str:
    category = rng.choice(list(CATEGORIES))
    excluded = rng.sample(CATEGORIES[category], rng.choice((0, 1, 2, 2)))
    without = f" except {' and '.join(excluded)}" if excluded else ""
    verb, count = rng.choice(("List", "Name", "Give")), COUNT_WORDS[rng.randint(2, 4)]
    return f"{verb} {count} {category}{without} {rng.choice(list(LIST_LAYOUTS))}."


def _sort(rng: random.Random) -> str:
    size = rng.randint(3, 4)
    if rng.random() < 0.5:
        items, order = rng.sample([str(n) for n in range(1, 21)], size), ("low to high", "high to low")
    else:
        items, order = rng.sample(WORDS, size), ("A to Z", "Z to A")
    return f"Sort {', '.join(items)} from {rng.choice(order)} {rng.choice(list(LIST_LAYOUTS))}."


def _rewrite(rng: random.Random) -> str:
    items, backwards = rng.sample(WORDS, rng.randint(2, 3)), rng.choice(("", " backwards"))
    return f"Write {', '.join(items)}{backwards} {rng.choice(list(REWRITE_LAYOUTS))}."


def _arithmetic(rng: random.Random) -> str:
    layout, low, high = rng.choice(list(NUMBER_LAYOUTS)), rng.randint(1, 5), rng.randint(2, 9)
    if rng.random() < 0.5:
        verb, left = rng.choice((("gets", high), ("loses", low + high)))
        return f"{rng.choice(NAMES)} has {left} {rng.choice(UNITS)} and {verb} {low}. How many now? {layout}"
    operator = rng.choice("+-x")
    left = low + high if operator == "-" else high
    return f"What is {left} {operator} {low}? {layout}"


def _choice(rng: random.Random) -> str:
    right, *wrong = rng.sample(list(CATEGORIES), 4)
    options = [rng.choice(CATEGORIES[category]) for category in (right, *wrong)]
    rng.shuffle(options)
    lettered = " ".join(f"{letter}) {word}" for letter, word in zip("ABCD", options, strict=True))
    return f"Which of these is in {right}? {lettered} {rng.choice(list(CHOICE_LAYOUTS))}"


_FIRST = {"list": _list, "sort": _sort, "rewrite": _rewrite, "arithmetic": _arithmetic, "choice": _choice}
