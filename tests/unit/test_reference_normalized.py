"""α-DPO: margins that follow the log-ratio gap to the reference, in three readings of its statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.objective.reference_normalized import ReferenceNormalized
from src.objective.rewards import AverageLogProb, SummedLogProb
from src.objective.targets import Constant
from src.objective.types import MarginGroup, PairRewards
from src.training.step import pass_over, validate
from tests.unit.state_tools import FixedEngine, loss_of, objective, pairs, same, stream

OURS = ReferenceNormalized(beta=2.0, gamma_beta_ratio=0.5, alpha=0.25)
RELEASED = replace(OURS, fidelity="released")
PAPER = replace(OURS, fidelity="paper")
ALL = pytest.mark.parametrize("part", [OURS, RELEASED, PAPER], ids=lambda part: part.fidelity)


def group(gaps: list[float], dtype: torch.dtype = torch.float64) -> MarginGroup:
    """Pairs of which the policy prefers chosen by so many nats per token more than the reference does."""
    inputs = pairs(gaps, [0.0] * len(gaps), dtype).detach()
    zeros = torch.zeros(len(gaps), dtype=dtype)
    return MarginGroup(PairRewards(zeros, zeros), inputs)


def z_scores(part: ReferenceNormalized, target: torch.Tensor) -> list[float]:
    scale = part.alpha if part.fidelity == "paper" else part.alpha * part.beta
    scores: list[float] = ((target - part.beta * part.gamma_beta_ratio) / scale).tolist()
    return scores


def test_averages_by_hand() -> None:
    """Gaps 1, 2, 3 (mean 2, deviation 1), then 4 and 6 (mean 5, deviation sqrt 2)."""
    first, state = OURS.advance(group([1.0, 2.0, 3.0]), OURS.initial_state())
    assert z_scores(OURS, first) == pytest.approx([-1, 0, 1], abs=1e-12), "the correction gives the group's own"
    second, after = OURS.advance(group([4.0, 6.0]), state)
    mean, std = 0.9 * 0.2 + 0.1 * 5, 0.9 * 0.1 + 0.1 * 2**0.5
    m, s = mean / 0.19, std / 0.19
    assert z_scores(OURS, second) == pytest.approx([(4 - m) / s, (6 - m) / s], abs=1e-12)
    assert after == {"mean": pytest.approx(mean), "std": pytest.approx(std), "groups": 2}


def test_the_released_averages_start_at_zero() -> None:
    first, state = RELEASED.advance(group([1.0, 2.0, 3.0]), RELEASED.initial_state())
    assert z_scores(RELEASED, first) == pytest.approx([8, 18, 28], abs=1e-12)
    second, _ = RELEASED.advance(group([4.0, 6.0]), state)
    mean, std = 0.68, 0.09 + 0.1 * 2**0.5
    assert z_scores(RELEASED, second) == pytest.approx([(4 - mean) / std, (6 - mean) / std], abs=1e-12)


def test_the_paper_standardizes_within_the_group_and_scales_by_alpha_alone() -> None:
    target, state = PAPER.advance(group([1.0, 2.0, 3.0]), PAPER.initial_state())
    assert target.tolist() == pytest.approx([0.75, 1.0, 1.25], abs=1e-12)
    assert state == {} == PAPER.initial_state()
    assert not PAPER.needs.state
    assert OURS.needs.state


def test_the_gap_counts_tokens_and_knows_no_beta() -> None:
    """Chosen: 3 nats above the reference over 3 tokens; rejected: 4 below it over 2: a gap of 1 + 2."""
    inputs = pairs([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert inputs.reference is not None
    chosen = replace(inputs.policy.chosen, summed=torch.tensor([-6.0, -1, -1]), tokens=torch.tensor([3.0, 1, 1]))
    rejected = replace(inputs.policy.rejected, summed=torch.tensor([-9.0, -1, -1]), tokens=torch.tensor([2.0, 1, 1]))
    base = replace(
        inputs.reference,
        chosen=replace(chosen, summed=torch.tensor([-9.0, -1, -1])),
        rejected=replace(rejected, summed=torch.tensor([-5.0, -1, -1])),
    )
    moved = replace(inputs, policy=replace(inputs.policy, chosen=chosen, rejected=rejected), reference=base)
    targets = []
    for reward in (AverageLogProb(beta=2.0), SummedLogProb(beta=7.0)):
        terms, after = objective(reward=reward, target=OURS).terms(moved, {"target": OURS.initial_state()})
        assert after["target"]["mean"] == pytest.approx(0.1 * 3 / 3)
        targets.append(terms.target.tolist())
    assert targets[0] == targets[1]


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_first_step_where_the_policy_is_the_reference(part: ReferenceNormalized, dtype: torch.dtype) -> None:
    method, inputs = objective(target=part), pairs([0.5, -1.0, 2.0], [0.5, -1.0, 2.0], dtype)
    loss = loss_of(method, inputs)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = loss_of(objective(target=Constant(2.0, 0.5)), inputs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert inputs.policy.chosen.summed.grad is not None
    assert torch.isfinite(inputs.policy.chosen.summed.grad).all()


@ALL
def test_alpha_zero_is_simpo(part: ReferenceNormalized) -> None:
    inputs = pairs([0.5, -1.0, 2.0], [0.1, 0.2, 0.9])
    plain = loss_of(objective(target=Constant(2.0, 0.5)), inputs)
    assert loss_of(objective(target=replace(part, alpha=0.0)), inputs).item() == pytest.approx(plain.item(), abs=1e-14)
    assert abs(loss_of(objective(target=part), inputs).item() - plain.item()) > 1e-3


def test_rounding_noise_gets_no_score_but_in_the_released_form() -> None:
    noise = group([1e-8, -1e-8, 2e-8])
    for part in (OURS, PAPER):
        assert part(noise).tolist() == [1.0, 1.0, 1.0]
    assert max(z_scores(RELEASED, RELEASED(noise))) > 10


@ALL
def test_one_pair_leaves_the_averages_alone(part: ReferenceNormalized) -> None:
    alone, state = part.advance(group([5.0]), part.initial_state())
    assert alone.tolist() == [1.0]
    assert state == part.initial_state()
    _, known = part.advance(group([1.0, 2.0, 3.0]), state)
    later, after = part.advance(group([4.0]), known)
    expected = {"ours": (4 - 2) / 1, "released": (4 - 0.2) / 0.1, "paper": 0.0}[part.fidelity]
    assert z_scores(part, later) == pytest.approx([expected], abs=1e-12)
    assert after == known


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wild_gaps_are_finite(part: ReferenceNormalized, dtype: torch.dtype) -> None:
    for gaps in ([1e4, -1e4, 0.0], [3.0, 3.0], [0.0, 1e-20]):
        target = part(group(gaps, dtype))
        assert target.dtype == dtype
        assert torch.isfinite(target).all()


@ALL
def test_an_interrupted_average_goes_on_bit_for_bit(part: ReferenceNormalized, tmp_path: Path) -> None:
    method = objective(target=part)
    whole, resumed = stream(method, None), stream(method, tmp_path)
    assert all(map(torch.equal, whole[0], resumed[0]))
    assert same(whole[1], resumed[1])


def test_validation_leaves_the_averages_alone() -> None:
    method, before = objective(target=OURS), {"target": {"mean": 0.02, "std": 0.05, "groups": 3}}
    engine: Any = FixedEngine([pairs([1.0, 3.0], [0.2, 0.1]), pairs([0.2, -4.0], [0.0, 0.0])])
    output = validate(engine, method, before, engine.batches)
    assert output.state is before
    assert before == {"target": {"mean": 0.02, "std": 0.05, "groups": 3}}
    assert validate(engine, method, before, engine.batches[::-1]).loss.item() == pytest.approx(output.loss.item())
    assert pass_over(engine, method, before, engine.batches, None).state["target"]["groups"] == 5
    assert output.pair_metrics["target/deviation"].shape == (4,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"decay": 0.0}, "decay=0.0"),
        ({"decay": 1.0}, "decay=1.0.*such as 0.9"),
        ({"fidelity": "code"}, "fidelity=code.*ours, released, paper"),
        ({"statistics": 1}, "at least 2 pairs"),
    ],
    ids=str,
)
def test_constants_that_cannot_work(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ReferenceNormalized(**{"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 0.1, **wrong})
