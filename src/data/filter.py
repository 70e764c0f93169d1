"""Which training pairs are used: those whose scores are far enough apart."""

from __future__ import annotations

from src.data.pairs import PreferencePair
from src.errors import UserError

SHOWN = 3
"""Ids named of pairs without scores."""


class ScoreFilter:
    """Keeps pairs with |s_w − s_l| ≥ ``min_score_gap`` (GapPO's hard filter), and remembers what it saw.

    0 keeps every pair, scored or not. The gap does not depend on which response is the chosen one.
    """

    def __init__(self, min_score_gap: float) -> None:
        self.min_score_gap = min_score_gap
        self.reason = f"score gap below {min_score_gap:g}"
        self.seen = self.kept = 0
        self.largest = 0.0

    def keeps(self, pair: PreferencePair) -> bool:
        """Whether the pair is used; raises ``UserError`` for a pair without scores."""
        if not self.min_score_gap:
            return True
        gap = score_gap(pair)
        if gap is None:
            raise UserError(
                f"dataset.min_score_gap={self.min_score_gap:g} needs both scores of every training pair, but "
                f"'{pair.id}' has none; use a scored data set, or dataset.min_score_gap=0 (filter@dataset=none)"
            )
        self.seen += 1
        self.kept += gap >= self.min_score_gap
        self.largest = max(self.largest, gap)
        return gap >= self.min_score_gap

    def refuse_if_nothing_was_kept(self) -> None:
        """Raise ``UserError`` when pairs were seen and none was kept."""
        if self.seen and not self.kept:
            raise UserError(
                f"dataset.min_score_gap={self.min_score_gap:g} keeps none of the {self.seen} training pairs: the "
                f"largest score gap among them is {self.largest:g}; give at most that, in the unit of this data set's "
                "scores"
            )


def score_gap(pair: PreferencePair) -> float | None:
    """|s_w − s_l|; ``None`` unless both responses are scored."""
    if pair.chosen_score is None or pair.rejected_score is None:
        return None
    return abs(pair.chosen_score - pair.rejected_score)


def refuse_unscored(unscored: list[str], pairs: int, what: str) -> None:
    """Raise ``UserError`` when some of the ``pairs`` that ``what`` needs scores of have none."""
    if unscored:
        more = ", ..." if len(unscored) > SHOWN else ""
        raise UserError(
            f"{what} needs the scores of both responses, but {len(unscored)} of {pairs} pairs have none "
            f"({', '.join(unscored[:SHOWN])}{more}); give chosen_score and rejected_score for every pair, or use a "
            "scored data set (dataset=ultrafeedback_binarized) or a method without scores"
        )
