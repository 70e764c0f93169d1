"""Label noise: what is done to training pairs on purpose (never to the validation split)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from src.data.pairs import PreferencePair
from src.data.splits import uniform
from src.errors import UserError


@runtime_checkable
class Noise(Protocol):
    """A function of one pair alone, so independent of order, ranks and epochs."""

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, flipped or not."""

    def describe(self) -> dict[str, Any]:
        """Kind and settings, as they stand in the manifest and its key."""


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
        if not isinstance(self.rate, (int, float)) or not 0 <= self.rate <= 1:
            raise UserError(f"noise.rate={self.rate} must be a number from 0 to 1 (0.3 flips three labels in ten)")

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair, flipped if its id is drawn; scores and writers stay with their response."""
        return flip(pair) if uniform(self.seed, "flip:" + pair.id) < self.rate else pair

    def describe(self) -> dict[str, Any]:
        """Kind, rate and seed."""
        return {"kind": "random_flip", "rate": float(self.rate), "seed": self.seed}


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
