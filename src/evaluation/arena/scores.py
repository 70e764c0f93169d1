"""From battles to scores and intervals, by the rule set chosen.

A battle is one game against the baseline, counted three times where the verdict was ``>>``. With a single baseline the
Bradley–Terry likelihood falls apart into one factor per model, whose maximum is

    score = 100 * sum(w * s) / sum(w),   s in {0, 0.5, 1} the model's points, w in {1, 3}

so the fit of ``v0.1`` and this mean are the same number (to the optimizer's tolerance, about 1e-6).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from src.errors import UserError
from src.evaluation.arena.verdicts import Rules
from src.evaluation.benchmark import Scores
from src.evaluation.items import finite_items, ratio_items
from src.evaluation.statistics import Metric, missing

Floats = npt.NDArray[np.float64]

SCALE, ANCHOR = 400.0, 1000.0
"""Elo points per factor of ten in the odds, and the baseline's."""

POINTS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Duel:
    """All battles of a model on one question, as the model's points; ``whole``: both games had a verdict."""

    question: str
    points: tuple[float, ...]
    whole: bool


@dataclass(frozen=True)
class ModelDuels:
    """All duels of a model with the baseline. ``judge``: who decided, if told; ``counts`` and ``notes``: what was left
    out on the way here, by which rule."""

    model: str
    judge: str | None
    duels: tuple[Duel, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def score(models: Sequence[ModelDuels], rules: Rules, rounds: int, seed: int, baseline: str) -> list[Scores]:
    """The scores of every model, in the order given.

    ``rules.whole`` drops questions of which a game has no verdict. The bootstrap of ``v0.1`` draws from the battles of
    all models together, so a model's interval (never its score) depends a little on which models stand beside it.
    """
    points = [
        np.array([p for duel in one.duels if duel.whole or not rules.whole for p in duel.points], dtype=np.float64)
        for one in models
    ]
    metrics = (
        pooled(points, rules, rounds, seed) if rules.name == "v0.1" else means(models, points, rules, rounds, seed)
    )
    return [
        Scores(
            metrics={"score": metric},
            counts={**tally(one, values, rules), **one.counts},
            notes=(said(rules, rounds, seed, baseline), *one.notes),
            details={"rules": rules.name, "rounds": rounds, "seed": seed, "baseline": baseline, "elo": elo_of(metric)},
            items=items_of(one, rules),
        )
        for one, values, metric in zip(models, points, metrics, strict=True)
    ]


def items_of(one: ModelDuels, rules: Rules) -> dict[str, dict[str, float]]:
    """Percent of each question's battles won; linearized, since questions differ in their battles."""
    counted = [duel for duel in one.duels if duel.points and (duel.whole or not rules.whole)]
    values = ratio_items([100 * sum(duel.points) for duel in counted], [len(duel.points) for duel in counted])
    return {"score": finite_items([duel.question for duel in counted], values)}


def tally(one: ModelDuels, values: Floats, rules: Rules) -> dict[str, int]:
    """How many questions and battles count, and how the battles ended."""
    ended = Counter(values.tolist())
    return {
        "questions": sum(1 for duel in one.duels if duel.points and (duel.whole or not rules.whole)),
        "battles": len(values),
        "wins": ended[1.0],
        "ties": ended[0.5],
        "losses": ended[0.0],
        "half_judged_questions": sum(1 for duel in one.duels if duel.points and not duel.whole),
        "unjudged_questions": sum(1 for duel in one.duels if not duel.points),
    }


def said(rules: Rules, rounds: int, seed: int, baseline: str) -> str:
    """How score and interval came about, in a sentence."""
    low, high = rules.percentiles
    if rules.name == "v0.1":
        how = (
            "Bradley-Terry fit against {}; interval: percentiles {:g} and {:g} of {} bootstrap rounds over all battles"
        )
    else:
        how = "mean against {} over questions with two verdicts; interval: percentiles {:g} and {:g} of {} bootstraps"
    return f"rules {rules.name}: {how.format(baseline, low, high, rounds)}, seed {seed}"


def pooled(points: Sequence[Floats], rules: Rules, rounds: int, seed: int) -> list[Metric]:
    """v0.1: a fit to all battles, and to as many battles drawn with replacement, ``rounds`` times.

    Battles are drawn as the owners' script draws them after ``np.random.seed(seed)`` (theirs is 42). A round in which
    a model has no battle says nothing of it.
    """
    model = np.concatenate([np.full(len(values), index) for index, values in enumerate(points)]).astype(np.int64)
    kind = np.concatenate([np.searchsorted(POINTS, values) for values in points]).astype(np.int64)
    cells = model * len(POINTS) + kind
    size = len(points) * len(POINTS)

    def table(drawn: npt.NDArray[np.int64]) -> Floats:
        return np.bincount(drawn, minlength=size).reshape(len(points), len(POINTS)).astype(np.float64)

    fitted = bradley_terry(table(cells))
    generator = np.random.RandomState(seed)
    drawn = [
        bradley_terry(table(cells[generator.choice(len(cells), len(cells))]))
        for _ in range(rounds if len(cells) else 0)
    ]
    return [
        interval(win_rate(fitted[index]), np.array([one[index] for one in drawn]), len(values), rules)
        if len(values)
        else missing("no game has a verdict")
        for index, values in enumerate(points)
    ]


def interval(value: float, elos: Floats, battles: int, rules: Rules) -> Metric:
    """The score with percentiles of its bootstrap, taken in Elo points as the owners do. Where a round has a model that
    lost (or won) all, whose Elo is infinite, they are taken of the win rates."""
    elos = elos[~np.isnan(elos)]
    if not len(elos):
        return {"value": value, "low": None, "high": None, "n": battles, "reason": "no bootstrap rounds: no interval"}
    if np.isfinite(elos).all():
        low, high = (win_rate(bound) for bound in np.percentile(elos, rules.percentiles))
    else:
        low, high = np.percentile([win_rate(elo) for elo in elos], rules.percentiles)
    return {"value": value, "low": float(low), "high": float(high), "n": battles}


def bradley_terry(table: Floats) -> Floats:
    """Elo of every model, the baseline's being 1000, from its [models, 3] numbers of battles lost, tied and won.

    As show_result.py of v0.1 fits it: a logistic regression without intercept or penalty on every battle twice, a tie
    once as won and once as lost. Equal rows are one row with a weight here, which is the same likelihood. A model
    that lost (or won) every battle has no finite maximum: -inf (inf), the limit. Without a battle: NaN.
    """
    total, won = table.sum(1), table @ np.array(POINTS)
    elos = np.full(len(table), np.nan)
    elos[(total > 0) & (won == 0)] = -math.inf
    elos[(total > 0) & (won == total)] = math.inf
    between = np.flatnonzero((won > 0) & (won < total))
    if len(between):
        # column 0 is the baseline, as A; row pairs: baseline won, model won
        x = np.zeros((2 * len(between), 1 + len(between)))
        x[:, 0] = math.log(10)
        for column, _ in enumerate(between):
            x[[2 * column, 2 * column + 1], 1 + column] = -math.log(10)
        y = np.tile([1.0, 0.0], len(between))
        weights = np.column_stack([2 * (total - won), 2 * won])[between].ravel()
        coefficients = regression(x, y, weights)
        elos[between] = ANCHOR + SCALE * (coefficients[1:] - coefficients[0])
    return elos


def regression(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Coefficients of scikit-learn's LogisticRegression with the owners' settings."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(
            "rules=v0.1 fits Bradley-Terry with scikit-learn, which is not installed; install it with "
            "`make setup-evaluation`"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of `penalty=None`, which newer versions write C=inf
        model = LogisticRegression(fit_intercept=False, penalty=None, tol=1e-8)
        model.fit(x, y, sample_weight=weights)
    return np.asarray(model.coef_[0], dtype=np.float64)


def means(models: Sequence[ModelDuels], points: Sequence[Floats], rules: Rules, rounds: int, seed: int) -> list[Metric]:
    """current: the mean over ``rounds`` bootstraps of each model's mean, which is not quite the mean itself.

    Models are drawn one by one in the order of their names, each from its own battles.
    """
    generator = np.random.RandomState(seed)
    order = sorted(range(len(models)), key=lambda index: models[index].model)
    found: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for index in order:
            values = points[index]
            if len(values):
                found[index].append(100.0 * float(values[generator.choice(len(values), len(values))].mean()))
    return [mean_of(samples, values, rules) for samples, values in zip(found, points, strict=True)]


def mean_of(samples: Sequence[float], values: Floats, rules: Rules) -> Metric:
    """The bootstrap's mean and percentiles; without rounds the plain mean."""
    if not len(values):
        return missing("no question has two verdicts")
    if not samples:
        value = 100.0 * float(values.mean())
        return {
            "value": value,
            "low": None,
            "high": None,
            "n": len(values),
            "reason": "no bootstrap rounds: no interval",
        }
    low, high = np.percentile(samples, rules.percentiles)
    return {"value": float(np.mean(samples)), "low": float(low), "high": float(high), "n": len(values)}


def win_rate(elo: float) -> float:
    """100 / (1 + 10^((1000 - elo)/400)): expected percent of battles won against the baseline."""
    if math.isinf(elo):
        return 100.0 if elo > 0 else 0.0
    return 100.0 / (1.0 + math.pow(10.0, (ANCHOR - elo) / SCALE))


def elo_of(metric: Metric) -> float | None:
    """The Elo that goes with a score; ``None`` where it is not finite."""
    value: Any = metric["value"]
    return None if value is None or not 0 < value < 100 else ANCHOR - SCALE * math.log10(100.0 / value - 1.0)
