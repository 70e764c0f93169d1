"""Paired bootstrap over seeds and prompts against brute force and normal approximations; Kendall's tau-b."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau

from src.experiments.compare import Draws, Estimate, Sample, contrast, draws_of, kendall_tau_b, rank_agreement


def sample_of(values: np.ndarray, name: str = "q", parts: int = 1) -> Sample:
    """A cell from values [seeds, items]; every ``parts`` items belong to one prompt."""
    items = {
        seed: {f"{name}{place // parts}#{place % parts}": float(value) for place, value in enumerate(row)}
        for seed, row in enumerate(values)
    }
    return Sample({seed: float(row.mean()) for seed, row in enumerate(values)}, items)


def estimated(*terms: tuple[float, Sample], resamples: int = 2000) -> tuple[Estimate, float, float]:
    """A contrast that has an interval, and the interval's ends."""
    found = contrast(terms, resamples=resamples)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found, found.low, found.high


def drawn(samples: Sequence[Sample], resamples: int = 2000) -> tuple[Draws, np.ndarray]:
    """Cells that there is something to draw of, and their resamples."""
    found = draws_of(samples, resamples=resamples)
    assert found is not None
    assert found.resampled is not None
    return found, found.resampled


def test_one_seed_is_the_paired_bootstrap_of_prompts() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 400)
    first, second = hard + rng.normal(0.5, 1, 400), hard + rng.normal(0, 1, 400)
    found, low, high = estimated((1, sample_of(first[None])), (-1, sample_of(second[None])))
    difference = first - second
    error = difference.std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx(difference.mean())
    assert low == pytest.approx(difference.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(difference.mean() + 1.96 * error, abs=0.2 * error)
    assert (found.seeds, found.prompts, found.above) == (1, 400, True)


def test_prompts_common_to_seeds_are_drawn_once_for_all() -> None:
    """A prompt's effect is the same for every seed, so more seeds do not make it smaller."""
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 1, 200)
    values = np.stack([effect + rng.normal(0, 0.01, 200) for _ in range(5)])
    _, low, high = estimated((1, sample_of(values)))
    assert (high - low) / (2 * 1.96) == pytest.approx(effect.std() / math.sqrt(200), rel=0.08)


def test_seeds_without_items_have_the_unbiased_variance() -> None:
    numbers = np.random.default_rng(2).normal(0, 2, 30)
    _, low, high = estimated((1, Sample(dict(enumerate(numbers)))), resamples=20000)
    assert (high - low) / (2 * 1.96) == pytest.approx(numbers.std(ddof=1) / math.sqrt(30), rel=0.03)


def test_two_seeds_and_three_prompts_by_brute_force() -> None:
    values = np.array([[1.0, 4.0, 2.0], [3.0, 5.0, 10.0]])
    stretched = values + (math.sqrt(2) - 1) * (values.mean(1, keepdims=True) - values.mean())
    every = [
        stretched[np.ix_(seeds, prompts)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for prompts in itertools.product(range(3), repeat=3)
    ]
    _, resampled = drawn([sample_of(values)], resamples=60000)
    assert set(np.round(resampled[:, 0], 9)) == set(np.round(every, 9))
    assert resampled[:, 0].mean() == pytest.approx(np.mean(every), abs=0.02)
    assert resampled[:, 0].var() == pytest.approx(np.var(every), rel=0.02)


def test_parts_of_a_prompt_are_drawn_together() -> None:
    """Two equal turns of a conversation are no two observations."""
    values = np.random.default_rng(3).normal(0, 1, 300)
    _, low, high = estimated((1, sample_of(values[None])))
    doubled, low_of_two, high_of_two = estimated((1, sample_of(np.repeat(values, 2)[None], parts=2)))
    assert (low_of_two, high_of_two) == (pytest.approx(low), pytest.approx(high))
    assert doubled.prompts == 300


def test_pairing_is_by_id_and_over_what_both_have() -> None:
    values = np.random.default_rng(4).normal(0, 1, 50)
    first = sample_of(values[None])
    turned = Sample(first.numbers, {0: dict(reversed(list(first.items[0].items())))})
    same, low, high = estimated((1, first), (-1, turned))
    assert (same.value, low, high) == (0.0, pytest.approx(0.0), pytest.approx(0.0))
    fewer = Sample({0: 7.0}, {0: dict(list(first.items[0].items())[:40])})
    found, low, high = estimated((1, fewer), (-1, first))
    assert found.prompts == 40
    assert found.value == pytest.approx(7.0 - values.mean())
    assert (low, high) == (pytest.approx(found.value), pytest.approx(found.value))


def test_cells_on_other_prompts_are_drawn_apart() -> None:
    rng = np.random.default_rng(5)
    samples = [sample_of(rng.normal(0, 1, (1, 300)), name) for name in "ab"]
    _, resampled = drawn(samples, resamples=5000)
    assert abs(np.corrcoef(resampled.T)[0, 1]) < 0.05


def test_seeds_are_paired_by_their_number() -> None:
    """What a seed does to both rows is not what they differ by."""
    first, second = Sample({0: 1.0, 1: 50.0, 2: 90.0}), Sample({2: 89.0, 1: 49.0, 0: 0.0, 7: 1000.0})
    found, low, high = estimated((1, first), (-1, second))
    assert (found.value, low, high, found.seeds) == (1.0, pytest.approx(1.0), pytest.approx(1.0), 3)


def test_nothing_to_draw_from_has_no_interval() -> None:
    found = contrast([(1, Sample({0: 3.0})), (-1, Sample({0: 1.0}))])
    assert found is not None
    assert (found.value, found.low, found.above, found.below) == (2.0, None, False, False)
    assert "one seed" in found.reason
    assert contrast([(1, Sample({0: 3.0})), (-1, Sample({1: 1.0}))]) is None


def test_the_same_cells_give_the_same_interval() -> None:
    values = np.random.default_rng(6).normal(0, 1, (3, 100))
    assert contrast([(1, sample_of(values))]) == contrast([(1, sample_of(values))])


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Effects of prompts and seeds and noise: 95 % intervals of a true difference of 0.2 from 8 seeds."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(200):
        prompt, seed = rng.normal(0, 0.5, (1, 80)), rng.normal(0, 0.1, (8, 1))
        _, low, high = estimated((1, sample_of(0.2 + prompt + seed + rng.normal(0, 0.5, (8, 80)))), resamples=400)
        hits += low <= 0.2 <= high
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize("seed", range(20))
def test_kendall_tau_b_is_scipys_and_that_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, 9), rng.integers(0, 5, 9)
    assert float(kendall_tau_b(x, y)) == pytest.approx(kendalltau(x, y).statistic)
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(9), 2)]
    scale = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    assert float(kendall_tau_b(x, y)) == pytest.approx(sum(a * b for a, b in signs) / scale)


def test_tau_of_a_constant_order_is_none() -> None:
    assert math.isnan(float(kendall_tau_b([1, 1, 1], [1, 2, 3])))
    found, _ = drawn([Sample({0: 1.0, 1: 1.0}), Sample({0: 1.0, 1: 1.0})])
    assert rank_agreement([1.0, 2.0], found, np.eye(2)) is None


def test_rank_agreement_is_certain_of_what_is_far_apart_alone() -> None:
    rng = np.random.default_rng(8)
    apart, _ = drawn([sample_of(rng.normal(place, 0.1, (2, 100))) for place in range(5)])
    close, _ = drawn([sample_of(rng.normal(0, 1, (1, 50))) for _ in range(5)])
    same, turned, unsure = (
        rank_agreement(order, found, np.eye(5))
        for order, found in (([1, 2, 3, 4, 5], apart), ([5, 4, 3, 2, 1], apart), ([1, 2, 3, 4, 5], close))
    )
    assert same is not None
    assert turned is not None
    assert unsure is not None
    assert (same.value, same.low, same.high, same.above) == (1.0, 1.0, 1.0, True)
    assert (turned.value, turned.below) == (-1.0, True)
    assert not unsure.above
    assert not unsure.below
