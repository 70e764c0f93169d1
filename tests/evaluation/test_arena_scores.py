"""Arena-Hard's arithmetic: labels read by both rule sets, Bradley-Terry, bootstraps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from src.evaluation.arena.scores import Duel, ModelDuels, bradley_terry, score, win_rate
from src.evaluation.arena.verdicts import CONTRADICTORY, NO_LABEL, RULES, UNKNOWN
from src.evaluation.benchmark import Scores

OLD, NEW = RULES["v0.1"], RULES["current"]


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("My final verdict is tie: [[A=B]].", "A=B", "A=B"),
        ("[[A>>B]] … so [[A>>B]]", "A>>B", "A>>B"),
        ("first [[A>B]], no: [[B>A]]", (None, CONTRADICTORY), "B>A"),  # the last one wins in 2025
        ("verdict: [A>B]", (None, NO_LABEL), "A>B"),  # single brackets: 2025 only
        ("[B>A] but then [[A>B]] and [B>>A]", "A>B", "A>B"),  # single brackets only where there are no double ones
        ("verdict: [[a>b]], not [b>a]", (None, NO_LABEL), "A>B"),  # capitals
        ("[[A<B]]", ("A<B", UNKNOWN), "A<B"),
        ("[[B=A]]", ("B=A", UNKNOWN), "B=A"),
        ("x = a[[A]] + b", ("A", UNKNOWN), ("A", UNKNOWN)),
        ("[[C>A]] [[ A>B ]]", (None, NO_LABEL), (None, NO_LABEL)),
        ("", (None, NO_LABEL), (None, NO_LABEL)),
    ],
)
def test_labels(text: str, old: object, new: object) -> None:
    for rules, wanted in ((OLD, old), (NEW, new)):
        verdict = rules.read(text)
        assert (verdict.label, verdict.problem) == (wanted if isinstance(wanted, tuple) else (wanted, "")), rules.name


def test_points_are_the_models_and_strong_verdicts_count_thrice() -> None:
    def points(text: str, *, swapped: bool) -> tuple[float, ...]:
        return NEW.points(NEW.read(f"[[{text}]]"), swapped=swapped)

    # the model is B in game 1 and A in game 2
    assert points("A>>B", swapped=False) == (0.0,) * 3
    assert points("A>>B", swapped=True) == (1.0,) * 3
    assert points("B>A", swapped=False) == (1.0,)
    assert points("B>A", swapped=True) == (0.0,)
    assert points("A=B", swapped=False) == points("B=A", swapped=True) == (0.5,)
    assert points("A<<B", swapped=False) == points("B<<A", swapped=True) == (1.0,) * 3
    assert points("A<B", swapped=False) == points("B<A", swapped=True) == (1.0,)
    assert NEW.points(NEW.read("no idea"), swapped=False) == ()
    assert OLD.points(OLD.read("[[A<B]]"), swapped=False) == ()


def duels(model: str, *points: tuple[float, ...], broken: int = 0) -> ModelDuels:
    """Duels on questions 0, 1, …; the first ``broken`` of them have one verdict."""
    return ModelDuels(model, None, tuple(Duel(str(i), one, i >= broken) for i, one in enumerate(points)))


def scored(*models: ModelDuels, rules: str = "v0.1", rounds: int = 20, seed: int = 42) -> list[Scores]:
    return score(models, RULES[rules], rounds, seed, "base")


def test_with_one_baseline_the_fit_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(1, 60, size=(7, 3)).astype(float)
    rates = [win_rate(elo) for elo in bradley_terry(table)]
    np.testing.assert_allclose(rates, 100 * table @ [0, 0.5, 1] / table.sum(1), atol=2e-5)


def test_a_model_that_never_wins_or_always_does_has_the_limit_and_leaves_the_others_alone() -> None:
    elos = bradley_terry(np.array([[9.0, 0, 0], [0, 0, 4], [0, 0, 0], [1, 0, 1]]))
    assert elos[0] == -math.inf
    assert elos[1] == math.inf
    assert math.isnan(elos[2])
    assert elos[3] == pytest.approx(1000, abs=1e-3)
    lost, none = scored(duels("l", (0.0, 0.0), (0.0,)), duels("n", ()))
    assert lost.metrics["score"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}
    assert none.metrics["score"]["value"] is None
    assert none.metrics["score"]["reason"] == "no game has a verdict"


def test_v01_draws_from_all_battles_together_with_its_seed() -> None:
    many = duels("a", *[(1.0, 0.0)] * 20, *[(0.5, 1.0, 1.0, 1.0)] * 10)
    alone, again, other = (scored(many, seed=seed)[0].metrics["score"] for seed in (42, 42, 43))
    assert alone == again
    assert alone["value"] == other["value"]
    assert alone["low"] != other["low"]
    beside = scored(duels("b", *[(0.0, 1.0)] * 5), many)[1].metrics["score"]
    assert beside["value"] == pytest.approx(alone["value"], abs=1e-5)
    assert beside["low"] != alone["low"]
    assert alone["low"] is not None
    assert alone["high"] is not None
    assert alone["low"] < 68.75 < alone["high"]
    # 55 points of 80 battles
    assert alone["value"] == pytest.approx(100 * 55 / 80, abs=1e-5)


def test_v01_interval_is_that_of_the_owners_draws() -> None:
    """numpy's generator of old after seed 42, ``choice`` with replacement over the rows: what pandas' sample does."""
    points = (0.0, 0.5, 1.0, 1.0) * 15
    found = scored(duels("a", *[(p,) for p in points]), rounds=7)[0].metrics["score"]
    generator = np.random.RandomState(42)
    rows = np.array(points)
    elos = []
    for _ in range(7):
        mean = rows[generator.choice(60, size=60, replace=True)].mean()
        elos.append(1000 - 400 * math.log10(1 / mean - 1))
    low, high = (win_rate(bound) for bound in np.percentile(elos, [2.5, 97.5]))
    assert found["low"] == pytest.approx(low, abs=1e-4)
    assert found["high"] == pytest.approx(high, abs=1e-4)


def test_current_drops_questions_without_two_verdicts_and_averages_bootstraps() -> None:
    model = duels("a", (1.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.5), broken=1)
    (found,) = scored(model, rules="current", rounds=400)
    assert found.counts["questions"] == 2
    assert found.counts["battles"] == 4
    assert found.counts["half_judged_questions"] == 1
    metric = found.metrics["score"]
    assert metric["value"] == pytest.approx(37.5, abs=4)
    assert metric["value"] != 37.5  # a mean over bootstraps
    assert (metric["low"], metric["high"]) == (0.0, 75.0)
    assert scored(model, rules="current", rounds=0)[0].metrics["score"]["value"] == 37.5
    # v0.1 keeps the one verdict there is
    assert scored(model)[0].metrics["score"]["value"] == pytest.approx(100 * 4.5 / 7, abs=1e-4)


def test_current_draws_each_model_apart_in_the_order_of_names() -> None:
    a, b = duels("a", (1.0, 0.0)), duels("b", (1.0, 0.5), (0.0, 0.0))
    first, second = scored(a, b, rules="current"), scored(b, a, rules="current")
    assert first[0] == second[1]
    assert first[1] == second[0]


def test_the_rule_is_named_with_rounds_and_seed() -> None:
    for rules, percentiles in (("v0.1", "2.5 and 97.5"), ("current", "5 and 95")):
        (found,) = scored(duels("a", (1.0, 0.0)), rules=rules, rounds=3, seed=5)
        for part in (f"rules {rules}", "base", percentiles, "3 bootstrap", "seed 5"):
            assert part in found.notes[0]
        assert found.details["rules"] == rules
    assert "no interval" in scored(duels("a", (1.0, 0.0)), rounds=0)[0].metrics["score"]["reason"]
