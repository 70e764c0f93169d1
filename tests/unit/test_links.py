"""Links: values and slopes by hand, where they meet the logistic loss, kinks, extremes, and refused constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.objective.links import Focal, Hinge, Linear, Logistic, Squared, UnbiasedLogistic
from src.objective.types import Link, PairRewards

MARGINS = [-30.0, -2.0, -0.5, 0.0, 0.7, 1.5, 4.0, 30.0]
TARGETS = [0.5, -1.0, 0.0, 2.0, 0.7, 0.3, 1.0, 0.0]


def slopes(link: Link, margins: list[float], targets: list[float]) -> tuple[list[float], list[float]]:
    """Losses, and their derivatives in the margin, in float64; the rejected reward must get the opposite of chosen."""
    chosen = (torch.tensor(margins, dtype=torch.float64) - 3.25).requires_grad_()
    rejected = torch.full_like(chosen, -3.25).detach().requires_grad_()
    losses = link(PairRewards(chosen, rejected), torch.tensor(targets, dtype=torch.float64))
    up, down = torch.autograd.grad(losses.sum(), (chosen, rejected))
    assert torch.allclose(up, -down, atol=1e-15)
    return losses.tolist(), up.tolist()


def ell(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > -30 else -x + math.log1p(math.exp(x))


def sigma(x: float) -> float:
    return math.exp(-ell(x))


def by_hand(value: Callable[[float, float], float], slope: Callable[[float, float], float], link: Link) -> None:
    losses, ups = slopes(link, MARGINS, TARGETS)
    pairs = list(zip(MARGINS, TARGETS, strict=True))
    assert losses == pytest.approx([value(m, t) for m, t in pairs], rel=1e-12, abs=1e-15)
    assert ups == pytest.approx([slope(m, t) for m, t in pairs], rel=1e-12, abs=1e-15)


def test_logistic() -> None:
    by_hand(lambda m, t: ell(m - t), lambda m, t: -sigma(t - m), Logistic())


def test_smoothing_with_the_complement_turns_the_whole_excess_round() -> None:
    by_hand(
        lambda m, t: 0.8 * ell(m - t) + 0.2 * ell(t - m),
        lambda m, t: -0.8 * sigma(t - m) + 0.2 * sigma(m - t),
        Logistic(label_smoothing=0.2),
    )


def test_smoothing_with_both_orders_to_clear_turns_the_margin_alone_round() -> None:
    by_hand(
        lambda m, t: 0.8 * ell(m - t) + 0.2 * ell(-m - t),
        lambda m, t: -0.8 * sigma(t - m) + 0.2 * sigma(m + t),
        Logistic(label_smoothing=0.2, flipped="must_clear"),
    )


def test_conservative_loss_is_least_where_the_share_of_right_labels_is_the_probability() -> None:
    _, (below, at, above) = slopes(Logistic(label_smoothing=0.2), [1.2, math.log(4), 1.6], [0.0] * 3)
    assert below < 0 < above
    assert at == pytest.approx(0, abs=1e-15)


def test_unbiased_logistic() -> None:
    by_hand(
        lambda m, t: (0.8 * ell(m - t) - 0.2 * ell(t - m)) / 0.6,
        lambda m, t: -(0.8 * sigma(t - m) + 0.2 * sigma(m - t)) / 0.6,
        UnbiasedLogistic(label_smoothing=0.2),
    )
    by_hand(
        lambda m, t: (0.8 * ell(m - t) - 0.2 * ell(-m - t)) / 0.6,
        lambda m, t: -(0.8 * sigma(t - m) + 0.2 * sigma(m + t)) / 0.6,
        UnbiasedLogistic(label_smoothing=0.2, flipped="must_clear"),
    )


@pytest.mark.parametrize("share", [0.05, 0.3, 0.45])
def test_unbiased_loss_over_flipped_labels_is_the_logistic_loss_on_right_ones(share: float) -> None:
    zeros = [0.0] * len(MARGINS)
    right, _ = slopes(UnbiasedLogistic(label_smoothing=share), MARGINS, zeros)
    wrong, _ = slopes(UnbiasedLogistic(label_smoothing=share), [-margin for margin in MARGINS], zeros)
    clean, _ = slopes(Logistic(), MARGINS, zeros)
    mixed = [(1 - share) * one + share * other for one, other in zip(right, wrong, strict=True)]
    assert mixed == pytest.approx(clean, rel=1e-12, abs=1e-12)


def test_unbiased_loss_never_stops_pulling() -> None:
    losses, ups = slopes(UnbiasedLogistic(label_smoothing=0.1), [50.0, 500.0], [0.0, 0.0])
    assert ups == pytest.approx([-0.1 / 0.8] * 2)
    assert losses[1] < losses[0] < 0


@pytest.mark.parametrize(
    "link",
    [
        Logistic(label_smoothing=0.0, flipped="must_clear"),
        UnbiasedLogistic(label_smoothing=0.0),
        UnbiasedLogistic(label_smoothing=0.0, flipped="must_clear"),
        Focal(exponent=0.0),
        Focal(exponent=0.0, factor="stop_gradient"),
    ],
)
def test_without_their_constant_they_are_the_logistic_loss(link: Link) -> None:
    assert slopes(link, MARGINS, TARGETS) == slopes(Logistic(), MARGINS, TARGETS)


@pytest.mark.parametrize("kind", [Logistic, UnbiasedLogistic])
def test_without_a_target_the_two_readings_of_a_wrong_label_are_one(kind: Any) -> None:
    zeros = [0.0] * len(MARGINS)
    one, other = kind(label_smoothing=0.2), kind(label_smoothing=0.2, flipped="must_clear")
    assert slopes(one, MARGINS, zeros) == slopes(other, MARGINS, zeros)
    assert slopes(one, MARGINS, TARGETS) != slopes(other, MARGINS, TARGETS)


def test_squared_pulls_back_what_is_beyond() -> None:
    by_hand(lambda m, t: (m - t) ** 2, lambda m, t: 2 * (m - t), Squared())


def test_hinge_has_no_slope_at_the_kink_or_beyond() -> None:
    losses, ups = slopes(Hinge(), [0.5, 1.0, 1.5], [1.0, 1.0, 1.0])
    assert (losses, ups) == ([0.5, 0.0, 0.0], [-1.0, 0.0, 0.0])


def test_focal_with_its_factor_differentiated() -> None:
    g = 0.4
    by_hand(
        lambda m, t: sigma(m - t) ** g * ell(m - t),
        lambda m, t: -(sigma(m - t) ** g) * sigma(t - m) * (1 - g * ell(m - t)),
        Focal(exponent=g),
    )


def test_focal_with_its_factor_constant() -> None:
    g = 0.4
    by_hand(
        lambda m, t: sigma(m - t) ** g * ell(m - t),
        lambda m, t: -(sigma(m - t) ** g) * sigma(t - m),
        Focal(exponent=g, factor="stop_gradient"),
    )


def test_focal_pushes_the_wrong_way_below_its_turning_point_unless_the_factor_is_constant() -> None:
    g = 0.5
    turn = math.log(math.exp(-1 / g) / (1 - math.exp(-1 / g)))
    _, (below, above) = slopes(Focal(exponent=g), [turn - 0.1, turn + 0.1], [0.0, 0.0])
    assert below > 0 > above
    assert max(slopes(Focal(exponent=g, factor="stop_gradient"), MARGINS, TARGETS)[1]) < 0
    _, (start,) = slopes(Focal(exponent=1 / math.log(2)), [0.0], [0.0])
    assert start == pytest.approx(0, abs=1e-15)


def test_linear_pulls_every_pair_alike() -> None:
    by_hand(lambda m, t: t - m, lambda m, t: -1.0, Linear())


def test_logistic_loss_keeps_its_digits_where_softplus_would_give_up() -> None:
    losses, ups = slopes(Logistic(), [-20.5], [0.0])
    assert losses[0] - 20.5 == pytest.approx(math.exp(-20.5), rel=1e-5)
    assert 1 + ups[0] == pytest.approx(math.exp(-20.5), rel=1e-5)


EVERY = [
    Logistic(),
    Logistic(label_smoothing=0.1),
    Logistic(label_smoothing=0.1, flipped="must_clear"),
    UnbiasedLogistic(label_smoothing=0.1),
    UnbiasedLogistic(label_smoothing=0.1, flipped="must_clear"),
    Squared(),
    Hinge(),
    Focal(exponent=0.05),
    Focal(exponent=2.0, factor="stop_gradient"),
    Linear(),
]


@pytest.mark.parametrize("link", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "bfloat16"])
def test_extremes_are_finite_in_the_dtype_of_the_rewards(link: Link, dtype: torch.dtype) -> None:
    chosen = torch.tensor([-4000.0, -90.0, -1.0, 0.0, 1.0, 90.0, 4000.0], dtype=dtype).requires_grad_()
    losses = link(PairRewards(chosen, torch.zeros_like(chosen)), torch.full_like(chosen, 0.5).detach())
    losses.sum().backward()
    assert losses.dtype == dtype
    assert torch.isfinite(losses).all()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Logistic(label_smoothing=0.5), "label_smoothing=0.5.*below 0.5"),
        (lambda: Logistic(label_smoothing=-0.1), "label_smoothing=-0.1"),
        (lambda: UnbiasedLogistic(label_smoothing=0.5), "label_smoothing=0.5.*divides by.*none at 0.5.*below 0.5"),
        (lambda: UnbiasedLogistic(label_smoothing=0.7), "label_smoothing=0.7.*say the opposite"),
        (lambda: UnbiasedLogistic(label_smoothing=float("nan")), "label_smoothing=nan"),
        (lambda: Focal(exponent=-1.0), "exponent=-1.0.*give 0"),
    ],
)
def test_refused_constants(build: Callable[[], Link], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build()
