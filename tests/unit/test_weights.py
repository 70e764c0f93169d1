"""Weights: score gaps by hand, their mean, ties, dtypes, and GapPO beside SimPO."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.errors import UserError
from src.objective.links import Logistic
from src.objective.objective import Objective
from src.objective.reductions import Mean
from src.objective.regularizers import NoRegularizer
from src.objective.rewards import AverageLogProb
from src.objective.targets import Constant
from src.objective.types import (
    MarginGroup,
    Needs,
    PairInputs,
    PairLogProbs,
    PairRewards,
    ResponseLogProbs,
    WindowTotals,
)
from src.objective.weights import ConstantWeight, ScoreGap, Uniform

SIMPO = Objective(
    AverageLogProb(beta=1.0), Constant(beta=1.0, gamma_beta_ratio=0.5), Logistic(), Uniform(), Mean(), NoRegularizer()
)


def inputs(chosen: list[float], rejected: list[float], dtype: torch.dtype = torch.float64) -> PairInputs:
    """Pairs with these scores, held in float32 as batches hold them."""
    steps = torch.arange(len(chosen), dtype=dtype)
    policy = PairLogProbs(
        ResponseLogProbs((-5 - steps).requires_grad_(), torch.full_like(steps, 4)),
        ResponseLogProbs((-9 + 2 * steps).requires_grad_(), torch.full_like(steps, 6)),
    )
    return PairInputs(policy, chosen_scores=torch.tensor(chosen), rejected_scores=torch.tensor(rejected))


def weights(weight: ScoreGap, chosen: list[float], rejected: list[float]) -> list[float]:
    return weight(SIMPO.group(inputs(chosen, rejected))).tolist()


CHOSEN, REJECTED = [8.5, 7.0, 2.0], [3.0, 7.0, 4.0]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("linear", [5.5, 0, 2]), ("quadratic", [30.25, 0, 4]), ("exponential", [math.exp(5.5) - 1, 0, math.exp(2) - 1])],
)
def test_weights_by_hand(weighting: str, expected: list[float]) -> None:
    weight = ScoreGap(weighting)  # type: ignore[arg-type]
    assert weights(weight, CHOSEN, REJECTED) == pytest.approx(expected, rel=1e-14)
    mean = sum(expected) / 3
    normalized = [value / mean for value in expected]
    assert weights(replace(weight, normalized=True), CHOSEN, REJECTED) == pytest.approx(normalized, rel=1e-14)


SCORES = st.lists(st.tuples(st.floats(1, 10, width=32), st.floats(1, 10, width=32)), min_size=1, max_size=9)


@given(SCORES, st.sampled_from(["linear", "quadratic", "exponential"]))
def test_normalized_weights_average_one_or_are_all_zero(scores: list[tuple[float, float]], weighting: str) -> None:
    chosen, rejected = ([one[side] for one in scores] for side in (0, 1))
    found = weights(ScoreGap(weighting, normalized=True), chosen, rejected)  # type: ignore[arg-type]
    assert all(value >= 0 and math.isfinite(value) for value in found)
    assert sum(found) / len(found) == pytest.approx(0 if chosen == rejected else 1, abs=1e-9)
    assert found == weights(ScoreGap(weighting, normalized=True), rejected, chosen)  # type: ignore[arg-type]


def test_a_group_without_a_gap_has_weight_and_gradient_zero() -> None:
    for weight in (ScoreGap(), ScoreGap(normalized=True), ScoreGap("exponential", normalized=True)):
        pairs = inputs([3.0, 4.0], [3.0, 4.0])
        method = replace(SIMPO, weight=weight)
        loss = method.loss(pairs, method.terms(pairs, {})[0], WindowTotals(2, 8))
        loss.backward()
        assert loss.item() == 0
        assert pairs.policy.chosen.summed.grad is not None
        assert pairs.policy.chosen.summed.grad.tolist() == [0, 0]


def test_small_gaps_keep_their_digits() -> None:
    assert weights(ScoreGap("exponential"), [2**-20], [0.0]) == pytest.approx([math.expm1(2**-20)], rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("weighting", ["linear", "quadratic", "exponential"])
def test_scores_far_apart_overflow_nothing(weighting: str, normalized: bool, dtype: torch.dtype) -> None:
    method = replace(SIMPO, weight=ScoreGap(weighting, normalized))  # type: ignore[arg-type]
    pairs = inputs([1e4, 100.0, 5.0], [0.0, 0.0, 5.0], dtype)
    terms, _ = method.terms(pairs, {})
    loss = method.loss(pairs, terms, WindowTotals(3, 12))
    loss.backward()
    assert terms.weight.dtype == dtype
    assert torch.isfinite(loss)
    gradient = pairs.policy.chosen.summed.grad
    assert gradient is not None
    assert torch.isfinite(gradient.float().square().sum())
    assert gradient[2] == 0


def test_scores_are_weighed_in_the_dtype_of_the_log_probs() -> None:
    """8.3 and 0.1 are held in float32: their difference is taken after they are widened, and is exact then."""
    [gap] = weights(ScoreGap(), [8.3], [0.1])
    exact = torch.tensor(8.3).double() - torch.tensor(0.1).double()
    assert gap == exact.item()
    assert gap != (torch.tensor(8.3) - torch.tensor(0.1)).item()


@pytest.mark.parametrize("weighting", ["linear", "quadratic", "exponential"])
def test_equal_gaps_are_simpo_times_a_constant(weighting: str) -> None:
    factor = {"linear": 2.5, "quadratic": 6.25, "exponential": math.exp(2.5) - 1}[weighting]
    results = []
    for method in (SIMPO, replace(SIMPO, weight=ScoreGap(weighting))):  # type: ignore[arg-type]
        pairs = inputs([4.5, 9.0, 3.0], [2.0, 6.5, 5.5])
        loss = method.loss(pairs, method.terms(pairs, {})[0], WindowTotals(3, 12))
        loss.backward()
        sides = (pairs.policy.chosen.summed, pairs.policy.rejected.summed)
        results.append(
            [loss.item(), *(value for side in sides if side.grad is not None for value in side.grad.tolist())]
        )
    assert results[1] == pytest.approx([factor * value for value in results[0]], rel=1e-12)
    assert len(results[0]) == 7


def test_statistics_are_asked_for_only_when_normalized() -> None:
    assert ScoreGap(statistics=4).needs == Needs(rejected=True, scores=True)
    normalized = Needs(rejected=True, scores=True, statistics=4, spread=True)
    assert ScoreGap(normalized=True, statistics=4).needs == normalized


def test_weights_normalized_pair_by_pair_are_refused() -> None:
    with pytest.raises(UserError, match=r"statistics=1: .*at least 2 pairs"):
        ScoreGap(normalized=True, statistics=1)
    ScoreGap(statistics=1)


def test_scores_are_needed() -> None:
    nothing = MarginGroup(
        PairRewards(torch.zeros(2), torch.zeros(2)), replace(inputs([1, 2], [1, 2]), chosen_scores=None)
    )
    with pytest.raises(ValueError, match="scores"):
        ScoreGap()(nothing)


def test_constant_weight_scales_every_pair() -> None:
    pairs = inputs(CHOSEN, REJECTED)
    method = replace(SIMPO, weight=ConstantWeight(value=0.25))
    losses = [one.loss(pairs, one.terms(pairs, {})[0], WindowTotals(3, 12)).item() for one in (SIMPO, method)]
    assert losses[1] == pytest.approx(losses[0] / 4, rel=1e-14)
    assert ConstantWeight(value=1.0).needs == Needs()


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_constant_weight_must_be_positive(value: float) -> None:
    with pytest.raises(UserError, match=f"value={value}: the preference term"):
        ConstantWeight(value=value)
