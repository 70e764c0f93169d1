"""From several scored responses to preference pairs: what every source of such responses shares."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol, TypeVar, runtime_checkable

from src.data.pairs import PreferencePair, ScoredResponse, ScoredResponses
from src.data.sources.base import PairSource, Skipped, Source
from src.data.splits import digest
from src.errors import UserError

Item = TypeVar("Item", bound="ScoredResponses | Skipped")
PAIRINGS = ("best_worst", "all_pairs", "random")


@runtime_checkable
class ScoredSource(Source, Protocol):
    """A source that also has all responses to each prompt, with scores and, where they are known, writers."""

    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses, prompt by prompt, in a fixed order with ids that do not repeat."""


@dataclass(frozen=True)
class Pairing:
    """How pairs are made of the scored responses to one prompt.

    ``kind``: ``best_worst`` (highest against lowest score), ``all_pairs`` (every two responses), or ``random``
    (``pairs_per_prompt`` of them, drawn without replacement by ``seed`` and prompt id, whatever the order of
    the data). ``min_gap``: smallest score difference (source's unit) of a pair; tied scores never make a pair.
    Raises ``UserError`` for settings that cannot work.
    """

    kind: str = "best_worst"
    min_gap: float = 0.0
    pairs_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        key, count = "dataset.source", self.pairs_per_prompt
        if self.kind not in PAIRINGS:
            raise UserError(f"{key}.pairing={self.kind} is unknown; use one of {', '.join(PAIRINGS)}")
        if not isinstance(self.min_gap, (int, float)) or not 0 <= self.min_gap < math.inf:
            raise UserError(f"{key}.min_gap={self.min_gap} must be a number from 0 on (a difference of scores)")
        if self.kind == "random" and (not isinstance(count, int) or count < 1):
            raise UserError(f"{key}.pairing=random needs {key}.pairs_per_prompt, a number from 1 on")
        if self.kind != "random" and count is not None:
            raise UserError(
                f"{key}.pairs_per_prompt={count} has no meaning with pairing={self.kind}; "
                "leave it null or set pairing=random"
            )

    def options(self) -> dict[str, Any]:
        """Pairing, gap and, for random pairs, their number and seed."""
        chosen: dict[str, Any] = {"pairing": self.kind, "min_gap": float(self.min_gap)}
        if self.kind == "random":
            chosen |= {"pairs_per_prompt": self.pairs_per_prompt, "seed": self.seed}
        return chosen

    def pairs_of(self, item: ScoredResponses) -> Iterator[PreferencePair | Skipped]:
        """Pairs named ``<prompt id>/<place of chosen>-<place of rejected>``, and what made none.

        A response without a score is skipped by itself; the others still make pairs.
        """
        scored = [place for place, response in enumerate(item.responses) if response.score is not None]
        for place in sorted(set(range(len(item.responses))) - set(scored)):
            yield Skipped(f"{item.id}/{place}", "response without a score")
        if len(scored) < 2:
            few = "fewer than two responses" if len(item.responses) < 2 else "fewer than two scored responses"
            yield Skipped(item.id, few)
            return
        made = []
        for first, second in self._candidates(item, scored):
            pair = self.pair(item, first, second)
            if isinstance(pair, Skipped):
                yield pair
            else:
                made.append(pair)
        if self.kind == "random":
            made = _draw(made, self.pairs_per_prompt or 0, digest(self.seed, item.id))
        yield from made

    def _candidates(self, item: ScoredResponses, scored: list[int]) -> list[tuple[int, int]]:
        return [best_and_worst(item, scored)] if self.kind == "best_worst" else list(combinations(scored, 2))

    def pair(self, item: ScoredResponses, first: int, second: int) -> PreferencePair | Skipped:
        """The pair of two scored responses, the better one chosen; why there is none for a tie or a small gap."""
        if score_of(item.responses[first]) < score_of(item.responses[second]):
            first, second = second, first
        chosen, rejected = item.responses[first], item.responses[second]
        identity, gap = f"{item.id}/{first}-{second}", score_of(chosen) - score_of(rejected)
        if gap == 0:
            return Skipped(identity, "tied scores")
        if gap < self.min_gap:
            return Skipped(identity, "score gap below min_gap")
        return PreferencePair(
            identity,
            item.prompt,
            chosen.text,
            rejected.text,
            chosen_score=chosen.score,
            rejected_score=rejected.score,
            chosen_writer=chosen.writer,
            rejected_writer=rejected.writer,
        )


class PairedResponses(PairSource):
    """Base of the sources that make their pairs of scored responses, by the settings below.

    A source whose prompts all have a single response is refused: there is nothing to compare.
    """

    pairing: str
    min_gap: float
    pairs_per_prompt: int | None
    seed: int

    @abstractmethod
    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses to each prompt."""

    def how(self) -> Pairing:
        """The pairing; raises ``UserError`` for settings that cannot work."""
        return Pairing(self.pairing, self.min_gap, self.pairs_per_prompt, self.seed)

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """The pairs of every prompt, and what made none."""
        how = self.how()
        for item in comparable(self.scored_responses()):
            yield from how.pairs_of(item)

    def options(self) -> dict[str, Any]:
        """The pairing's settings."""
        return self.how().options()


def comparable(items: Iterable[Item]) -> Iterator[Item]:
    """``items``; raises ``UserError`` after the last of them when none had two responses."""
    seen = most = 0
    for item in items:
        if isinstance(item, ScoredResponses):
            seen, most = seen + 1, max(most, len(item.responses))
        yield item
    if seen and most < 2:
        raise UserError(
            f"none of the {seen} prompts of dataset.source has two responses, so there is nothing to compare; give "
            "data with several responses a prompt, or pairs (dataset=local)"
        )


def best_and_worst(item: ScoredResponses, places: Sequence[int]) -> tuple[int, int]:
    """Of these two scored responses or more the one of highest and the one of lowest score; the first two in a tie."""
    best = max(places, key=lambda place: score_of(item.responses[place]))
    worst = min(places, key=lambda place: score_of(item.responses[place]))
    return (best, worst) if best != worst else (places[0], places[1])


def score_of(response: ScoredResponse) -> float:
    """The score of a response that has one."""
    assert response.score is not None
    return response.score


def _draw(pairs: list[PreferencePair], count: int, seed: bytes) -> list[PreferencePair]:
    """``count`` of ``pairs`` (all, when there are no more), drawn by ``seed``, in their first order."""
    if len(pairs) <= count:
        return pairs
    places = random.Random(seed).sample(range(len(pairs)), count)
    return [pairs[place] for place in sorted(places)]
