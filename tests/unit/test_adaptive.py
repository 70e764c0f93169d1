"""AMaPO's margin and what is left of it without one of its components: by hand, at the edges, and in every dtype."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.errors import UserError
from src.objective.adaptive import LARGEST_EXPONENT, NOT_IN_PAPER, Ablation, Adaptive
from src.objective.links import Logistic
from src.objective.objective import Objective
from src.objective.reductions import Mean
from src.objective.regularizers import NoRegularizer
from src.objective.rewards import AverageLogProb
from src.objective.types import (
    MarginGroup,
    Needs,
    PairInputs,
    PairLogProbs,
    PairRewards,
    ResponseLogProbs,
    WindowTotals,
)
from src.objective.weights import Uniform

BETA = 2.0
E2 = BETA * math.exp(2)
ABLATIONS = get_args(Ablation)
BOTH = [("released", name) for name in ABLATIONS] + [("paper", "none"), ("paper", "without_exp")]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def group(gaps: list[float], dtype: torch.dtype = torch.float64) -> MarginGroup:
    """Pairs whose margins are β times ``gaps``."""
    margins = BETA * torch.tensor(gaps, dtype=dtype)
    response = ResponseLogProbs(torch.zeros_like(margins), torch.ones_like(margins))
    return MarginGroup(PairRewards(margins, torch.zeros_like(margins)), PairInputs(PairLogProbs(response, response)))


def margins(fidelity: str, ablation: str, gaps: list[float]) -> list[float]:
    found: list[float] = Adaptive(BETA, fidelity, ablation=ablation)(group(gaps)).tolist()  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("fidelity", "ablation", "above", "below"),
    [
        # columns: gaps 1, 3, 2 (mean 2, deviation 1, z 1, -1, 0), then the same below zero: -1, -3, -2
        ("released", "none", [E2, 0, 0], [0, BETA * math.exp(-2), 0]),
        ("paper", "none", [BETA * math.exp(4), 0, 0], [BETA * math.exp(4), 0, 0]),
        ("released", "without_zero", [E2, BETA * math.exp(-2), BETA], [E2, BETA * math.exp(-2), BETA]),
        ("released", "without_exp", [8, 0, 0], [0, -8, 0]),
        ("paper", "without_exp", [4, 0, 0], [4, 0, 0]),
        ("released", "without_z_norm", [BETA * math.e, 0, 0], [0, BETA * math.e, 0]),
        ("released", "without_adaptive_linear", [2, 0, 0], [0, 2, 0]),
        ("released", "without_adaptive_eq8", [4, 0, 0], [0, 0, 0]),
    ],
)
def test_margins_by_hand(fidelity: str, ablation: str, above: list[float], below: list[float]) -> None:
    assert margins(fidelity, ablation, [1, 3, 2]) == pytest.approx(above, rel=1e-12)
    assert margins(fidelity, ablation, [-1, -3, -2]) == pytest.approx(below, rel=1e-12)


@pytest.mark.parametrize("ablation", sorted(NOT_IN_PAPER))
def test_ablations_that_the_paper_does_not_define_are_refused(ablation: Ablation) -> None:
    with pytest.raises(UserError, match=rf"ablation={ablation} with fidelity=paper: .*write fidelity=released"):
        Adaptive(BETA, "paper", ablation=ablation)
    Adaptive(BETA, "released", ablation=ablation)


def test_every_ablation_has_a_form() -> None:
    assert set(ABLATIONS) - NOT_IN_PAPER.keys() == {"none", "without_exp"}
    found = [margins(*choice, [0.2, 1.7, 0.9, 3.1]) for choice in BOTH]
    assert len({tuple(values) for values in found}) == len(BOTH) == 8


GAPS = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


@given(GAPS, st.sampled_from(BOTH))
def test_margins_are_finite_and_follow_their_pairs(gaps: list[float], choice: tuple[str, str]) -> None:
    found = margins(*choice, gaps)
    assert all(map(math.isfinite, found))
    assert margins(*choice, gaps[::-1]) == pytest.approx(found[::-1], rel=1e-6, abs=1e-9)


@given(GAPS)
def test_released_margins_are_for_pairs_below_the_mean(gaps: list[float]) -> None:
    """And at least β when the mean is above 0: the jump that makes the method a reweighting in two levels."""
    mean = sum(gaps) / len(gaps)
    for gap, margin in zip(gaps, margins("released", "none", gaps), strict=True):
        if gap > mean + 1e-9:
            assert margin == 0
        elif margin and mean > 0:
            assert margin >= BETA * (1 - 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", BOTH, ids="-".join)
@pytest.mark.parametrize(
    "gaps",
    [[1.0], [0.0], [-3.0], [0.1] * 7, [0.0] * 4, [-123.4] * 7, [300.1] * 11],
    ids=["one", "zero", "below", "equal", "zeros", "far_below", "far_above"],
)
def test_without_spread_there_is_no_margin(gaps: list[float], choice: tuple[str, str], dtype: torch.dtype) -> None:
    """Equal margins far from 0 leave a deviation of rounding, which is no spread."""
    target = Adaptive(BETA, choice[0], ablation=choice[1])  # type: ignore[arg-type]
    assert target(group(gaps, dtype)).tolist() == [0.0] * len(gaps)
    assert {name: values.sum().item() for name, values in target.diagnostics(group(gaps, dtype)).items()} == {
        "target/active": 0,
        "target/clamped": 0,
    }


def test_deviation_below_the_smallest_counts_as_none() -> None:
    assert margins("released", "none", [1.0, 1.0 + 1e-8]) == [0, 0]
    assert max(margins("released", "none", [1.0, 1.0 + 1e-4])) > BETA


OUTLIERS = [[50.0] * 63 + [-300.0], [-50.0] * 63 + [300.0], [0.0, -1e6, 1e6], [1e6, 1e6 + 1e3, 1e6 - 5e3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", BOTH, ids="-".join)
@pytest.mark.parametrize("gaps", OUTLIERS, ids=["low", "high", "wide", "far"])
def test_loss_and_gradient_stay_finite(gaps: list[float], choice: tuple[str, str], dtype: torch.dtype) -> None:
    target = Adaptive(BETA, choice[0], ablation=choice[1])  # type: ignore[arg-type]
    method = Objective(AverageLogProb(BETA), target, Logistic(), Uniform(), Mean(), NoRegularizer())
    chosen = torch.tensor(gaps, dtype=dtype).requires_grad_()
    ones = torch.ones_like(chosen)
    pairs = PairInputs(PairLogProbs(ResponseLogProbs(chosen, ones), ResponseLogProbs(torch.zeros_like(ones), ones)))
    terms, _ = method.terms(pairs, {})
    loss = method.loss(pairs, terms, WindowTotals(len(gaps), len(gaps)))
    loss.backward()
    assert terms.target.dtype == dtype
    assert torch.isfinite(loss)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_diagnostics_count_margins_and_cut_exponents() -> None:
    gaps = [50.0] * 63 + [-300.0]
    target = Adaptive(BETA)
    found = {name: values.tolist() for name, values in target.diagnostics(group(gaps)).items()}
    assert found == {"target/active": [0.0] * 63 + [1.0], "target/clamped": [0.0] * 63 + [1.0]}
    assert target(group(gaps))[-1].item() == pytest.approx(BETA * math.exp(LARGEST_EXPONENT))

    mild = {name: values.tolist() for name, values in target.diagnostics(group([1, 3, 2])).items()}
    assert mild == {"target/active": [1, 0, 0], "target/clamped": [0, 0, 0]}
    linear = Adaptive(BETA, ablation="without_exp").diagnostics(group(gaps))
    assert (linear["target/active"].sum().item(), linear["target/clamped"].sum().item()) == (1, 0)
    # a margin below 0 is none
    negative = Adaptive(BETA, ablation="without_exp").diagnostics(group([-1, -3, -2]))
    assert negative["target/active"].tolist() == [0, 0, 0]


def test_diagnostics_reach_the_metrics() -> None:
    method = Objective(AverageLogProb(BETA), Adaptive(BETA), Logistic(), Uniform(), Mean(), NoRegularizer())
    terms, _ = method.terms(group([1, 3, 2]).inputs, {})
    assert set(terms.diagnostics) == {"target/active", "target/clamped"}


def test_the_clamp_does_not_change_the_gradient() -> None:
    """At exp(20) the weight is 1 to 1e-9, as it would be at any larger exponent."""
    gaps = torch.tensor([50.0] * 63 + [-300.0], dtype=torch.float64)
    weight = torch.sigmoid(Adaptive(BETA)(group(gaps.tolist())) - BETA * gaps)
    assert weight[-1].item() == pytest.approx(1, abs=1e-9)


def test_needs_and_refusals() -> None:
    assert Adaptive(BETA, statistics=8).needs == Needs(rejected=True, statistics=8, spread=True)
    with pytest.raises(UserError, match="at least 2 pairs"):
        Adaptive(BETA, statistics=1)
    with pytest.raises(UserError, match="beta=0"):
        Adaptive(0)
