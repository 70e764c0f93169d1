"""From a judge's text to a verdict: the two rule sets of Arena-Hard's owners.

``v0.1`` (gen_judgment.py and show_result.py of 2024): every ``[[label]]`` of the text must be the same; five labels.
``current`` (the scripts of 2025): the text in capitals, ``[[label]]`` or failing that ``[label]``, the last one wins;
``A<B``, ``A<<B``, ``B=A``, ``B<A`` and ``B<<A`` are labels too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
SINGLE = re.compile(r"\[([AB<>=]+)\]")

STRONG = 3
"""Battles that a ``>>`` counts as; every other verdict is one battle."""

FIVE: Mapping[str, tuple[float, int]] = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG),
}
"""Label -> (points of A, battles)."""

TEN: Mapping[str, tuple[float, int]] = {
    **FIVE,
    "B<<A": (1.0, STRONG),
    "B<A": (1.0, 1),
    "B=A": (0.5, 1),
    "A<B": (0.0, 1),
    "A<<B": (0.0, STRONG),
}


@dataclass(frozen=True)
class Verdict:
    """What one game came to. ``label``: as found in the text, ``None`` for none; ``problem``: why it counts nothing
    ("" where it counts): no label, contradictory labels, unknown label, no judgment."""

    label: str | None
    problem: str = ""


NO_LABEL, CONTRADICTORY, UNKNOWN, ABSENT = "no label", "contradictory labels", "unknown label", "no judgment"


@dataclass(frozen=True)
class Rules:
    """A named way of getting from texts to a score.

    ``labels``: what counts; ``attempts``: how often the judge is asked until there is a label; ``whole``: only
    questions both of whose games have a verdict count; ``percentiles``: of the bootstrap, for the interval.
    """

    name: str
    labels: Mapping[str, tuple[float, int]]
    attempts: int
    whole: bool
    percentiles: tuple[float, float]

    def read(self, text: str) -> Verdict:
        """The verdict of a judge's text."""
        return self.known(self.labels_of(text))

    def known(self, found: list[str]) -> Verdict:
        """The verdict that labels in the order of the text come to."""
        if not found:
            return Verdict(None, NO_LABEL)
        if self.name == "v0.1" and len(set(found)) > 1:
            return Verdict(None, CONTRADICTORY)
        label = found[-1]
        return Verdict(label, "" if label in self.labels else UNKNOWN)

    def labels_of(self, text: str) -> list[str]:
        """Every label in a text, in its order."""
        if self.name == "v0.1":
            return DOUBLE.findall(text)
        upper = text.upper()
        return DOUBLE.findall(upper) or SINGLE.findall(upper)

    def points(self, verdict: Verdict, *, swapped: bool) -> tuple[float, ...]:
        """The model's points, one entry per battle: 1 won, 0.5 tied, 0 lost; () where the verdict counts nothing.

        ``swapped``: the game in which the model was shown as A. In the other it was B.
        """
        if verdict.problem or verdict.label is None:
            return ()
        a, battles = self.labels[verdict.label]
        return (a if swapped else 1.0 - a,) * battles


RULES: Mapping[str, Rules] = {
    "v0.1": Rules("v0.1", FIVE, attempts=2, whole=False, percentiles=(2.5, 97.5)),
    "current": Rules("current", TEN, attempts=1, whole=True, percentiles=(5.0, 95.0)),
}
