"""Listwise metrics against independent implementations, and by enumerating every tied order and every draw."""

from __future__ import annotations

from itertools import combinations, permutations
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from src.errors import UserError
from src.evaluation.lists.bootstrap import estimates, mean_of, ratio_of
from src.evaluation.lists.metrics import Gains, best_of, kendall, ndcg, random_ndcg, spearman


def cases(ties: bool, count: int = 12, seed: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rewards, scores) of 2 to 6 responses."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        m = int(rng.integers(2, 7))
        rewards = rng.integers(0, 3, m).astype(float) if ties else rng.normal(size=m)
        scores = rng.integers(1, 4, m).astype(float) if ties else rng.uniform(1, 5, m)
        scores[0] += 0.5 * (np.ptp(scores) == 0)
        found.append((rewards, scores))
    return found


def tied_orders(rewards: np.ndarray) -> list[tuple[int, ...]]:
    """Every order by descending reward."""
    m = len(rewards)
    return [order for order in permutations(range(m)) if all(np.diff(rewards[list(order)]) <= 0)]


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("ties", [False, True])
def test_ndcg_is_that_of_scikit_learn(ties: bool, kind: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for rewards, scores in cases(ties):
        gains = Gains(kind)(scores)
        for k in (1, 2, 3, None, 9):
            expected = metrics.ndcg_score([gains], [rewards], k=k, ignore_ties=not ties)
            assert ndcg(rewards, gains, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_ndcg_is_the_mean_over_tied_orders(ties: bool) -> None:
    for rewards, scores in cases(ties):
        gains = 2.0**scores - 1.0
        ideal = sorted(gains, reverse=True)
        for k in (1, 2, len(scores)):
            weights = [1 / np.log2(place + 2) for place in range(k)]
            bottom = sum(w * g for w, g in zip(weights, ideal, strict=False))
            values = [sum(weights[p] * gains[i] for p, i in enumerate(o[:k])) / bottom for o in tied_orders(rewards)]
            assert ndcg(rewards, Gains()(scores), k) == pytest.approx(fmean(values), abs=1e-12)
            everything = list(permutations(range(len(scores))))
            at_random = [sum(weights[p] * gains[i] for p, i in enumerate(o[:k])) / bottom for o in everything]
            assert random_ndcg(Gains()(scores), k) == pytest.approx(fmean(at_random), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties: bool) -> None:
    seen = 0
    for rewards, scores in cases(ties):
        if np.ptp(rewards) == 0:
            continue
        seen += 1
        assert kendall(rewards, scores) == pytest.approx(kendalltau(rewards, scores, variant="b").statistic, abs=1e-12)
        assert spearman(rewards, scores) == pytest.approx(spearmanr(rewards, scores).statistic, abs=1e-12)
    assert seen > 8


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_the_mean_over_all_draws(ties: bool) -> None:
    for rewards, scores in cases(ties):
        m = len(scores)
        for n in range(1, m + 1):
            values = []
            for draw in combinations(range(m), n):
                top = max(rewards[i] for i in draw)
                values.append(fmean(scores[i] for i in draw if rewards[i] == top))
            assert best_of(rewards, scores, [n])[0] == pytest.approx(fmean(values), abs=1e-12)


def test_best_of_many_is_exact_beyond_float64() -> None:
    """C(1200, 600) is no float64; the top response has a chance of one half."""
    scores = np.arange(1200.0)
    assert best_of(scores, scores, [1, 600, 1200, 1201])[:3] == pytest.approx([599.5, 1201 * 600 / 601 - 1, 1199.0])
    assert np.isnan(best_of(scores, scores, [1201])[0])


def test_what_says_nothing() -> None:
    scores, nothing = np.array([1.0, 2.0, 4.0]), np.zeros(3)
    assert (kendall(nothing, scores), spearman(nothing, scores)) == (0.0, 0.0)
    assert np.isnan(kendall(scores, nothing))
    assert np.isnan(spearman(scores, nothing))
    assert np.isnan(ndcg(scores, nothing))
    assert ndcg(nothing, Gains()(scores), 1) == pytest.approx((1 + 3 + 15) / 3 / 15)
    assert best_of(nothing, scores, [1, 2, 3]) == pytest.approx([7 / 3] * 3)


def test_perfect_and_reversed_orders() -> None:
    scores = np.array([1.0, 2.0, 4.0])
    assert (ndcg(scores, Gains()(scores)), kendall(scores, scores), spearman(scores, scores)) == (1.0, 1.0, 1.0)
    assert (kendall(-scores, scores), spearman(-scores, scores)) == (-1.0, -1.0)
    assert ndcg(-scores, Gains("linear")(scores), 1) == 0.25


def test_gains() -> None:
    scores = np.array([1.0, 3.0])
    assert Gains()(scores) == pytest.approx([1.0, 7.0])
    assert Gains("linear", 1.0)(scores).tolist() == [0.0, 2.0]
    assert Gains("exponential", None)(scores - 9) == pytest.approx([0.0, 3.0])
    with pytest.raises(UserError, match=r"score of -2 lies below zero=0.*zero=prompt"):
        Gains()(scores - 3)
    with pytest.raises(UserError, match=r"gains=linear"):
        Gains()(scores + 2000)
    with pytest.raises(UserError, match="gains=cubic is unknown; choose one of: exponential, linear"):
        Gains("cubic")


def test_bootstrap_of_means_and_ratios() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    holes = np.where(np.arange(400) < 100, np.nan, values)
    found = estimates(
        {
            "mean": mean_of(values, ""),
            "holes": mean_of(holes, ""),
            "ratio": ratio_of(2 * values + 8, values + 4, ""),
            "nothing": mean_of(np.full(400, np.nan), "why"),
        }
    )
    assert found["mean"]["value"] == pytest.approx(values.mean())
    error = values.std() / 20
    assert found["mean"]["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert found["mean"]["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert (found["holes"]["n"], found["holes"]["value"]) == (300, pytest.approx(values[100:].mean()))
    assert [found["ratio"][key] for key in ("value", "low", "high")] == pytest.approx([2.0] * 3)
    assert found["nothing"] == {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
    assert estimates({"one": mean_of(np.array([3.0]), "")})["one"]["low"] is None
