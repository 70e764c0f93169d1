"""Targets and the weight that goes with one: values by hand, ties, dtypes, step 0, limits, and refused constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.objective.links import Hinge, Logistic, Squared
from src.objective.objective import Objective
from src.objective.reductions import Mean
from src.objective.regularizers import NegativeLogLikelihood, NoRegularizer
from src.objective.rewards import ReferenceLogRatio, SummedLogProb
from src.objective.targets import FixedMargin, InverseTemperature, LengthPenalty, NoMargin, ScoreOffset
from src.objective.types import MarginGroup, Needs, PairInputs, PairLogProbs, ResponseLogProbs, WindowTotals
from src.objective.weights import Uniform, Untied

LENGTHS_W, LENGTHS_L = [12.0, 4.0, 9.0], [5.0, 4.0, 30.0]
SCORES_W, SCORES_L = [7.5, 3.0, 2.0], [4.5, 3.0, 2.5]
DPO = Objective(ReferenceLogRatio(beta=0.1), NoMargin(), Logistic(), Uniform(), Mean(), NoRegularizer())


def pairs(dtype: torch.dtype = torch.float64, scores: torch.dtype | None = torch.float64) -> PairInputs:
    """Three pairs: 3, 0 and -0.5 points apart, their chosen responses 7 tokens longer, as long, and 21 shorter."""

    def response(sums: list[float], lengths: list[float]) -> ResponseLogProbs:
        return ResponseLogProbs(torch.tensor(sums, dtype=dtype), torch.tensor(lengths, dtype=dtype))

    policy = PairLogProbs(response([-14.0, -6.5, -11.0], LENGTHS_W), response([-9.0, -6.0, -40.0], LENGTHS_L))
    policy.chosen.summed.requires_grad_()
    policy.rejected.summed.requires_grad_()
    reference = PairLogProbs(response([-15.0, -7.0, -10.0], LENGTHS_W), response([-8.0, -7.0, -38.0], LENGTHS_L))
    given = [None if scores is None else torch.tensor(one, dtype=scores) for one in (SCORES_W, SCORES_L)]
    return PairInputs(policy, reference, chosen_scores=given[0], rejected_scores=given[1])


def group(dtype: torch.dtype = torch.float64, scores: torch.dtype | None = torch.float64) -> MarginGroup:
    return DPO.group(pairs(dtype, scores))


def outcome(method: Objective, inputs: PairInputs) -> tuple[float, list[float], list[float]]:
    """Loss of one window, and its gradient in both responses' log-probs."""
    terms, _ = method.terms(inputs, {})
    loss = method.loss(inputs, terms, WindowTotals(len(inputs), int(inputs.policy.chosen.tokens.sum())))
    leaves = (inputs.policy.chosen.summed, inputs.policy.rejected.summed)
    chosen, rejected = torch.autograd.grad(loss, leaves)
    return loss.item(), chosen.tolist(), rejected.tolist()


def test_fixed_margin_and_inverse_temperature() -> None:
    assert FixedMargin(value=1.5)(group()).tolist() == [1.5] * 3
    assert InverseTemperature(tau=0.1)(group()).tolist() == [5.0] * 3


def test_length_penalty_lowers_the_target_of_a_longer_winner() -> None:
    assert LengthPenalty(alpha=0.01)(group()).tolist() == pytest.approx([-0.07, 0, 0.21], abs=1e-15)
    assert LengthPenalty(alpha=0.01, sign=-1)(group()).tolist() == pytest.approx([0.07, 0, -0.21], abs=1e-15)


def test_r_dpo_by_hand() -> None:
    loss, chosen, _ = outcome(replace(DPO, target=LengthPenalty(alpha=0.01)), pairs())
    x = [0.1 * 2 + 0.07, 0.1 * -0.5, 0.1 * 1 - 0.21]
    assert loss == pytest.approx(sum(math.log1p(math.exp(-one)) for one in x) / 3, abs=1e-14)
    assert chosen == pytest.approx([-0.1 / (1 + math.exp(one)) / 3 for one in x], abs=1e-15)


def test_offset_by_the_logarithm_or_the_gap_itself() -> None:
    assert ScoreOffset(alpha=2.0)(group()).tolist() == pytest.approx([2 * math.log(3), 0, 0], abs=1e-15)
    assert ScoreOffset(alpha=2.0, offset="identity")(group()).tolist() == [6, 0, -1]


def test_the_logarithm_drops_ties_and_pairs_scored_the_other_way_round() -> None:
    assert Untied()(group()).tolist() == [1, 0, 0]
    assert Untied(offset="identity")(group()).tolist() == [1, 1, 1]
    odpo = replace(DPO, target=ScoreOffset(alpha=1.0), weight=Untied())
    loss, chosen, rejected = outcome(odpo, pairs())
    x = 0.1 * 2 - math.log(3)
    assert loss == pytest.approx(math.log1p(math.exp(-x)) / 3, abs=1e-14), "the mean is over all pairs"
    assert chosen == pytest.approx([-0.1 / (1 + math.exp(x)) / 3, 0, 0], abs=1e-15)
    assert rejected == pytest.approx([-one for one in chosen], abs=1e-15)


def test_only_ties_give_a_loss_of_zero_and_no_gradient() -> None:
    odpo = replace(DPO, target=ScoreOffset(alpha=1.0), weight=Untied())
    assert outcome(odpo, replace(pairs(), chosen_scores=torch.tensor(SCORES_L))) == (0, [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize(
    "target",
    [LengthPenalty(alpha=0.0), LengthPenalty(alpha=0.0, sign=-1), ScoreOffset(0.0), ScoreOffset(0.0, "identity")],
    ids=repr,
)
def test_without_alpha_they_are_dpo(target: Any) -> None:
    assert outcome(replace(DPO, target=target), pairs()) == outcome(DPO, pairs())


def at_the_reference() -> PairInputs:
    inputs = pairs()
    assert inputs.reference is not None
    policy = inputs.policy
    for one, other in ((policy.chosen, inputs.reference.chosen), (policy.rejected, inputs.reference.rejected)):
        one.summed.data.copy_(other.summed)
    return inputs


def test_step_0_of_dpo_and_of_ipo() -> None:
    assert outcome(DPO, at_the_reference())[0] == pytest.approx(math.log(2), abs=1e-15)
    for average in (False, True):
        reward = ReferenceLogRatio(beta=1.0, average=average)
        ipo = replace(DPO, reward=reward, target=InverseTemperature(tau=0.4), link=Squared())
        loss, chosen, _ = outcome(ipo, at_the_reference())
        assert loss == pytest.approx(1 / (4 * 0.4**2), abs=1e-14)
        lengths = LENGTHS_W if average else [1.0] * 3
        assert chosen == pytest.approx([-2 * 1.25 / 3 / length for length in lengths], abs=1e-14)


def test_slic_by_hand() -> None:
    slic = Objective(
        *(SummedLogProb(beta=1.0), FixedMargin(value=1.0), Hinge(), Uniform(), Mean()),
        NegativeLogLikelihood(coefficient=0.1, normalization="sequence_sum"),
    )
    loss, chosen, rejected = outcome(slic, pairs())
    assert loss == pytest.approx((6 + 1.5 + 0 + 0.1 * (14 + 6.5 + 11)) / 3, abs=1e-14)
    assert chosen == pytest.approx([-1.1 / 3, -1.1 / 3, -0.1 / 3], abs=1e-15)
    assert rejected == pytest.approx([1 / 3, 1 / 3, 0], abs=1e-15)


def test_a_likelihood_term_of_coefficient_0_is_none() -> None:
    bare = Objective(SummedLogProb(beta=1.0), FixedMargin(1.0), Hinge(), Uniform(), Mean(), NoRegularizer())
    assert outcome(replace(bare, regularizer=NegativeLogLikelihood(coefficient=0.0)), pairs()) == outcome(bare, pairs())


EVERY: list[Any] = [
    FixedMargin(value=1.0),
    InverseTemperature(tau=0.01),
    LengthPenalty(alpha=0.5),
    ScoreOffset(alpha=1.0),
    ScoreOffset(alpha=1.0, offset="identity"),
    Untied(),
    Untied(offset="identity"),
]


@pytest.mark.parametrize("part", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["double", "single", "bfloat16"])
@pytest.mark.parametrize("scores", [torch.float64, torch.float32, torch.int64], ids=["double", "single", "whole"])
def test_values_are_finite_and_in_the_dtype_of_the_log_probs(
    part: Any, dtype: torch.dtype, scores: torch.dtype
) -> None:
    values = part(group(dtype, scores))
    assert values.dtype == dtype
    assert torch.isfinite(values).all()


def test_single_scores_lose_no_digits_of_a_double_target() -> None:
    inputs = replace(pairs(), chosen_scores=torch.tensor([7.0, 5, 5]), rejected_scores=torch.tensor([4.0, 4, 4]))
    assert ScoreOffset(alpha=1.0)(DPO.group(inputs))[0].item() == pytest.approx(math.log(3), rel=1e-15)


@pytest.mark.parametrize("part", [ScoreOffset(alpha=1.0), Untied()], ids=repr)
def test_parts_that_read_scores_say_so_and_stop_without(part: Any) -> None:
    assert part.needs == Needs(rejected=True, scores=True)
    with pytest.raises(ValueError, match="needs scores"):
        part(group(scores=None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "bfloat16"])
@pytest.mark.parametrize("target", EVERY[:5], ids=repr)
def test_loss_and_gradient_are_finite_with_an_empty_response(target: Any, dtype: torch.dtype) -> None:
    inputs = pairs(dtype, torch.float32)
    inputs.policy.chosen.summed.data[0] = 0
    inputs.policy.chosen.tokens[0] = 0
    for link in (Logistic(), Squared(), Hinge()):
        method = replace(DPO, reward=ReferenceLogRatio(beta=1.0, average=True), target=target, link=link)
        loss, chosen, rejected = outcome(method, inputs)
        assert all(map(math.isfinite, [loss, *chosen, *rejected]))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: FixedMargin(value=-1.0), "value=-1.0.*give 0 or above"),
        (lambda: InverseTemperature(tau=0.0), "tau=0.0.*give a value above 0"),
        (lambda: InverseTemperature(tau=-0.1), "tau=-0.1"),
        (lambda: LengthPenalty(alpha=-0.1), "alpha=-0.1.*sign"),
        (lambda: ScoreOffset(alpha=-1.0), "alpha=-1.0.*give 0"),
    ],
)
def test_refused_constants(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build()
