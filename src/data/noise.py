"""Noise: what is done to training pairs on purpose (never to the validation split).

Every draw is a hash of seed and pair id, so a pair's fate depends on no other pair's place, process or rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, Protocol, runtime_checkable

from src.data.pairs import PreferencePair
from src.data.splits import uniform
from src.errors import UserError


@runtime_checkable
class Noise(Protocol):
    """A function of one pair alone, so independent of order, ranks and epochs."""

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, changed or not."""

    def describe(self) -> dict[str, Any]:
        """Kind and settings, as they stand in the manifest and its key."""


@runtime_checkable
class Surveying(Protocol):
    """A noise that has to see all training pairs before it can decide about one."""

    def surveyed(self, pairs: Iterable[PreferencePair]) -> tuple[Noise, dict[str, Any]]:
        """The noise to apply, and what was found, for the manifest; order does not matter."""


def settled(noise: Noise, pairs: Iterable[PreferencePair]) -> tuple[Noise, dict[str, Any]]:
    """The noise to apply to ``pairs``, and its findings; they are read only when the noise needs to see them."""
    return noise.surveyed(pairs) if isinstance(noise, Surveying) else (noise, {})


Favours = Literal["shorter", "longer"]
"""Which response a flip by length makes the chosen one."""


@dataclass(frozen=True)
class NoNoise:
    """Labels as they are."""

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair itself."""
        return pair

    def describe(self) -> dict[str, Any]:
        """``{"kind": "none"}``."""
        return {"kind": "none"}


@dataclass(frozen=True)
class RandomFlip:
    """Exchange chosen and rejected of pair *i* when uniform(sha256(seed ‖ pair id)) < rate.

    The pairs flipped at a lower rate are among those flipped at a higher one.
    Raises ``UserError`` unless ``0 <= rate <= 1``.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        require_rate(self.rate)

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, flipped if its id is drawn; scores and writers stay with their response."""
        return flip(pair) if draw(self.seed, pair) < self.rate else pair

    def describe(self) -> dict[str, Any]:
        """Kind, rate and seed."""
        return {"kind": "random_flip", "rate": float(self.rate), "seed": self.seed}


@dataclass(frozen=True)
class LengthFlip:
    """Exchange chosen and rejected of pairs whose chosen response is the longer one: "shorter is better".

    GAPO (section 6.2, Table B) names the bias and its rates, not the rule. Ours: a pair is *eligible* when its chosen
    response has more characters (Unicode code points) than its rejected one; an eligible pair is flipped when
    ``RandomFlip`` of the same rate and seed would flip it. So the drawn share of the pairs is labelled by length
    alone, a pair whose shorter response is chosen already stays, and ``rate=1`` makes the shorter one chosen
    everywhere but for ties.

    Other readings: ``over="all"`` takes the rate as the share of *all* training pairs that is flipped, so an eligible
    pair is drawn more often, as many times as all pairs outnumber the eligible; refused when there are too few.
    ``pick="longest"`` draws nothing: the pairs whose chosen response exceeds the rejected one by most are flipped
    first, until the rate is met to the nearest pair (ties by the draw). It is the strongest form of the bias.
    ``favours="longer"`` turns it round: the authors' script, whose comment says the opposite, flips pairs whose chosen
    response is the *shorter* one. Lengths in tokens would make the flipped pairs depend on tokenizer and truncation, so
    they are not offered.

    Flips at a lower rate are among those at a higher one, in every reading.
    Raises ``UserError`` for a rate outside 0 to 1, and when prepared for pairs of which none is eligible.
    """

    rate: float
    seed: int = 0
    over: Literal["eligible", "all"] = "eligible"
    pick: Literal["drawn", "longest"] = "drawn"
    favours: Favours = "shorter"

    def __post_init__(self) -> None:
        require_rate(self.rate)

    def surveyed(self, pairs: Iterable[PreferencePair]) -> tuple[Noise, dict[str, Any]]:
        """The flip with its rate, or the place of its last pair, made out; findings: pairs seen and eligible ones.

        Raises ``UserError`` when there is nothing to flip, or not enough of it.
        """
        seen, places = 0, []
        for pair in pairs:
            seen += 1
            if (found := excess(pair, self.favours)) > 0:
                places.append((found, -draw(self.seed, pair)))
        self._refuse_too_few(seen, len(places))
        share = self.rate if self.over == "eligible" else self.rate * seen / max(len(places), 1)
        findings = {"pairs": seen, "eligible": len(places)}
        if self.pick == "longest":
            count = math.floor(share * len(places) + 0.5)
            last = sorted(places, reverse=True)[count - 1] if count else None
            return FlipFrom(last, self.seed, self.favours), findings
        return LengthFlip(min(1.0, share), self.seed, favours=self.favours), findings

    def _refuse_too_few(self, seen: int, eligible: int) -> None:
        if self.rate and seen and not eligible:
            raise UserError(
                f"noise=length_flip with favours={self.favours} flips pairs whose rejected response is the "
                f"{self.favours} one, but none of the {seen} training pairs is such; "
                "use noise=random_flip, or noise=none"
            )
        if self.over == "all" and self.rate * seen > eligible:
            most = math.floor(1e4 * eligible / seen) / 1e4
            raise UserError(
                f"noise.rate={self.rate:g} of all {seen} training pairs cannot be flipped: only {eligible} have the "
                f"{self.favours} response rejected; give noise.rate={most:g} or less, or noise.over=eligible"
            )

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, flipped if it is eligible and its id is drawn; needs ``surveyed`` first for the other readings."""
        assert (self.over, self.pick) == ("eligible", "drawn"), "surveyed() makes the rule out"
        return flip(pair) if excess(pair, self.favours) > 0 and draw(self.seed, pair) < self.rate else pair

    def describe(self) -> dict[str, Any]:
        """Kind, rate, seed and reading."""
        settings = {"rate": float(self.rate), "seed": self.seed, "over": self.over, "pick": self.pick}
        turned = {} if self.favours == "shorter" else {"favours": self.favours}
        return {"kind": "length_flip", **settings, "unit": "characters", **turned}


@dataclass(frozen=True)
class FlipFrom:
    """Flips the pairs whose (excess of characters, −draw) is at least ``last``; none where that is ``None``."""

    last: tuple[int, float] | None
    seed: int
    favours: Favours = "shorter"

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, flipped if it lies far enough up."""
        place = (excess(pair, self.favours), -draw(self.seed, pair))
        return flip(pair) if self.last is not None and place >= self.last else pair

    def describe(self) -> dict[str, Any]:
        """Kind and place of the last pair."""
        return {"kind": "flip_from", "last": self.last, "seed": self.seed}


@dataclass(frozen=True)
class ScoreNoise:
    """Add sd · z to both annotation scores, z standard normal by hash of seed, pair id and side.

    ``sd`` is in the unit of the scores. A larger sd moves every score further the same way. Labels stay as they are,
    so methods that read scores see an unreliable annotator where others see nothing; the gap |s_w − s_l| they read is
    that of the noisy scores, and so is what ``dataset.min_score_gap`` filters by. With ``relabel`` the label follows
    the noisy scores: a pair whose chosen response then scores less than its rejected one is flipped (a tie is not),
    whether the noise did that or the label had contradicted the scores before.

    Raises ``UserError`` for an sd that is negative or no finite number, and for a pair without scores.
    """

    sd: float
    seed: int = 0
    relabel: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.sd) or not 0 <= self.sd < math.inf:
            raise UserError(
                f"noise.sd={self.sd} must be a number from 0 up: the standard deviation of the noise, in the unit of "
                "the scores (0.5)"
            )

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair with noisy scores, flipped if they contradict its label and ``relabel`` asks for it."""
        if pair.chosen_score is None or pair.rejected_score is None:
            raise UserError(
                f"noise=score_noise needs both scores of every training pair, but '{pair.id}' has none; use a scored "
                "data set, noise=random_flip, or noise=none"
            )
        chosen, rejected = (
            score + self.sd * normal(self.seed, f"score:{side}:{pair.id}")
            for side, score in (("chosen", pair.chosen_score), ("rejected", pair.rejected_score))
        )
        noisy = replace(pair, chosen_score=chosen, rejected_score=rejected)
        return flip(noisy) if self.relabel and chosen < rejected else noisy

    def describe(self) -> dict[str, Any]:
        """Kind, sd, seed and whether labels follow."""
        return {"kind": "score_noise", "sd": float(self.sd), "seed": self.seed, "relabel": self.relabel}


def flip(pair: PreferencePair) -> PreferencePair:
    """``pair`` with chosen and rejected exchanged; ``flipped`` is turned over, so flipping twice gives it back."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
        chosen_writer=pair.rejected_writer,
        rejected_writer=pair.chosen_writer,
        flipped=not pair.flipped,
    )


def draw(seed: int, pair: PreferencePair) -> float:
    """The number in [0, 1) by which a pair is flipped: below the rate."""
    return uniform(seed, "flip:" + pair.id)


def excess(pair: PreferencePair, favours: Favours) -> int:
    """By how many characters the chosen response is longer than the rejected one, or shorter for ``longer``."""
    longer = len(pair.chosen) - len(pair.rejected)
    return longer if favours == "shorter" else -longer


def normal(seed: int, key: str) -> float:
    """A standard normal number that depends on seed and key alone.

    Rounded to nine decimals, so that the last bit of a machine's logarithm does not change prepared data.
    """
    return round(NormalDist().inv_cdf(uniform(seed, key) + 2.0**-54), 9)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_rate(rate: Any) -> None:
    """Raise ``UserError`` unless ``rate`` is a number from 0 to 1."""
    if not is_number(rate) or not 0 <= rate <= 1:
        raise UserError(f"noise.rate={rate} must be a number from 0 to 1 (0.3 flips three labels in ten)")
