"""Log-mean-exp (Dr.DPO): the formula, its linear form summed over forwards, its limits, and its digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.errors import UserError
from src.objective.links import Logistic
from src.objective.objective import Objective
from src.objective.reductions import LogMeanExp, Mean
from src.objective.regularizers import NoRegularizer
from src.objective.rewards import ReferenceLogRatio
from src.objective.targets import NoMargin
from src.objective.types import Needs, PairInputs, PairLogProbs, PairTerms, ResponseLogProbs, Scope, WindowTotals
from src.objective.weights import Uniform

PAIRS = 7


def formula(losses: Tensor, beta_prime: float) -> Tensor:
    """Dr.DPO Eq. 9, as printed."""
    return -beta_prime * torch.log(torch.exp(-losses / beta_prime).mean())


@given(st.lists(st.floats(0, 30), min_size=1, max_size=9), st.sampled_from([0.1, 0.5, 1.0, 10.0]))
def test_value_and_gradient_are_those_of_the_formula(values: list[float], beta_prime: float) -> None:
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    expected = formula(losses, beta_prime)
    reduce = LogMeanExp(beta_prime)
    assert reduce(losses).item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(reduce(losses), losses)
    (wanted,) = torch.autograd.grad(expected, losses)
    assert gradient.tolist() == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=9), st.sampled_from([0.1, 1.0, 10.0]))
def test_linear_form_has_the_value_and_the_gradient(values: list[float], beta_prime: float) -> None:
    reduce = LogMeanExp(beta_prime)
    fixed = torch.tensor(values, dtype=torch.float64)
    coefficient, offset = reduce.linearize(fixed)
    losses = fixed.clone().requires_grad_()
    linear = (coefficient * losses + offset).mean()
    assert linear.item() == pytest.approx(reduce(fixed).item(), rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(linear, losses)
    (wanted,) = torch.autograd.grad(formula(losses, beta_prime), losses)
    assert gradient.tolist() == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-12)


def dr_dpo(beta_prime: float, statistics: Scope) -> Objective:
    reduce = LogMeanExp(beta_prime, statistics)
    return Objective(ReferenceLogRatio(beta=0.1), NoMargin(), Logistic(), Uniform(), reduce, NoRegularizer())


def inputs() -> PairInputs:
    draw = torch.Generator().manual_seed(3)
    ones = torch.ones(PAIRS, dtype=torch.float64)

    def response(spread: float) -> ResponseLogProbs:
        return ResponseLogProbs(-40 + spread * torch.randn(PAIRS, generator=draw, dtype=torch.float64), ones)

    policy = PairLogProbs(response(20), response(20))
    policy.chosen.summed.requires_grad_()
    policy.rejected.summed.requires_grad_()
    return PairInputs(policy, PairLogProbs(response(5), response(5)))


def summed_over(cuts: Sequence[int], method: Objective, pairs: PairInputs, groups: Sequence[int] | None) -> Tensor:
    """The window's loss as the step adds it up: forward by forward, each with the terms of its group of statistics.

    ``groups``: sizes of the groups; ``None`` takes every forward for one.
    """
    totals = WindowTotals(PAIRS, PAIRS)
    parts = []
    for start, size in zip(starts(groups or cuts), groups or cuts, strict=True):
        parts.append(method.terms(pairs[slice(start, start + size)], {})[0])
    terms = PairTerms.concatenate(parts)
    total = torch.zeros((), dtype=torch.float64)
    for start, size in zip(starts(cuts), cuts, strict=True):
        piece = slice(start, start + size)
        total = total + method.loss(pairs[piece], terms[piece], totals)
    return total


def starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def expected(pairs: PairInputs, groups: Sequence[int], beta_prime: float) -> Tensor:
    """Every group's formula, counted as often as it has pairs."""
    assert pairs.reference is not None
    ratios = [
        mine.summed - theirs.summed
        for mine, theirs in (
            (pairs.policy.chosen, pairs.reference.chosen),
            (pairs.policy.rejected, pairs.reference.rejected),
        )
    ]
    losses = -torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1]))
    values = [
        size * formula(losses[start : start + size], beta_prime)
        for start, size in zip(starts(groups), groups, strict=True)
    ]
    return torch.stack(values).sum() / PAIRS


@pytest.mark.parametrize(
    ("statistics", "cuts", "groups"),
    [
        ("forward", [3, 3, 1], None),  # an unequal last forward
        ("forward", [7], None),
        ("window", [7], [7]),
        ("window", [3, 3, 1], [7]),
        ("window", [1] * 7, [7]),
        (2, [3, 4], [2, 2, 2, 1]),  # groups that reach over forwards, and a last one of one pair
    ],
)
@pytest.mark.parametrize("beta_prime", [0.2, 1.0])
def test_sum_of_forwards_has_value_and_gradient_of_the_formula(
    statistics: Scope, cuts: list[int], groups: list[int] | None, beta_prime: float
) -> None:
    pairs = inputs()
    leaves = [pairs.policy.chosen.summed, pairs.policy.rejected.summed]
    found = summed_over(cuts, dr_dpo(beta_prime, statistics), pairs, groups)
    wanted = expected(pairs, groups or cuts, beta_prime)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-10, abs=1e-14)
        assert one.abs().max() > 1e-3


def test_scope_and_cut_change_the_value() -> None:
    pairs = inputs()
    cut, whole = (summed_over(cuts, dr_dpo(0.2, "forward"), pairs, None).item() for cuts in ([3, 3, 1], [7]))
    assert abs(cut - whole) > 0.01


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["double", "single"]
)
@pytest.mark.parametrize("beta_prime", [1e6, 1e9, 1e12])
def test_a_large_temperature_is_the_mean_to_the_last_digits(
    beta_prime: float, dtype: torch.dtype, tolerance: float
) -> None:
    losses = torch.tensor([0.2, 3.0, 0.9, 12.5, 0.7], dtype=dtype)
    expected = losses.mean().item() - losses.double().var(unbiased=False).item() / 2 / beta_prime
    assert LogMeanExp(beta_prime)(losses).item() == pytest.approx(expected, rel=tolerance)
    coefficient, offset = LogMeanExp(beta_prime).linearize(losses)
    assert coefficient.tolist() == pytest.approx([1.0] * 5, rel=max(2e-5, tolerance))
    assert offset.abs().max().item() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_small_temperature_is_the_smallest_loss(dtype: torch.dtype) -> None:
    losses = torch.tensor([9000.0, 3.0, 3e4, 0.5], dtype=dtype)
    reduce = LogMeanExp(1e-3)
    assert reduce(losses).item() == pytest.approx(0.5 + 1e-3 * math.log(4), rel=1e-2)
    coefficient, offset = reduce.linearize(losses)
    assert coefficient.tolist() == [0, 0, 0, 4]
    assert torch.isfinite(offset).all()


def test_pairs_of_large_loss_count_less() -> None:
    coefficient, _ = LogMeanExp(1.0).linearize(torch.tensor([0.1, 0.7, 3.0]))
    assert coefficient.tolist() == sorted(coefficient.tolist(), reverse=True)
    assert coefficient.mean().item() == pytest.approx(1)
    assert Mean().linearize(torch.tensor([0.1, 3.0]))[0].tolist() == [1, 1]


def test_needs_and_refusals() -> None:
    assert LogMeanExp(1.0, "window").needs == Needs(rejected=True, statistics="window", spread=True)
    with pytest.raises(UserError, match="beta_prime=0"):
        LogMeanExp(0.0)
    with pytest.raises(UserError, match=r"statistics=1: .*which is DPO"):
        LogMeanExp(1.0, 1)
