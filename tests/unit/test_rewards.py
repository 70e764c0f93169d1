"""Rewards: log-odds and shaped log-probs by their definitions, slopes, limits, and at the ends of their range."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.errors import UserError
from src.objective.rewards import (
    LARGEST_SHAPE_EXPONENT,
    AlphaShaped,
    AlphaShapedTokens,
    AverageLogProb,
    LogOdds,
    ReferenceLogRatio,
    SummedLogProb,
    alpha_shape,
)
from src.objective.types import Needs, ResponseLogProbs

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def response(average: float | list[float], tokens: float = 1.0, dtype: torch.dtype = torch.float64) -> ResponseLogProbs:
    """Responses of ``tokens`` tokens and that average."""
    averages = torch.tensor(average if isinstance(average, list) else [average], dtype=dtype)
    counts = torch.full_like(averages, tokens)
    return ResponseLogProbs((averages * counts).requires_grad_(), counts)


def value_and_slope(
    reward: Callable[..., torch.Tensor], responses: ResponseLogProbs
) -> tuple[list[float], list[float]]:
    values = reward(responses, None)
    (slope,) = torch.autograd.grad(values.sum(), responses.summed)
    return values.tolist(), slope.tolist()


@given(st.floats(-25.0, -1e-3))
def test_log_odds_are_those_of_the_average_probability(average: float) -> None:
    p = math.exp(average)
    [value], [slope] = value_and_slope(LogOdds(), response(average))
    assert value == pytest.approx(math.log(p / (1 - p)), rel=1e-9, abs=1e-9)
    assert slope == pytest.approx(1 / (1 - p), rel=1e-9)


@pytest.mark.parametrize("average", [-1e-5, -0.3, -5.0, -90.0, -1e4])
def test_log_odds_keep_their_digits_at_both_ends(average: float) -> None:
    """Against the series of log(1 − eᵃ) near 0, and a alone far from it."""
    near = average - math.log(-math.expm1(average))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        [value], [slope] = value_and_slope(LogOdds(beta=2.0), response(average, 1.0, dtype))
        assert value == pytest.approx(2 * near, rel=tolerance)
        assert slope == pytest.approx(-2 / math.expm1(average), rel=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_odds_are_finite_at_certainty_and_never_fall(dtype: torch.dtype) -> None:
    averages = [-1e30, -1e4, -88.0, -1.0, -1e-3, -1e-6, -1e-8, 0.0]
    values, slopes = value_and_slope(LogOdds(), response(averages, 1.0, dtype))
    assert all(map(math.isfinite, values + slopes))
    assert values == sorted(values)
    assert min(slopes) >= 0
    assert slopes[-1] == 0  # certain: nothing left to gain


def test_an_empty_response_has_finite_log_odds() -> None:
    empty = ResponseLogProbs(torch.zeros(1, requires_grad=True), torch.zeros(1))
    [value], [slope] = value_and_slope(LogOdds(), empty)
    assert value == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert slope == 0


def test_alpha_shape_by_hand() -> None:
    reward = AlphaShaped(beta=3.0, alpha=0.5)(response(-2.0, 4.0), None)
    assert reward.item() == pytest.approx(3 * (1 - math.e) / 0.5, rel=1e-14)
    assert AlphaShaped(beta=1.0, alpha=-0.5)(response(-2.0), None).item() == pytest.approx((1 - 1 / math.e) / -0.5)


@given(st.floats(-2.0, 2.0), st.floats(-14.0, 0.0))
def test_slope_of_the_alpha_shape(alpha: float, average: float) -> None:
    """exp(−α·a), to the last digits: a tangent beyond the largest exponent must not touch what lies within."""
    _, [slope] = value_and_slope(AlphaShaped(beta=2.0, alpha=alpha), response(average, 5.0))
    assert slope == pytest.approx(2 * math.exp(-alpha * average) / 5, rel=1e-12)


@given(st.floats(-8.0, 0.0))
def test_alpha_to_zero_is_the_average(average: float) -> None:
    log_probs = torch.tensor([average], dtype=torch.float64)
    for alpha in (1e-6, -1e-6, 1e-9, 1e-15):
        assert alpha_shape(log_probs, alpha).item() == pytest.approx(average, abs=abs(alpha) * 40)
    for alpha in (0.0, 1e-19, -1e-50):
        for dtype in DTYPES:
            assert alpha_shape(log_probs.to(dtype), alpha).item() == log_probs.to(dtype).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.5, 0.25, -0.5])
def test_alpha_shape_is_finite_and_pulls_however_improbable(alpha: float, dtype: torch.dtype) -> None:
    averages = [-1e6, -1e4, -400.0, -100.0, -60.0, -20.0, -1.0, 0.0]
    values, slopes = value_and_slope(AlphaShaped(beta=2.5, alpha=alpha), response(averages, 1.0, dtype))
    assert all(map(math.isfinite, values + slopes))
    assert values == sorted(values)
    if alpha > 0:
        assert min(slopes[:4]) > 1e10  # the least probable responses: no clamp has ended the pull
        assert sum(slope * slope for slope in slopes) < torch.finfo(torch.float32).max


def test_alpha_shape_and_its_slope_do_not_jump_where_the_tangent_begins() -> None:
    joint = -LARGEST_SHAPE_EXPONENT / 0.5
    values, slopes = value_and_slope(
        AlphaShaped(beta=1.0, alpha=0.5), response([joint - 1e-7, joint, joint + 1e-7], 1.0)
    )
    assert values[0] == pytest.approx(values[2], rel=1e-6)
    assert slopes == pytest.approx([math.exp(LARGEST_SHAPE_EXPONENT)] * 3, rel=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        AverageLogProb,
        SummedLogProb,
        ReferenceLogRatio,
        LogOdds,
        lambda beta: AlphaShaped(beta=beta, alpha=0.5),
        lambda beta: AlphaShapedTokens(beta=beta, alpha=0.5),
    ],
)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_every_reward_refuses_a_scale_that_is_not_positive(build: Callable[[float], object], beta: float) -> None:
    with pytest.raises(UserError, match=f"beta={beta}: .*give a value above 0"):
        build(beta)


def test_rewards_without_a_reference_need_none() -> None:
    assert LogOdds().needs == AlphaShaped(beta=1.0, alpha=0.5).needs == Needs(rejected=True)
