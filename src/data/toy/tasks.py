"""What an instruction of the toy world asks for, read back from the text of its prompt.

The text is the only source of meaning: the grammar draws a prompt (grammar.py), ``parse_task`` reads it, and both
the writers and the scorer work from what was read. A two-turn prompt holds a first question, an answer to it
and a follow-up; the follow-up refers to the right answer of the first question or, where that is open
(lists), to the items the answer in the prompt names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from src.data.pairs import Prompt
from src.data.toy.lexicon import CATEGORIES, CATEGORY_OF, COUNTS
from src.errors import UserError

LIST_LAYOUTS = {"separated by commas": "commas", "as bullets": "bullets", "as a numbered list": "numbered"}
REWRITE_LAYOUTS = {"in brackets": "brackets", "joined by dashes": "dashes", "joined by slashes": "slashes"}
NUMBER_LAYOUTS = {
    "Reply with the number only.": "number",
    "Reply with an equation.": "equation",
    "Reply with a sentence.": "sentence",
}
CHOICE_LAYOUTS = {"Reply with the letter only.": "letter", "Reply with the letter and the word.": "letter_word"}
LETTERS = "ABCD"
KINDS = ("list", "sort", "rewrite", "arithmetic", "choice", "two_turn")


@dataclass(frozen=True, slots=True)
class ItemsTask:
    """Items in a layout: ``expected`` in that order, or, where it is empty, any ``count`` of ``category``."""

    kind: str
    layout: str
    count: int
    expected: tuple[str, ...] = ()
    category: str | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NumberTask:
    """A number: ``left operator right``; ``unit`` is the noun counted, if any."""

    kind: str
    layout: str
    left: int
    operator: str
    right: int
    unit: str | None = None

    @property
    def value(self) -> int:
        """The right answer."""
        if self.operator == "+":
            return self.left + self.right
        return self.left - self.right if self.operator == "-" else self.left * self.right


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """One of four words, lettered A to D; ``answer`` is the index of the right one."""

    kind: str
    layout: str
    options: tuple[str, ...]
    answer: int


Task = ItemsTask | NumberTask | ChoiceTask


def _any(phrases: dict[str, str]) -> str:
    return "(" + "|".join(map(re.escape, phrases)) + ")"


_LIST = re.compile(rf"(?:List|Name|Give) (\w+) (\w+)(?: except (\w+)(?: and (\w+))?)? {_any(LIST_LAYOUTS)}\.")
_SORT = re.compile(rf"Sort ([\w, ]+) from (low to high|high to low|A to Z|Z to A) {_any(LIST_LAYOUTS)}\.")
_REWRITE = re.compile(rf"Write ([\w, ]+?)( backwards)? {_any(REWRITE_LAYOUTS)}\.")
_SUM = re.compile(rf"What is (\d+) ([-+x]) (\d+)\? {_any(NUMBER_LAYOUTS)}")
_STORY = re.compile(rf"\w+ has (\d+) (\w+) and (gets|loses) (\d+)\. How many now\? {_any(NUMBER_LAYOUTS)}")
_CHOICE = re.compile(rf"Which of these is in (\w+)\? A\) (\w+) B\) (\w+) C\) (\w+) D\) (\w+) {_any(CHOICE_LAYOUTS)}")
_AGAIN = re.compile(rf"Now (the same|in reverse order|only the first (\w+)) {_any(LIST_LAYOUTS)}\.")
_THEN = re.compile(rf"Now (add|take away) (\d+)\. {_any(NUMBER_LAYOUTS)}")


def parse_task(prompt: Prompt) -> Task:
    """What ``prompt`` asks for. Raises ``UserError`` for a text that is not of this world."""
    turns = [message.content for message in prompt if message.role != "system"]
    task = _parse_first(turns[0]) if len(turns) in (1, 3) else None
    if task is not None and len(turns) == 3:
        task = _parse_follow_up(task, turns[1], turns[2])
    if task is None:
        text = " / ".join(turns)
        raise UserError(f"not a prompt of the toy world: {text!r:.120}; only prompts that it generates can be scored")
    return task


def _parse_first(text: str) -> Task | None:
    if match := _LIST.fullmatch(text):
        count, category, *excluded, phrase = match.groups()
        if count not in COUNTS or category not in CATEGORIES:
            return None
        given = tuple(word for word in excluded if word)
        return ItemsTask("list", LIST_LAYOUTS[phrase], COUNTS[count], category=category, excluded=given)
    if match := _SORT.fullmatch(text):
        words, direction, phrase = match.groups()
        items = sorted(words.split(", "), key=(lambda item: int(item)) if words[0].isdigit() else None)
        if direction in ("high to low", "Z to A"):
            items.reverse()
        return ItemsTask("sort", LIST_LAYOUTS[phrase], len(items), expected=tuple(items))
    if match := _REWRITE.fullmatch(text):
        words, backwards, phrase = match.groups()
        items = words.split(", ")[:: -1 if backwards else 1]
        return ItemsTask("rewrite", REWRITE_LAYOUTS[phrase], len(items), expected=tuple(items))
    return _parse_number(text) or _parse_choice(text)


def _parse_number(text: str) -> Task | None:
    if match := _SUM.fullmatch(text):
        left, operator, right, phrase = match.groups()
        return NumberTask("arithmetic", NUMBER_LAYOUTS[phrase], int(left), operator, int(right))
    if match := _STORY.fullmatch(text):
        left, unit, verb, right, phrase = match.groups()
        operator = "+" if verb == "gets" else "-"
        return NumberTask("arithmetic", NUMBER_LAYOUTS[phrase], int(left), operator, int(right), unit)
    return None


def _parse_choice(text: str) -> Task | None:
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    category, *options, phrase = match.groups()
    fitting = [index for index, word in enumerate(options) if CATEGORY_OF.get(word) == category]
    if len(fitting) != 1:
        return None
    return ChoiceTask("choice", CHOICE_LAYOUTS[phrase], tuple(options), fitting[0])


def _parse_follow_up(first: Task, answer: str, text: str) -> Task | None:
    if isinstance(first, NumberTask) and (match := _THEN.fullmatch(text)):
        verb, amount, phrase = match.groups()
        operator = "+" if verb == "add" else "-"
        return NumberTask("two_turn", NUMBER_LAYOUTS[phrase], first.value, operator, int(amount), first.unit)
    if isinstance(first, ItemsTask) and (match := _AGAIN.fullmatch(text)):
        change, count, phrase = match.groups()
        if count is not None and count not in COUNTS:
            return None
        items = first.expected or tuple(item for item, *_ in find_items(answer, numeric=False))
        if not items:  # the answer in the prompt names nothing to refer to: the first question stays open
            count = COUNTS[count] if count else first.count
            return replace(first, kind="two_turn", layout=LIST_LAYOUTS[phrase], count=count)
        if change == "in reverse order":
            items = items[::-1]
        items = items[: COUNTS[count]] if count else items
        return ItemsTask("two_turn", LIST_LAYOUTS[phrase], len(items), expected=items)
    return None


_MARKER = re.compile(r"^[ \t]*(?:[-*]|\d+[.)])[ \t]+", re.MULTILINE)
_TOKEN = re.compile(r"[A-Za-z]+|\d+")


def find_items(text: str, numeric: bool) -> list[tuple[str, int, int]]:
    """The items a text names, as (item in lower case, start, end), in order.

    Items are the words of the lexicon or, with ``numeric``, whole numbers that are not list markers.
    """
    markers = [match.span() for match in _MARKER.finditer(text)]
    found = []
    for match in _TOKEN.finditer(text):
        word = match.group().lower()
        counts = word.isdigit() and not _within(match.start(), markers) if numeric else word in CATEGORY_OF
        if counts:
            found.append((word, *match.span()))
    return found


def _within(position: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= position < end for start, end in spans)
