"""γ-PO: the margins that mirror descent finds, the queue behind them, and what the state must keep."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.objective.dynamic import Dynamic, dynamic_margins
from src.objective.rewards import AverageLogProb, ReferenceLogRatio
from src.objective.targets import Constant
from src.training.step import pass_over, validate
from tests.unit.state_tools import SHARED, FixedEngine, group, loss_of, objective, pairs, same, stream

MARGINS = [-6.0, -1.0, 0.0, 1.0, 2.0, 4.0, 7.0, 20.0]


def solved(margins: list[float], gamma0: float, tau: float, updates: int) -> torch.Tensor:
    return dynamic_margins(torch.tensor(margins, dtype=torch.float64), gamma0, tau, updates, None)


def queue(*margins: float) -> torch.Tensor:
    return torch.tensor(margins, dtype=torch.float64)


def test_one_update_by_hand() -> None:
    # tau 2, so eta = 0.25; from p = 1/2 the shares move by exp(-0.25 * 4 * sigmoid(4 - m))
    first, second = (math.exp(-1 / (1 + math.exp(margin - 4))) for margin in (1.0, 5.0))
    expected = [8 * first / (first + second), 8 * second / (first + second)]
    assert solved([1.0, 5.0], 4.0, 2.0, 1).tolist() == pytest.approx(expected, abs=1e-8)


def test_logarithms_change_nothing() -> None:
    """The same descent on probabilities: Eq. 24 with its p_j, and the released code's guard of the logarithm."""
    margins, gamma0, tau = torch.linspace(-6, 9, 256, dtype=torch.float64), 3.0, 0.8
    p = torch.full_like(margins, 1 / 256)
    for _ in range(20):
        gradient = gamma0 * torch.sigmoid(256 * p * gamma0 - margins) + tau * (1 + torch.log(256 * (p + 1e-10)))
        p = p * torch.exp(-0.625 * gradient)
        p = p / p.sum()
    assert dynamic_margins(margins, gamma0, tau, 20, None).tolist() == pytest.approx(
        (256 * p * 3.0).tolist(), rel=1e-12
    )


@pytest.mark.parametrize(("gamma0", "tau"), [(4.0, 10.0), (0.375, 10.0), (5.0, 20.0), (3.0, 3.0), (3.0, 0.3)])
def test_the_fixed_point_is_the_minimum(gamma0: float, tau: float) -> None:
    gamma = solved(MARGINS, gamma0, tau, 400)
    level = tau * torch.log(gamma / gamma0) + gamma0 * torch.sigmoid(gamma - torch.tensor(MARGINS))
    assert level.max() - level.min() < 1e-5 * gamma0
    assert gamma.mean().item() == pytest.approx(gamma0, rel=1e-12)
    assert gamma.max() / gamma.min() <= math.exp(gamma0 / tau)
    assert (gamma.diff() > 0).all(), "the further ahead a pair is, the more is asked of it"


def test_twenty_updates_are_at_the_minimum_and_nineteen_nearly() -> None:
    gamma = [solved(MARGINS, 4.0, 10.0, updates) for updates in (19, 20, 400)]
    assert 0 < (gamma[0] - gamma[1]).abs().max() < 2e-6
    assert (gamma[1] - gamma[2]).abs().max() < 3e-6


def test_every_step_size_has_the_same_minimum() -> None:
    small = dynamic_margins(queue(*MARGINS), 3.0, 3.0, 2000, 0.02)
    assert small.tolist() == pytest.approx(solved(MARGINS, 3.0, 3.0, 400).tolist(), abs=1e-9)
    assert torch.equal(dynamic_margins(queue(*MARGINS), 3.0, 3.0, 20, 0.5 / 3.0), solved(MARGINS, 3.0, 3.0, 20))


@pytest.mark.skipif(not SHARED.exists(), reason="the development folder is not here; the cases above stand in")
def test_tables_of_the_solver() -> None:
    tables = json.loads(SHARED.read_text())["extra"]["gamma_md"]
    assert len(tables) > 3
    for table in tables:
        margins = queue(*table["reward_margin"])
        for updates in (19, 20):
            found = dynamic_margins(margins, table["gamma0"], table["tau"], updates, table["eta"])
            assert found.tolist() == pytest.approx(table[f"gamma_{updates}"], abs=1e-9)


def test_one_large_tau_is_simpo_and_centered_dpo() -> None:
    stiff, gaps = {"gamma_beta_ratio": 0.5, "tau": 1e12}, [0.5, -1.0, 3.0, 0.2]
    constant = objective(reward=AverageLogProb(2.0), target=Constant(2.0, 0.5))
    dynamic = objective(reward=AverageLogProb(2.0), target=Dynamic(beta=2.0, **stiff))
    assert loss_of(dynamic, pairs(gaps)).item() == pytest.approx(loss_of(constant, pairs(gaps)).item(), abs=1e-11)
    reward, ratios = ReferenceLogRatio(0.1), pairs(gaps, [0.1, 0.2, 0.3, 0.4])
    centered = objective(reward=reward, target=Dynamic(beta=0.1, centered=True, **stiff))
    assert loss_of(centered, ratios).item() == pytest.approx(
        loss_of(objective(reward=reward), ratios).item(), abs=1e-11
    )


def test_the_target_is_solved_of_pairs_and_history_and_the_pairs_are_pushed_after() -> None:
    part = Dynamic(beta=2.0, gamma_beta_ratio=1.5, tau=3.0)
    state = {"queue": queue(0.5, -2.0), "draws": 4}
    target, after = part.advance(group([1.0, 3.0, -1.0]), state)
    assert target.tolist() == solved([1.0, 3.0, -1.0, 0.5, -2.0], 3.0, 3.0, 20)[:3].tolist()
    assert same(after, {"queue": queue(0.5, -2.0, 1.0, 3.0, -1.0), "draws": 5})
    assert same(state, {"queue": queue(0.5, -2.0), "draws": 4}), "the state given stays as it was"


def test_centered_takes_the_mean_margin_off() -> None:
    given = {"beta": 2.0, "gamma_beta_ratio": 1.5, "tau": 3.0}
    plain = Dynamic(**given)(group(MARGINS))  # type: ignore[arg-type]
    centered = Dynamic(**given, centered=True)(group(MARGINS))  # type: ignore[arg-type]
    assert centered.tolist() == pytest.approx((plain - 3.0).tolist(), abs=1e-14)


def subsets_that_explain(part: Dynamic, state: dict[str, Any], count: int) -> list[tuple[int, ...]]:
    """Which positions of the queue, ``count`` of them, give the target that ``advance`` gives."""
    current = group([1.0, 3.0])
    target, _ = part.advance(current, state)
    options = itertools.combinations(range(len(state["queue"])), count)
    return [
        option for option in options if torch.allclose(part.advance_with(current, state, option)[0], target, 0, 1e-13)
    ]


def test_history_fills_up_the_solver_without_repeats() -> None:
    part = Dynamic(beta=1.0, gamma_beta_ratio=3.0, tau=1.0, solver_pairs=5, seed=3)
    past = queue(-5.0, -1.0, 0.0, 1.5, 2.5, 9.0)
    found = [subsets_that_explain(part, {"queue": past, "draws": draws}, 3) for draws in range(12)]
    assert [len(options) for options in found] == [1] * 12, "three different earlier margins, no more and no fewer"
    assert len({options[0] for options in found}) > 6, "other ones each time"
    assert set().union(*(options[0] for options in found)) == set(range(6)), "from all of the queue"


def test_the_draw_follows_from_seed_and_count_alone() -> None:
    state = {"queue": torch.arange(40.0, dtype=torch.float64), "draws": 11}
    given = {"beta": 1.0, "gamma_beta_ratio": 3.0, "tau": 1.0, "solver_pairs": 9}

    def target(seed: int, draws: int) -> list[float]:
        part = Dynamic(**given, seed=seed)  # type: ignore[arg-type]
        values: list[float] = part.advance(group(MARGINS), {**state, "draws": draws})[0].tolist()
        return values

    torch.manual_seed(1)
    before = target(0, 11)
    torch.manual_seed(2)
    assert target(0, 11) == before
    assert target(1, 11) != before
    assert target(0, 12) != before


def test_a_group_larger_than_the_solver_is_solved_whole_without_history() -> None:
    part = Dynamic(beta=1.0, gamma_beta_ratio=3.0, tau=1.0, solver_pairs=4)
    target, after = part.advance(group(MARGINS), {"queue": queue(5.0, 6.0), "draws": 0})
    assert target.tolist() == solved(MARGINS, 3.0, 1.0, 20).tolist()
    assert len(after["queue"]) == 10


@pytest.mark.parametrize(
    ("capacity", "kept"),
    [(0, []), (1, [4.0]), (3, [2.0, 3.0, 4.0]), (5, [-2.0, 1.0, 2.0, 3.0, 4.0]), (9, [-3, -2, 1, 2, 3, 4])],
)
def test_the_oldest_margins_are_dropped(capacity: int, kept: list[float]) -> None:
    part = Dynamic(beta=1.0, gamma_beta_ratio=3.0, tau=1.0, queue_capacity=capacity)
    _, after = part.advance(group([1.0, 2.0, 3.0, 4.0]), {"queue": queue(-3.0, -2.0), "draws": 0})
    assert after["queue"].tolist() == kept


def test_initial_queues() -> None:
    given = {"beta": 1.0, "gamma_beta_ratio": 3.0, "tau": 1.0}
    assert same(Dynamic(**given).initial_state(), {"queue": queue(), "draws": 0})  # type: ignore[arg-type]
    drawn = [Dynamic(**given, queue_init="normal8", seed=seed).initial_state()["queue"] for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert [len(one) for one in drawn] == [8, 8, 8]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    many = torch.cat(
        [Dynamic(**given, queue_init="normal8", seed=seed).initial_state()["queue"] for seed in range(200)]
    )  # type: ignore[arg-type]
    assert many.mean().abs() < 0.1
    assert many.std().item() == pytest.approx(1, abs=0.1)


def test_a_single_pair_without_history_has_the_constant_margin() -> None:
    assert Dynamic(beta=2.0, gamma_beta_ratio=0.5, tau=1.0)(group([-7.0])).tolist() == pytest.approx([1.0], abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margins", [[1e4, -1e4, 0.0], [-1e4] * 3, [3e38, 0.0, -3e38], [2.0]])
def test_extreme_margins_are_finite(dtype: torch.dtype, margins: list[float]) -> None:
    for tau in (1e-3, 10.0, 1e6):
        target = Dynamic(beta=10.0, gamma_beta_ratio=0.4, tau=tau)(group(margins, dtype))
        assert target.dtype == dtype
        assert torch.isfinite(target).all()
        assert (target >= 0).all()
    low = dynamic_margins(torch.tensor([1.0, 2.0], dtype=dtype), 4.0, 10.0, 20, None)
    assert low.dtype == torch.float32


def test_no_gradient_flows_through_the_margins() -> None:
    margins = torch.tensor(MARGINS, requires_grad=True)
    assert not dynamic_margins(margins, 4.0, 10.0, 20, None).requires_grad


def test_any_reward_and_what_is_logged() -> None:
    part = Dynamic(beta=2.0, gamma_beta_ratio=1.5, tau=3.0)
    method, inputs = objective(reward=ReferenceLogRatio(beta=2.0), target=part), pairs([1.0, -1.0], [0.5, 0.5])
    terms, after = method.terms(inputs, method.initial_state())
    assert terms.target.tolist() == pytest.approx(solved([1.0, -3.0], 3.0, 3.0, 20).tolist(), abs=1e-12)
    assert after["target"]["queue"].tolist() == pytest.approx([1.0, -3.0], abs=1e-12)
    deviation = method.metrics(inputs, terms)["target/deviation"]
    assert deviation.tolist() == pytest.approx((terms.target - 3.0).abs().tolist(), abs=1e-14)


def test_an_interrupted_queue_goes_on_bit_for_bit(tmp_path: Path) -> None:
    part = Dynamic(2.0, 1.5, 3.0, solver_pairs=12, queue_capacity=20, queue_init="normal8", seed=5)
    whole, resumed = stream(objective(target=part), None), stream(objective(target=part), tmp_path)
    assert all(map(torch.equal, whole[0], resumed[0]))
    assert same(whole[1], resumed[1])
    assert whole[1]["target"]["draws"] == 6
    assert len(whole[1]["target"]["queue"]) == 20


@pytest.mark.parametrize("statistics", ["forward", "window", 2])
def test_validation_neither_feeds_the_queue_nor_depends_on_order(statistics: Any) -> None:
    method = objective(target=Dynamic(2.0, 1.5, 3.0, solver_pairs=6, statistics=statistics))
    engine: Any = FixedEngine([pairs([1.0, 3.0, -2.0, 0.5]), pairs([0.2, -4.0, 5.0, 0.0])])
    state = {"target": {"queue": queue(0.5, 1.0, -9.0, 4.0, 4.5), "draws": 2}}
    output = validate(engine, method, state, engine.batches)
    assert output.state is state
    assert same(state, {"target": {"queue": queue(0.5, 1.0, -9.0, 4.0, 4.5), "draws": 2}})
    turned = validate(engine, method, state, engine.batches[::-1])
    if statistics != "window":
        assert turned.loss.item() == pytest.approx(output.loss.item(), abs=1e-14)
    trained = pass_over(engine, method, state, engine.batches, None)
    assert len(trained.state["target"]["queue"]) == 13
    assert trained.state["target"]["draws"] == {"forward": 4, "window": 3, 2: 6}[statistics]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": -1.0}, "tau=-1.0"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"gamma_beta_ratio": 0.0}, "gamma_beta_ratio=0.0"),
        ({"updates": 0}, "updates=0"),
        ({"step_size": 0.0}, "step_size=0.0.*between 0 and 0.2"),
        ({"step_size": 0.2}, "step_size=0.2"),
        ({"solver_pairs": 1}, "solver_pairs=1.*2 or more"),
        ({"queue_capacity": -1}, "queue_capacity=-1"),
        ({"queue_init": "zeros"}, "queue_init=zeros.*empty, normal8"),
        ({"queue_scope": "node"}, "queue_scope=node.*global, rank"),
        ({"statistics": 0}, "statistics=0"),
        ({"seed": -1}, "seed=-1"),
    ],
    ids=str,
)
def test_constants_that_cannot_work(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Dynamic(**{"beta": 2.0, "gamma_beta_ratio": 0.5, "tau": 10.0, **wrong})
