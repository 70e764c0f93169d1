"""How well rewards rank the responses to one prompt: NDCG@k, Kendall's tau-b, Spearman's rho, best-of-n.

Everywhere ``rewards`` and ``scores`` are [m], one entry per response, finite; scores are the ground truth, higher is
better. Responses of equal reward are tied: every order of them is equally likely, and NDCG and best-of-n are exact
expectations over those orders, so the order of a file never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from src.errors import UserError

Floats = npt.NDArray[np.float64]
GAINS = ("exponential", "linear")


@dataclass(frozen=True)
class Gains:
    """What a response of a score is worth to NDCG: with rel = score − zero, 2^rel − 1 (``exponential``; Burges et al.
    2005, the usual one of learning to rank) or rel (``linear``; Järvelin & Kekäläinen 2002, scikit-learn).

    ``zero``: the score that is worth nothing; ``None`` takes the prompt's lowest, so that a constant added to all
    scores of a prompt changes nothing.
    """

    kind: str = "exponential"
    zero: float | None = 0.0

    def __post_init__(self) -> None:
        if self.kind not in GAINS:
            raise UserError(f"gains={self.kind} is unknown; choose one of: {', '.join(GAINS)}")

    def __call__(self, scores: Floats) -> Floats:
        """[m]; raises ``UserError`` where a score lies below ``zero``, since NDCG has no negative gains."""
        relevance = scores - (scores.min() if self.zero is None else self.zero)
        if (relevance < 0).any():
            raise UserError(
                f"a score of {scores.min():g} lies below zero={self.zero:g}, and NDCG knows no negative gain; give "
                "zero=prompt (the lowest score of each prompt is worth nothing), or zero= the lowest score there can be"
            )
        if self.kind == "linear":
            return relevance
        if relevance.max() > 1000:
            raise UserError(
                f"gains=exponential of a score of {scores.max():g} is 2^{relevance.max():g}, beyond what can be "
                "computed; give gains=linear, or scores of a smaller unit"
            )
        exponential: Floats = np.expm1(relevance * np.log(2.0))
        return exponential


def ndcg(rewards: Floats, gains: Floats, k: int | None = None) -> float:
    """sum_{i<=k} gain(i) / log2(i + 1), by descending reward, divided by the same by descending gain.

    ``k`` ``None`` or beyond m: all of them. NaN when all gains are 0. A tied group shares the mean of its gains.
    """
    discounts = _discounts(len(gains), k)
    ideal = float(np.sort(gains)[::-1] @ discounts)
    return float(shared(rewards, gains) @ discounts) / ideal if ideal else float("nan")


def random_ndcg(gains: Floats, k: int | None = None) -> float:
    """What a random order has in the mean; NaN when all gains are 0."""
    return ndcg(np.zeros(len(gains)), gains, k)


def shared(rewards: Floats, values: Floats) -> Floats:
    """``values`` by descending reward, each the mean of its tied group; [m]."""
    _, group, sizes = np.unique(-rewards, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / sizes
    result: Floats = np.repeat(means, sizes)
    return result


def _discounts(m: int, k: int | None) -> Floats:
    discounts: Floats = 1.0 / np.log2(np.arange(2, m + 2))
    if k is not None:
        discounts[k:] = 0.0
    return discounts


def kendall(rewards: Floats, scores: Floats) -> float:
    """tau-b = (concordant − discordant) / sqrt((pairs − ties in reward)(pairs − ties in score)), Kendall 1945.

    0 when all rewards are equal (they say nothing of the order); NaN when all scores are.
    """
    upper = np.triu_indices(len(scores), 1)
    x, y = (np.sign(values[:, None] - values[None, :])[upper] for values in (rewards, scores))
    untied = float(np.count_nonzero(x)) * float(np.count_nonzero(y))
    if not np.count_nonzero(y):
        return float("nan")
    return float(x @ y) / untied**0.5 if untied else 0.0


def spearman(rewards: Floats, scores: Floats) -> float:
    """Pearson correlation of the average ranks. 0 when all rewards are equal; NaN when all scores are."""
    if np.ptp(scores) == 0:
        return float("nan")
    if np.ptp(rewards) == 0:
        return 0.0
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (rewards, scores))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def best_of(rewards: Floats, scores: Floats, sizes: Sequence[int]) -> Floats:
    """Expected score of the response of the highest reward among n drawn without replacement; [sizes].

    Exact, without enumerating the C(m, n) draws: the highest drawn reward is that of tied group g with probability
    (C(N_g, n) − C(N_{g−1}, n)) / C(m, n), N_g the number of responses of reward up to g's; the pick is then any member
    of g alike. n = 1 is the mean score, n = m the score of the top response. NaN for n > m.
    """
    m = len(scores)
    _, group, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=scores) / counts
    up_to = [0, *np.cumsum(counts).tolist()]
    values = np.full(len(sizes), np.nan)
    for place, n in enumerate(sizes):
        if 1 <= n <= m:
            total = comb(m, n)
            draws = [comb(size, n) for size in up_to]  # exact integers: they may exceed float64
            chances = np.array([(high - low) / total for low, high in pairwise(draws)])
            values[place] = chances @ means
    return values
