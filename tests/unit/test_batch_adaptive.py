"""β-DPO: which pairs of a group are kept, the temperature that follows, and the state of both parts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.objective.batch_adaptive import BatchAdaptive, Fidelity, Kept
from src.objective.rewards import AverageLogProb, ReferenceLogRatio
from src.objective.targets import Constant
from src.training.step import pass_over, validate
from tests.unit.state_tools import FixedEngine, group, loss_of, objective, pairs, same, stream

OFFICIAL = BatchAdaptive(beta=0.5, alpha=0.2)
GAMMA_PO = replace(OFFICIAL, fidelity="gamma_po")
FLAVOURS = pytest.mark.parametrize("fidelity", ["official", "gamma_po"])


def beta_dpo(**constants: Any) -> Any:
    """β-DPO of these constants, on averages without a reference."""
    shared = {name: value for name, value in constants.items() if name != "alpha"}
    temperature = BatchAdaptive(**{"beta": 2.0, "alpha": 0.1, **constants})
    return objective(reward=AverageLogProb(2.0), temperature=temperature, weight=Kept(**{"beta": 2.0, **shared}))


def test_official_by_hand() -> None:
    """Margins 1, 2, 6 at beta 0.5: gaps 2, 4, 12, mean 6; the group is in the mean that it is held against."""
    std = 0.1 * (((2 - 6) ** 2 + (4 - 6) ** 2 + (12 - 6) ** 2) / 2) ** 0.5
    temperature, state = OFFICIAL.advance_with(group([1.0, 2.0, 6.0]), OFFICIAL.initial_state(), [0, 1])
    assert temperature.tolist() == pytest.approx([1 + 0.2 * (3 - 0.6)] * 3, abs=1e-12)
    assert state == {"mean": pytest.approx(0.6), "std": pytest.approx(std), "draws": 1}
    weight, same_state = Kept(beta=0.5).advance_with(group([1.0, 2.0, 6.0]), OFFICIAL.initial_state(), [0, 1])
    assert weight.tolist() == [1.5, 1.5, 0.0]
    assert same_state == state


def test_gamma_po_by_hand() -> None:
    """The same margins with beta in them, mean 3; held against the mean before them."""
    group_of_three, before = group([1.0, 2.0, 6.0]), {"mean": 0.5, "std": 2.0, "draws": 3}
    temperature, state = GAMMA_PO.advance_with(group_of_three, before, [0, 1])
    assert temperature.tolist() == pytest.approx([1 + 0.2 * (1.5 - 0.5)] * 3, abs=1e-12)
    assert state == {"mean": pytest.approx(0.75), "std": pytest.approx(1.8 + 0.1 * 7**0.5), "draws": 4}
    assert before == {"mean": 0.5, "std": 2.0, "draws": 3}, "the state given stays as it was"
    weight, _ = Kept(beta=0.5, fidelity="gamma_po").advance_with(group_of_three, before, [0, 1])
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_initial_deviations() -> None:
    assert OFFICIAL.initial_state() == Kept(beta=0.5).initial_state() == {"mean": 0.0, "std": 0.0, "draws": 0}
    assert GAMMA_PO.initial_state() == {"mean": 0.0, "std": 1.0, "draws": 0}


def test_beta_does_not_fall_below_its_floor() -> None:
    temperature, _ = OFFICIAL.advance_with(group([-40.0, -60.0]), {"mean": 0.0, "std": 1.0, "draws": 0}, [0, 1])
    assert temperature.tolist() == pytest.approx([1e-3 / 0.5] * 2, abs=1e-15)


@pytest.mark.parametrize(
    ("pairs_given", "drop", "kept"),
    [
        *((1, 0.2, 1), (2, 0.2, 1), (3, 0.2, 2), (4, 0.2, 3), (5, 0.2, 4), (8, 0.2, 6), (10, 0.2, 8), (64, 0.2, 51)),
        *((5, 0.8, 1), (10, 0.8, 2), (10, 0.3, 7), (10, 0.0, 10), (3, 0.9, 1)),
    ],
)
def test_how_many_are_kept(pairs_given: int, drop: float, kept: int) -> None:
    part = Kept(beta=1.0, drop=drop)
    weight, _ = part.advance(group([0.1 * index for index in range(pairs_given)]), part.initial_state())
    assert (weight > 0).sum() == kept
    assert weight.mean().item() == pytest.approx(1.0), "the mean over the pairs kept"


def chance_of_being_kept(weights: list[float], count: int) -> list[float]:
    """Of drawing one after another without replacement, by enumeration."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, sum(weights)
        for index in order:
            chance, left = chance * weights[index] / left, left - weights[index]
        for index in order:
            chances[index] += chance
    return chances


def test_pairs_are_drawn_by_their_distance_to_the_mean() -> None:
    gaps, drawn = torch.tensor([0.5, -1.0, 2.0, 3.5, 0.0], dtype=torch.float64), 4000
    selection = Kept(beta=1.0, drop=0.4, decay=0.9, fidelity="official", seed=0)
    seen = torch.zeros(5)
    for draws in range(drawn):
        seen[selection.drawn(gaps, 0.5, 1.5, draws)] += 1
    weights = [math.exp(-((gap - 0.5) ** 2) / (2 * 1.5**2)) for gap in gaps.tolist()]
    assert (seen / drawn).tolist() == pytest.approx(chance_of_being_kept(weights, 3), abs=0.03)


def test_far_pairs_can_be_drawn_when_there_are_not_enough_near_ones() -> None:
    selection = Kept(beta=1.0, drop=0.2, decay=0.9, fidelity="official", seed=0)
    gaps = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for std in (0.0, 1e-300, 1e-9):
        kept = {tuple(selection.drawn(gaps, 0.0, std, draws)) for draws in range(40)}
        assert {len(set(one)) for one in kept} == {4}
        assert all(1 in one for one in kept), "the one at the mean is always kept"
        assert len(kept) == 4, "of the others, each is left out some time"


def test_the_draw_follows_from_seed_and_count_alone() -> None:
    selection = Kept(beta=1.0, drop=0.5, decay=0.9, fidelity="official", seed=0)
    gaps = torch.linspace(-1, 1, 20, dtype=torch.float64)
    torch.manual_seed(1)
    first = selection.drawn(gaps, 0.0, 1.0, 7)
    torch.manual_seed(2)
    assert selection.drawn(gaps, 0.0, 1.0, 7) == first
    assert selection.drawn(gaps, 0.0, 1.0, 8) != first
    assert replace(selection, seed=1).drawn(gaps, 0.0, 1.0, 7) != first


def test_temperature_and_weight_speak_of_the_same_pairs() -> None:
    temperature, weight = BatchAdaptive(beta=0.5, alpha=0.2, seed=4), Kept(beta=0.5, seed=4)
    state, other = temperature.initial_state(), weight.initial_state()
    torch.manual_seed(0)
    for _ in range(6):
        margins = torch.randn(9, dtype=torch.float64)
        given, state = temperature.advance(group(margins.tolist()), state)
        kept, other = weight.advance(group(margins.tolist()), other)
        assert same(state, other)
        excess = margins[kept > 0].mean().item() / 0.5 - state["mean"]
        assert given.tolist() == pytest.approx([max(1 + 0.2 * excess, 2e-3)] * 9, abs=1e-12)


def test_the_loss_is_that_of_the_batch_beta_over_the_pairs_kept() -> None:
    method, gaps = beta_dpo(), [0.5, -1.0, 2.0, 0.1, 0.3]
    terms, _ = method.terms(pairs(gaps), method.initial_state())
    beta, kept = 2.0 * terms.temperature[0].item(), [gap for gap, w in zip(gaps, terms.weight, strict=True) if w > 0]
    expected = sum(math.log1p(math.exp(-beta * gap)) for gap in kept) / 4
    assert loss_of(method, pairs(gaps)).item() == pytest.approx(expected, abs=1e-14)
    assert terms.diagnostics["weight/kept"].tolist() == [float(gap in kept) for gap in gaps]
    assert terms.diagnostics["temperature/mean"].tolist() == terms.temperature.tolist()


def test_a_target_margin_scales_with_beta() -> None:
    temperature = BatchAdaptive(beta=2.0, alpha=0.3, fidelity="gamma_po")
    method = objective(reward=AverageLogProb(2.0), target=Constant(2.0, 0.4), temperature=temperature)
    terms, _ = method.terms(pairs([0.5, -1.0, 2.0]), method.initial_state())
    beta = 2.0 * terms.temperature[0].item()
    assert beta != 2.0
    expected = sum(math.log1p(math.exp(-beta * (gap - 0.4))) for gap in (0.5, -1.0, 2.0)) / 3
    assert loss_of(method, pairs([0.5, -1.0, 2.0])).item() == pytest.approx(expected, abs=1e-14)


def test_without_alpha_and_drop_it_is_the_plain_loss() -> None:
    inputs = pairs([0.5, -1.0, 2.0], [0.1, 0.3, -0.5])
    plain = objective(reward=ReferenceLogRatio(2.0))
    still = replace(plain, temperature=BatchAdaptive(beta=2.0, alpha=0.0, drop=0.0), weight=Kept(beta=2.0, drop=0.0))
    assert loss_of(still, inputs).item() == pytest.approx(loss_of(plain, inputs).item(), abs=1e-14)


def test_one_pair_leaves_the_averages_alone() -> None:
    state = {"mean": 0.3, "std": 1.2, "draws": 5}
    for part in (OFFICIAL, GAMMA_PO, Kept(beta=0.5)):
        value, after = part.advance(group([1.0]), state)
        assert torch.isfinite(value).all()
        assert after == {"mean": 0.3, "std": 1.2, "draws": 6}
    assert Kept(beta=0.5)(group([1.0])).tolist() == [1.0]


@FLAVOURS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gaps", [[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e3] * 5, [2.0]], ids=str)
def test_wild_groups_are_finite(fidelity: Fidelity, dtype: torch.dtype, gaps: list[float]) -> None:
    method, inputs = beta_dpo(fidelity=fidelity), pairs(gaps, dtype=dtype)
    loss = loss_of(method, inputs)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert inputs.policy.chosen.summed.grad is not None
    assert torch.isfinite(inputs.policy.chosen.summed.grad).all()


@FLAVOURS
def test_interrupted_averages_go_on_bit_for_bit(fidelity: Fidelity, tmp_path: Path) -> None:
    method = beta_dpo(fidelity=fidelity, seed=3)
    whole, resumed = stream(method, None), stream(method, tmp_path)
    assert all(map(torch.equal, whole[0], resumed[0]))
    assert same(whole[1], resumed[1])
    assert whole[1]["weight"]["draws"] == whole[1]["temperature"]["draws"] == 6


def test_validation_leaves_the_averages_alone() -> None:
    method = beta_dpo()
    before = {slot: {"mean": 0.2, "std": 0.5, "draws": 3} for slot in ("temperature", "weight")}
    engine: Any = FixedEngine([pairs([1.0, 3.0, -1.0]), pairs([0.2, -4.0, 0.4])])
    output = validate(engine, method, before, engine.batches)
    assert output.state is before
    assert before == {slot: {"mean": 0.2, "std": 0.5, "draws": 3} for slot in ("temperature", "weight")}
    assert validate(engine, method, before, engine.batches[::-1]).loss.item() == pytest.approx(output.loss.item())
    assert pass_over(engine, method, before, engine.batches, None).state["weight"]["draws"] == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"drop": 1.0}, "drop=1.0"),
        ({"drop": -0.1}, "drop=-0.1"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"fidelity": "paper"}, "fidelity=paper.*official, gamma_po"),
        ({"statistics": 1}, "at least 2 pairs"),
        ({"seed": -2}, "seed=-2"),
    ],
    ids=str,
)
def test_constants_that_cannot_work(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Kept(**{"beta": 0.1, **wrong})
    with pytest.raises(UserError, match=said):
        BatchAdaptive(**{"beta": 0.1, "alpha": 0.6, **wrong})


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(UserError, match=r"alpha=-0\.6"):
        BatchAdaptive(beta=0.1, alpha=-0.6)
