"""The ground truth of the toy world: parses any response to a prompt and grades it.

Four aspects from 1 to 5, averaged: correctness, completeness, format, concision (rules in docs/toy_world.md).
A response in which no answer can be found is unparsed and gets 1 in every aspect.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from itertools import pairwise

from src.data.pairs import Prompt
from src.data.toy.lexicon import CATEGORY_OF
from src.data.toy.tasks import LETTERS, ChoiceTask, ItemsTask, NumberTask, Task, find_items, parse_task
from src.data.toy.writers import ideal_answer

ASPECTS = ("correctness", "completeness", "format", "concision")
SPARE_WORDS = 2  # words above the ideal answer that cost nothing
LONG_WINDED = 36  # words above that at which concision is lost altogether
LENGTH_BIAS = 0.8  # points a length-loving judge gives for FULL_LENGTH characters
FULL_LENGTH = 120
SEPARATORS = {"commas": " ?, ?", "dashes": " ?- ?", "slashes": " ?/ ?"}


@dataclass(frozen=True, slots=True)
class Score:
    """Grade of a response: ``aspects`` and their mean ``overall`` from 1 to 5; ``parsed``: an answer was found."""

    aspects: dict[str, float]
    overall: float
    parsed: bool


def score_response(prompt: Prompt, response: str) -> Score:
    """Grade ``response`` from the texts alone. Raises ``UserError`` for a prompt that is not of the toy world."""
    return score_task(parse_task(prompt), response)


def score_task(task: Task, response: str) -> Score:
    """Like ``score_response`` for a prompt that was parsed before."""
    text = plain_text(response)
    if isinstance(task, ItemsTask):
        shares = _grade_items(task, text)
    elif isinstance(task, NumberTask):
        shares = _grade_number(task, text)
    else:
        shares = _grade_choice(task, text)
    if shares is None:
        return Score(dict.fromkeys(ASPECTS, 1.0), 1.0, parsed=False)
    shares += (_concision(task, text),)
    aspects = {name: 1.0 + 4.0 * share for name, share in zip(ASPECTS, shares, strict=True)}
    return Score(aspects, sum(aspects.values()) / len(aspects), parsed=True)


def judge_preference(prompt: Prompt, a: str, b: str, *, length_bias: float = 0.0, temperature: float = 0.25) -> float:
    """Probability that the judge prefers ``a`` to ``b``: logistic in the difference of their scores.

    With ``length_bias`` 0 this is the oracle; with ``LENGTH_BIAS`` it is the uncontrolled judge, which adds
    ``length_bonus`` to each score. ``temperature`` is in points; 0 gives 1, 0.5 (equal) or 0.
    """
    task = parse_task(prompt)
    scores = [score_task(task, text).overall + length_bonus(text, length_bias) for text in (a, b)]
    gap = scores[0] - scores[1]
    if temperature == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 1.0 / (1.0 + math.exp(-gap / temperature))


def length_bonus(text: str, length_bias: float) -> float:
    """Points for length: proportional to the characters, ``length_bias`` from ``FULL_LENGTH`` on."""
    return length_bias * min(len(text.strip()) / FULL_LENGTH, 1.0)


def plain_text(response: str) -> str:
    """The response without headings and bold marks."""
    return re.sub(r"^#+[ \t]+.*$", "", response, flags=re.MULTILINE).replace("**", "").strip()


def _concision(task: Task, text: str) -> float:
    ideal = len(ideal_answer(task, random.Random(0)).split())
    excess = len(text.split()) - ideal - SPARE_WORDS
    return 1.0 - min(max(excess / LONG_WINDED, 0.0), 1.0)


def _grade_items(task: ItemsTask, text: str) -> tuple[float, ...] | None:
    numeric = bool(task.expected) and all(item.isdigit() for item in task.expected)
    found = find_items(text, numeric)
    if not found:
        return None
    given = [item for item, *_ in found]
    if task.expected:
        correctness = _common_subsequence(given, list(task.expected)) / len(given)
        right = sum(min(given.count(item), task.expected.count(item)) for item in set(task.expected))
    else:
        right = len({item for item in given if CATEGORY_OF[item] == task.category and item not in task.excluded})
        correctness = right / len(given)
    completeness = max(0.0, 1.0 - abs(task.count - right) / task.count)
    return correctness, completeness, _layout_share(task, text, found)


def _layout_share(task: ItemsTask, text: str, found: list[tuple[str, int, int]]) -> float:
    """Share of the items (or of the gaps between them) that are in the asked layout."""
    if task.layout in SEPARATORS:
        if len(found) == 1:
            line = next(line for line in text.splitlines() if found[0][0] in line.lower())
            return 1.0 if task.count == 1 and not re.match(r"\s*(?:[-*]|\d+[.)])\s", line) else 0.5
        separator = re.compile(SEPARATORS[task.layout])
        gaps = [text[left[2] : right[1]] for left, right in pairwise(found)]
        return sum(separator.fullmatch(gap) is not None for gap in gaps) / len(gaps)
    good = 0
    for number, (_, start, end) in enumerate(found, 1):
        line = text[text.rfind("\n", 0, start) + 1 : start]
        if task.layout == "bullets":
            good += re.fullmatch(r"\s*[-*] +", line) is not None
        elif task.layout == "numbered":
            good += re.fullmatch(rf"\s*{number}[.)] +", line) is not None
        else:
            good += re.search(r"\[ ?$", line) is not None and re.match(r" ?\]", text[end:]) is not None
    return good / len(found)


def _grade_number(task: NumberTask, text: str) -> tuple[float, ...] | None:
    numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    if not numbers:
        return None
    difference = abs(numbers[-1] - task.value)
    correctness = 1.0 if difference == 0 else max(0.0, 0.5 - difference / 10)
    lines = text.splitlines()
    if task.layout == "number":
        part = 1.0
        exact, near = re.fullmatch(r"\d+\.?", text), any(re.fullmatch(r"\W*\d+\.?", line) for line in lines)
    elif task.layout == "equation":
        part = sum(operand in numbers[:-1] for operand in (task.left, task.right)) / 2
        exact, near = re.search(r"\d+ ?[-+x*] ?\d+ ?= ?\d+", text), "=" in text
    else:
        part = 1.0 if task.unit is None or task.unit in text else 0.5
        sentence = r"[A-Z][a-z]*( [A-Za-z]+)+ \d+( [a-z]+)*\."
        exact, near = re.search(sentence, text), any(re.search(r"[a-z]+ \d+", line) for line in lines)
    return correctness, correctness * part, 1.0 if exact else 0.5 if near else 0.0


def _grade_choice(task: ChoiceTask, text: str) -> tuple[float, ...] | None:
    letters = [LETTERS.index(letter) for letter in re.findall(r"\b[A-D]\b", text)]
    words = [index for item, *_ in find_items(text, numeric=False) for index, o in enumerate(task.options) if item == o]
    if not letters and not words:
        return None
    answers = {*letters, *words}
    correctness = 1.0 / len(answers) if task.answer in answers else 0.0
    if task.layout == "letter":
        completeness = correctness * (1.0 if letters else 0.5)
        exact, near = re.fullmatch(r"[A-D][.)]?", text), bool(letters) and not words
    else:
        completeness = correctness * ((bool(letters) + bool(words)) / 2)
        exact, near = re.search(r"\b[A-D]\) [a-z]+", text), bool(letters) and bool(words)
    return correctness, completeness, 1.0 if exact else 0.5 if near else 0.0


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        previous = row
        row = [0]
        for index, right in enumerate(b):
            row.append(previous[index] + 1 if left == right else max(previous[index + 1], row[index]))
    return row[-1]
