"""Ranking metrics against hand-computed cases, scipy, brute-force resampling and the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from src.errors import UserError
from src.evaluation import statistics as st

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors.json"
PAIRS = {
    "chosen_sum": [-2.0, -9.0, -6.0, -4.0],
    "rejected_sum": [-3.0, -8.0, -6.0, -1.0],
    "chosen_tokens": [1, 9, 3, 4],
    "rejected_tokens": [2, 4, 3, 0],
}
REFERENCE = {"reference_chosen_sum": [-2.5, -9.0, -7.0, -4.5], "reference_rejected_sum": [-3.0, -7.0, -7.0, -2.0]}
SCORES = {"chosen_scores": [5.0, 4.0, 3.0, 4.0], "rejected_scores": [1.0, 3.5, 3.0, 2.0]}


def values(metrics: dict[str, st.Metric]) -> dict[str, float | None]:
    return {name: metric["value"] for name, metric in metrics.items()}


def test_hand_computed_ranking() -> None:
    got = values(st.ranking_metrics(**PAIRS, **REFERENCE, **SCORES))
    # averages: chosen -2, -1, -2, -1; rejected -1.5, -2, -2, -1 (no token: the sum itself); ties are wrong
    assert got["accuracy/average"] == 0.25
    assert got["accuracy/sum"] == 0.25
    # log-ratios: chosen .5, 0, 1, .5; rejected 0, -1, 1, 1
    assert got["accuracy/reference"] == 0.5
    assert got["lengths/chosen_mean"] == 4.25
    assert got["lengths/rejected_mean"] == 2.25
    pooled = [-2, -1, -2, -1, -1.5, -2, -2, -1], [5, 4, 3, 4, 1, 3.5, 3, 2]
    assert got["spearman/average"] == pytest.approx(stats.spearmanr(*pooled).statistic)
    ratios = [0.5, 0, 1, 0.5, 0, -1, 1, 1]
    assert got["spearman/reference"] == pytest.approx(stats.spearmanr(ratios, pooled[1]).statistic)


def test_every_metric_is_always_there_and_says_why_it_is_null() -> None:
    metrics = st.ranking_metrics(**PAIRS)
    assert set(metrics) == set(st.METRICS)
    assert metrics["accuracy/reference"]["value"] is None
    assert "reference" in metrics["accuracy/reference"]["reason"]
    assert "no scores" in metrics["spearman/average"]["reason"]


def test_constant_scores_give_null_and_not_zero() -> None:
    metric = st.ranking_metrics(**PAIRS, chosen_scores=[3] * 4, rejected_scores=[3] * 4)["spearman/average"]
    assert metric["value"] is None
    assert "all scores are equal" in metric["reason"]
    assert st.spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert st.spearman_d2([1.0, 2.0], [3.0, 3.0]) is None


def test_score_gap_is_inclusive_absolute_and_drops_unscored() -> None:
    scores = {"chosen_scores": [5.0, 1.0, 3.0, None], "rejected_scores": [3.0, 4.0, 3.0, 2.0]}
    metrics = st.ranking_metrics(**PAIRS, **scores, min_score_gap=2.0)
    assert metrics["accuracy/sum"]["n"] == 2
    assert metrics["accuracy/sum"]["value"] == 0.5
    assert st.ranking_metrics(**PAIRS, **scores)["accuracy/sum"]["n"] == 4
    none_left = st.ranking_metrics(**PAIRS, **scores, min_score_gap=9.0)["accuracy/sum"]
    assert none_left["value"] is None
    assert "9.0" in none_left["reason"]
    assert "needs scores" in st.ranking_metrics(**PAIRS, min_score_gap=1.0)["accuracy/average"]["reason"]


def test_unscored_pairs_leave_the_correlation_but_not_the_accuracy() -> None:
    scores = {"chosen_scores": [5.0, 4.0, 3.0, None], "rejected_scores": [1.0, float("nan"), 3.5, 2.0]}
    metrics = st.ranking_metrics(**PAIRS, **scores)
    assert metrics["accuracy/sum"]["n"] == 4
    assert metrics["spearman/average"]["n"] == 4
    expected = stats.spearmanr([-2, -2, -1.5, -2], [5, 3, 1, 3.5]).statistic
    assert metrics["spearman/average"]["value"] == pytest.approx(expected)


def test_clean_and_flipped_apart_only_when_something_is_flipped() -> None:
    metrics = st.ranking_metrics(**PAIRS, flipped=[False, True, True, False], prompt_ids=["a", "b", "c", "d"])
    assert metrics["accuracy/sum_clean"]["value"] == 0.5
    assert metrics["accuracy/sum_flipped"]["value"] == 0.0
    assert metrics["accuracy/average_flipped"]["value"] == 0.5
    assert not [name for name in st.ranking_metrics(**PAIRS, flipped=[False] * 4) if "flipped" in name]


def test_non_finite_log_probs_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 of 4 responses are not finite \(first: pair 2\)"):
        st.ranking_metrics(**{**PAIRS, "rejected_sum": [-3.0, -8.0, float("nan"), -1.0]})


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="different length"):
        st.ranking_metrics(**{**PAIRS, "chosen_tokens": [1, 2]})
    with pytest.raises(ValueError, match="or for neither"):
        st.ranking_metrics(**PAIRS, reference_chosen_sum=[-1.0] * 4)
    with pytest.raises(ValueError, match="one length"):
        st.paired_difference([1.0, 0.0], [1.0])


def test_weighted_spearman_equals_spearman_of_the_repeated_sample() -> None:
    rng = np.random.default_rng(3)
    rewards, scores = rng.integers(0, 6, 20).astype(float), rng.integers(0, 4, 20).astype(float)
    weights = rng.integers(0, 4, (5, 10)).astype(float)
    got = st._spearman_statistic(rewards, scores)(weights)
    for row, value in zip(weights, got, strict=True):
        repeats = np.tile(row, 2).astype(int)
        expected = stats.spearmanr(np.repeat(rewards, repeats), np.repeat(scores, repeats)).statistic
        assert value == pytest.approx(expected, abs=1e-12)


def test_interval_of_a_mean_matches_theory_and_its_seed() -> None:
    sample = np.random.default_rng(0).normal(size=400)
    metric = st.mean_estimate(sample, resamples=4000)
    half = 1.96 * sample.std() / 20.0
    assert metric["low"] == pytest.approx(sample.mean() - half, abs=0.01)
    assert metric["high"] == pytest.approx(sample.mean() + half, abs=0.01)
    assert st.mean_estimate(sample, resamples=4000) == metric
    assert st.mean_estimate(sample, resamples=4000, seed=1) != metric


def test_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(st.bootstrap_weights(7, None, 50, seed=4)))
    monkeypatch.setattr(st, "CHUNK_ELEMENTS", 21)
    np.testing.assert_array_equal(whole, np.concatenate(list(st.bootstrap_weights(7, None, 50, seed=4))))
    assert (whole.sum(1) == 7).all()


def test_prompts_are_drawn_whole() -> None:
    weights = np.concatenate(list(st.bootstrap_weights(6, ["a", "b", "a", "c", "b", "a"], 40, seed=0)))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_clusters_widen_the_interval_of_repeated_pairs() -> None:
    right = np.random.default_rng(1).integers(0, 2, 50).repeat(8).astype(float)
    alone, clustered = st.mean_estimate(right), st.mean_estimate(right, np.arange(50).repeat(8))
    assert clustered["high"] - clustered["low"] > 2 * (alone["high"] - alone["low"])


def test_one_prompt_has_a_value_and_no_interval() -> None:
    metric = st.mean_estimate([1.0, 0.0], ["same", "same"])
    assert (metric["value"], metric["low"], metric["high"]) == (0.5, None, None)
    assert "one prompt" in metric["reason"]


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(2)
    second = rng.integers(0, 2, 300).astype(float)
    first = second.copy()
    first[:30] = 1.0
    metric = st.paired_difference(first, second)
    assert metric["value"] == pytest.approx((first - second).mean())
    assert 0 < metric["low"] < metric["value"] < metric["high"] < metric["value"] + 0.04


def test_pairwise_accuracy_counts_ties_as_wrong() -> None:
    assert st.pairwise_accuracy([1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 4.0, 1.0]) == 0.5
    assert st.pairwise_accuracy([], []) is None


def test_printed_spearman_formula_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4: d^2 sums to 3.5, so 1 - 21/60; Pearson of the ranks differs
    rewards, scores = [1.0, 2.0, 2.0, 3.0], [2.0, 1.0, 3.0, 4.0]
    assert st.spearman_d2(rewards, scores) == pytest.approx(0.65)
    assert st.spearman(rewards, scores) == pytest.approx(3.0 / np.sqrt(4.5 * 5.0))


@pytest.mark.skipif(not VECTORS.is_file(), reason="the golden vectors (../shared/vectors.json) are not here")
def test_golden_vectors() -> None:
    content = json.loads(VECTORS.read_text())
    checked = 0
    for case in content["extra"]["metrics"]:
        batch = content["batches"].get(case["batch"])
        if batch is None:  # not stored as a batch of its own
            continue
        metrics = st.ranking_metrics(
            chosen_sum=batch["s_w"],
            rejected_sum=batch["s_l"],
            chosen_tokens=batch["n_w"],
            rejected_tokens=batch["n_l"],
            reference_chosen_sum=batch["q_w"],
            reference_rejected_sum=batch["q_l"],
            chosen_scores=batch["c_w"],
            rejected_scores=batch["c_l"],
            min_score_gap=case["min_delta"],
        )
        assert metrics["accuracy/average"]["n"] == case["n_pairs"]
        for name, key in {
            "accuracy/average": "pwa_strict",
            "accuracy/sum": "ranking_accuracy_sum_logp",
            "accuracy/reference": "dpo_reward_accuracy",
            "spearman/average": "spearman_pearson_on_average_ranks",
            "spearman/average_eq10": "spearman_eq10_on_average_ranks",
        }.items():
            assert metrics[name]["value"] == pytest.approx(case[key], abs=1e-12), (case["batch"], name)
        checked += 1
    assert checked >= 6
