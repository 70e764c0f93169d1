"""Parts and their sum: values by hand, by finite differences, and by what they must never do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from src.errors import UserError
from src.objective.adaptive import Adaptive
from src.objective.links import Logistic, NoPreference
from src.objective.objective import PAIR_METRICS, Objective
from src.objective.reductions import Mean
from src.objective.regularizers import NegativeLogLikelihood, NoRegularizer
from src.objective.rewards import AverageLogProb, ReferenceLogRatio, SummedLogProb
from src.objective.targets import Constant, NoMargin
from src.objective.types import MarginGroup, Needs, PairInputs, PairLogProbs, PairTerms, ResponseLogProbs, WindowTotals
from src.objective.weights import Uniform


def objective(**parts: object) -> Objective:
    defaults: dict[str, object] = {
        "reward": AverageLogProb(beta=2.0),
        "target": NoMargin(),
        "link": Logistic(),
        "weight": Uniform(),
        "reduce": Mean(),
        "regularizer": NoRegularizer(),
    }
    return Objective(**{**defaults, **parts})  # type: ignore[arg-type]


DPO = objective(reward=ReferenceLogRatio(beta=0.1))
SIMPO = objective(target=Constant(beta=2.0, gamma_beta_ratio=0.5))
AMAPO = objective(target=Adaptive(beta=2.0))


def inputs(s_w: list[float], s_l: list[float], n_w: list[float], n_l: list[float], **more: list[float]) -> PairInputs:
    def tensor(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    tokens_w, tokens_l = tensor(n_w), tensor(n_l)
    policy = PairLogProbs(
        ResponseLogProbs(tensor(s_w).requires_grad_(), tokens_w),
        ResponseLogProbs(tensor(s_l).requires_grad_(), tokens_l),
    )
    reference = None
    if "q_w" in more:
        reference = PairLogProbs(
            ResponseLogProbs(tensor(more["q_w"]), tokens_w), ResponseLogProbs(tensor(more["q_l"]), tokens_l)
        )
    return PairInputs(policy, reference)


def loss_of(method: Objective, pairs: PairInputs) -> torch.Tensor:
    totals = WindowTotals(len(pairs), int(pairs.policy.chosen.tokens.sum()))
    terms, _ = method.terms(pairs, method.initial_state())
    return method.loss(pairs, terms, totals)


def test_dpo_by_hand() -> None:
    pairs = inputs([-10.0], [-12.0], [5], [6], q_w=[-11.0], q_l=[-11.0])
    loss = loss_of(DPO, pairs)
    loss.backward()
    margin = 0.1 * ((-10 + 11) - (-12 + 11))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-15)
    weight = 1 / (1 + math.exp(margin))
    assert pairs.policy.chosen.summed.grad is not None
    assert pairs.policy.chosen.summed.grad.item() == pytest.approx(-0.1 * weight, abs=1e-15)


def test_simpo_by_hand() -> None:
    loss = loss_of(SIMPO, inputs([-10.0], [-12.0], [5], [4]))
    margin = 2 * ((-10 / 5) - (-12 / 4)) - 2 * 0.5
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-15)


def test_amapo_by_hand() -> None:
    # gaps 1, 3, 2: mean 2, unbiased deviation 1; only the first is below the mean, z = 1
    pairs = inputs([-1.0, -1.0, -1.0], [-2.0, -4.0, -3.0], [1, 1, 1], [1, 1, 1])
    terms, _ = AMAPO.terms(pairs, {})
    assert terms.target.tolist() == pytest.approx([2 * math.exp(2.0), 0, 0], abs=1e-12)
    paper, _ = objective(target=Adaptive(beta=2.0, fidelity="paper")).terms(pairs, {})
    assert paper.target.tolist() == pytest.approx([2 * math.exp(4.0), 0, 0], abs=1e-9)


def test_amapo_gates_differ_when_the_mean_is_negative() -> None:
    # gaps -1, -3, -2: the code favours the one below the mean, the paper's formula the one above
    pairs = inputs([-2.0, -4.0, -3.0], [-1.0, -1.0, -1.0], [1, 1, 1], [1, 1, 1])
    released, _ = AMAPO.terms(pairs, {})
    paper, _ = objective(target=Adaptive(beta=2.0, fidelity="paper")).terms(pairs, {})
    assert (released.target > 0).tolist() == [False, True, False]
    assert (paper.target > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("gaps", [[1.0], [0.5, 0.5, 0.5], [0.0, 0.0]])
def test_amapo_without_spread_has_no_margin(gaps: list[float]) -> None:
    ones = [1.0] * len(gaps)
    pairs = inputs([-1.0] * len(gaps), [-1.0 - gap for gap in gaps], ones, ones)
    terms, _ = AMAPO.terms(pairs, {})
    assert terms.target.abs().max() == 0
    assert torch.isfinite(loss_of(AMAPO, pairs))


def test_amapo_outlier_overflows_nothing() -> None:
    gaps = [0.0] * 63 + [-300.0]
    ones = [1.0] * 64
    rejected = torch.tensor([50.0 - gap for gap in gaps])
    for dtype in (torch.float32, torch.bfloat16):
        chosen = ResponseLogProbs(torch.full((64,), 60.0, dtype=dtype).requires_grad_(), torch.tensor(ones))
        pairs = PairInputs(PairLogProbs(chosen, ResponseLogProbs(-rejected.to(dtype), torch.tensor(ones))))
        loss = loss_of(AMAPO, pairs)
        loss.backward()
        assert torch.isfinite(loss)
        assert chosen.summed.grad is not None
        assert torch.isfinite(chosen.summed.grad).all()


def test_empty_completion_is_finite() -> None:
    loss = loss_of(SIMPO, inputs([0.0, -30.0], [-45.0, 0.0], [0, 40], [50, 0]))
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", [DPO, SIMPO, AMAPO, replace(SIMPO, link=Logistic(label_smoothing=0.1))])
def test_gradient_is_that_of_detached_targets(method: Objective) -> None:
    """Autograd equals finite differences of the loss with targets held fixed: nothing flows through targets."""
    pairs = inputs([-9.0, -7.0, -8.0], [-8.0, -9.5, -8.1], [4, 3, 5], [3, 5, 4], q_w=[-9.5, -7, -8], q_l=[-8, -9, -8])
    terms, _ = method.terms(pairs, {})
    totals = WindowTotals(3, 12)
    method.loss(pairs, terms, totals).backward()
    chosen = pairs.policy.chosen
    assert chosen.summed.grad is not None
    for index in range(3):
        values = []
        for sign in (1, -1):
            moved = chosen.summed.detach().clone()
            moved[index] += sign * 1e-6
            policy = replace(pairs.policy, chosen=replace(chosen, summed=moved))
            values.append(method.loss(replace(pairs, policy=policy), terms, totals).item())
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(chosen.summed.grad[index].item(), abs=1e-8)


def test_separable_losses_add_up_over_forwards() -> None:
    pairs = inputs([-9.0, -7.0, -8.0, -5.0], [-8.0, -9.5, -8.1, -7.0], [4, 3, 5, 2], [3, 5, 4, 4])
    totals = WindowTotals(4, 14)
    for method in (SIMPO, objective(regularizer=NegativeLogLikelihood(), link=NoPreference())):
        whole = loss_of(method, pairs)
        cut = [method.loss(p, method.terms(p, {})[0], totals) for p in (pairs[0:1], pairs[1:4])]
        assert sum(cut).item() == pytest.approx(whole.item(), abs=1e-14)


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("token_mean", 16 / 7), ("sequence_mean", (9 / 4 + 7 / 3) / 2), ("sequence_sum", 8.0)],
)
def test_sft_normalizations(normalization: str, expected: float) -> None:
    sft = objective(link=NoPreference(), regularizer=NegativeLogLikelihood(normalization=normalization))  # type: ignore[arg-type]
    assert loss_of(sft, inputs([-9.0, -7.0], [0.0, 0.0], [4, 3], [0, 0])).item() == pytest.approx(expected, abs=1e-12)


def test_needs_are_the_union_and_sft_needs_nothing_rejected() -> None:
    assert DPO.needs == Needs(rejected=True, reference=True)
    assert AMAPO.needs == Needs(rejected=True, statistics="forward", spread=True)
    assert objective(target=Adaptive(beta=1.0, statistics=8)).needs.statistics == 8
    sft = objective(link=NoPreference(), reward=ReferenceLogRatio(beta=1.0), regularizer=NegativeLogLikelihood())
    assert sft.needs == Needs()


def test_metrics_are_the_named_ones() -> None:
    pairs = inputs([-9.0], [-8.0], [4], [3])
    terms, _ = SIMPO.terms(pairs, {})
    metrics = SIMPO.metrics(pairs, terms)
    assert tuple(metrics) == PAIR_METRICS
    assert metrics["rewards/accuracies"].item() == 1.0
    assert metrics["rewards/margins"].item() == pytest.approx(2 * (-9 / 4 + 8 / 3))


def test_a_tie_is_not_accurate() -> None:
    pairs = inputs([-8.0], [-8.0], [4], [4])
    assert SIMPO.metrics(pairs, SIMPO.terms(pairs, {})[0])["rewards/accuracies"].item() == 0.0


class Counting:
    """A target that counts the pairs it has seen: state goes in and comes out, and is not changed in place."""

    needs = Needs(rejected=True, state=True)

    def initial_state(self) -> dict[str, int]:
        return {"seen": 0}

    def __call__(self, group: MarginGroup) -> torch.Tensor:
        return torch.zeros_like(group.margins)

    def advance(self, group: MarginGroup, state: dict[str, int]) -> tuple[torch.Tensor, dict[str, int]]:
        return torch.full_like(group.margins, float(state["seen"])), {"seen": state["seen"] + len(group.inputs)}


def test_state_is_returned_not_mutated() -> None:
    method = objective(target=Counting())
    pairs = inputs([-9.0, -8.0], [-8.0, -8.0], [4, 4], [3, 4])
    before = method.initial_state()
    _, after = method.terms(pairs, before)
    terms, last = method.terms(pairs, after)
    assert (before, after, last) == ({"target": {"seen": 0}}, {"target": {"seen": 2}}, {"target": {"seen": 4}})
    assert terms.target.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: AverageLogProb(beta=0.0), "beta=0.0"),
        (lambda: SummedLogProb(beta=-1.0), "beta=-1.0"),
        (lambda: Logistic(label_smoothing=0.5), "label_smoothing=0.5"),
        (lambda: Adaptive(beta=1.0, statistics=1), "at least 2 pairs"),
        (lambda: NegativeLogLikelihood(coefficient=-0.1), "coefficient=-0.1"),
    ],
)
def test_parts_refuse_constants_that_cannot_work(build, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=said):
        build()


def test_terms_concatenate_and_slice() -> None:
    ones = torch.ones(2)
    part = PairTerms(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), ones, ones, ones, {"target/clamped": ones})
    joined = PairTerms.concatenate([part, part])
    assert joined.target.tolist() == [1, 2, 1, 2]
    assert joined[1:3].weight.tolist() == [4, 3]
