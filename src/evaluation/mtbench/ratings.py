"""Ratings in judges' words, and what the scores of MT-Bench are made of.

Source: Zheng et al. 2023, and FastChat's ``llm_judge`` (``common.run_judge_single``, ``show_result.py``). The rules:

* A rating is the first ``[[7]]`` or ``[[7.5]]`` of a judgment, else the first ``[7]``; a judgment with neither
  (FastChat stores -1) is *unparsable* and counts nowhere. A rating outside of 1 to 10 counts as it stands.
* Every (question, turn) has one rating. Judged again, the last judgment with a rating counts (``duplicates=last``);
  with ``duplicates=all`` every one counts, the rule of FastChat's ``show_result.py``. The same text twice is an
  *identical* duplicate, another text a *differing* one.
* First turn, second turn, a category and overall are each the mean over all scores that there are, not a mean of
  means. A (question, turn) without a judgment is *missing* and counts nowhere either.
* The text decides. A stored score that is another, or NaN, is counted and not used; without a text the stored score
  is used, and NaN (or null) is unparsable.
* There are no ties: an answer is graded alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from src.evaluation.benchmark import Scores
from src.evaluation.items import parted
from src.evaluation.statistics import Metric, mean_estimate, missing

RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]")
UNPARSABLE = -1
"""What FastChat stores for a judgment without a rating."""

LOWEST, HIGHEST = 1, 10
DUPLICATES = ("last", "all")
TURNS = ("first_turn", "second_turn")


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judgment of the answer to ``turn`` (from 1) of a question. ``text``: the judge's; ``None`` where only a score
    was kept. ``stored``: the score that stands beside it, ``None`` where there is none."""

    question: str
    turn: int
    text: str | None
    stored: float | None = None

    @property
    def rating(self) -> float | None:
        """What counts; ``None``: nothing."""
        if self.text is not None:
            return parse_rating(self.text)
        given = self.stored is not None and math.isfinite(self.stored) and self.stored != UNPARSABLE
        return self.stored if given else None

    @property
    def differs(self) -> bool:
        """Whether the stored score is not what the text says."""
        if self.text is None or self.stored is None:
            return False
        rating = self.rating
        return self.stored != (UNPARSABLE if rating is None else rating)


def parse_rating(text: str) -> float | None:
    """The rating in a judgment, or ``None``."""
    match = RATING.search(text) or SINGLE_BRACKETS.search(text)
    value = float(match.group(1)) if match else math.inf
    return value if math.isfinite(value) else None


def counting(judgments: Sequence[Judgment], duplicates: str) -> list[Judgment]:
    """Those with a rating that enter the means, in the order of the first judgment of each (question, turn)."""
    rated = [judgment for judgment in judgments if judgment.rating is not None]
    if duplicates == "all":
        return rated
    return list({(judgment.question, judgment.turn): judgment for judgment in rated}.values())


def counts_of(judgments: Sequence[Judgment], used: Sequence[Judgment], expected: int) -> dict[str, int]:
    """How many judgments fell under which rule; ``expected``: how many (question, turn) there are."""
    seen: dict[tuple[str, int], set[str | float | None]] = {}
    duplicates: Counter[str] = Counter()
    for judgment in judgments:
        key, content = (
            (judgment.question, judgment.turn),
            judgment.text if judgment.text is not None else judgment.rating,
        )
        if key in seen:
            duplicates["identical" if content in seen[key] else "differing"] += 1
        seen.setdefault(key, set()).add(content)
    return {
        "judgments": len(judgments),
        "scores": len(used),
        "unparsable": sum(judgment.rating is None for judgment in judgments),
        "missing": expected - len(seen),
        "duplicates_identical": duplicates["identical"],
        "duplicates_differing": duplicates["differing"],
        "stored_scores_differ": sum(judgment.differs for judgment in judgments),
        "stored_scores_nan": sum(judgment.stored is not None and math.isnan(judgment.stored) for judgment in judgments),
        "out_of_scale": sum(not LOWEST <= (judgment.rating or LOWEST) <= HIGHEST for judgment in used),
    }


def score(judgments: Sequence[Judgment], categories: Mapping[str, str], turns: int, duplicates: str = "last") -> Scores:
    """The scores of one model. ``categories``: question -> category, of all questions; ``turns`` of each.

    Means on the judge's scale (1 to 10) with 95 % bootstrap intervals over questions, whose turns are drawn together.
    """
    used = counting(judgments, duplicates)
    metrics = {"overall": mean_of(used, "no judgment has a rating")}
    for turn in range(1, turns + 1):
        name = TURNS[turn - 1] if turn <= len(TURNS) else f"turn_{turn}"
        metrics[name] = mean_of((j for j in used if j.turn == turn), "no judgment of this turn has a rating")
    for category in dict.fromkeys(categories.values()):
        own = (judgment for judgment in used if categories[judgment.question] == category)
        metrics[f"category/{category}"] = mean_of(own, "no judgment of this category has a rating")
    counts = counts_of(judgments, used, len(categories) * turns)
    return Scores(metrics, counts, tuple(notes_of(judgments, counts, duplicates)), items=items_of(used))


def items_of(used: Sequence[Judgment]) -> dict[str, dict[str, float]]:
    """Rating by ``question#turn``, overall and of each turn; the mean of several of one answer (duplicates=all)."""
    ratings: dict[tuple[str, int], list[float]] = {}
    for judgment in used:
        if judgment.rating is not None:
            ratings.setdefault((judgment.question, judgment.turn), []).append(judgment.rating)
    items: dict[str, dict[str, float]] = {"overall": {}}
    for (question, turn), values in ratings.items():
        (name,) = parted([question], [str(turn)])
        own = TURNS[turn - 1] if turn <= len(TURNS) else f"turn_{turn}"
        items["overall"][name] = items.setdefault(own, {})[name] = sum(values) / len(values)
    return items


def mean_of(judgments: Iterable[Judgment], reason: str) -> Metric:
    """Mean rating with its interval; a missing metric with ``reason`` where there are none."""
    pairs = [(judgment.rating, judgment.question) for judgment in judgments]
    ratings = [rating for rating, _ in pairs if rating is not None]
    return mean_estimate(ratings, [question for _, question in pairs]) if ratings else missing(reason)


def notes_of(judgments: Sequence[Judgment], counts: Mapping[str, int], duplicates: str) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    if counts["missing"]:
        notes.append(f"{counts['missing']} answers have no judgment; the means are over those that have one")
    if counts["unparsable"]:
        notes.append(f"{counts['unparsable']} judgments have no rating and are left out")
    if counts["duplicates_identical"] or counts["duplicates_differing"]:
        last, every = (overall(counting(judgments, rule)) for rule in DUPLICATES)
        notes.append(
            f"{counts['duplicates_identical']} judgments are there twice and {counts['duplicates_differing']} answers "
            f"were judged again; duplicates={duplicates}: overall {last} where the last rating counts, {every} where "
            "every one does (FastChat's show_result.py)"
        )
    if counts["stored_scores_differ"]:
        first = next(judgment for judgment in judgments if judgment.differs)
        place = f"question {first.question}, turn {first.turn}, stored {first.stored:g}, said {spoken(first.rating)}"
        notes.append(
            f"{counts['stored_scores_differ']} stored scores are not what the judgment says (first: {place}); the "
            "judgment counts"
        )
    if counts["out_of_scale"]:
        notes.append(f"{counts['out_of_scale']} ratings are outside of {LOWEST} to {HIGHEST}; they count as they stand")
    return notes


def spoken(rating: float | None) -> str:
    """A rating in a note."""
    return "none" if rating is None else f"{rating:g}"


def overall(judgments: Sequence[Judgment]) -> str:
    """The mean rating in a note."""
    ratings = [judgment.rating for judgment in judgments if judgment.rating is not None]
    return f"{sum(ratings) / len(ratings):.6g}" if ratings else "none"
