"""Claims of papers as checks: which comparisons they are, and what decides them, printed and reproduced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import Problems, UserError
from src.experiments.claims import Best, DegradesLess, Greater, Monotone, PeakAt, RankAgreement, claims_of
from src.experiments.experiment import Column, MeanOf, Measured, all_paths, load
from src.experiments.verdicts import Verdict, agreements, printed_verdict, reproduced_verdict
from tests.experiments.measured import WINS, experiment_of, results_of

ROWS = [("a", "sft"), ("a", "dpo"), ("a", "amapo"), ("b", "sft"), ("b", "dpo"), ("b", "amapo")]
BEST = Best("wins", {"method": "amapo"}, ("model",))


def printed(*numbers: float | None) -> dict[tuple[str, str], list[float | None]]:
    """The paper's numbers of ``ROWS``."""
    return {row: [number] for row, number in zip(ROWS, numbers, strict=True)}


def values_of(*means: float, spread: float = 1.0, items: int = 200, seeds: int = 1) -> dict[Any, Any]:
    """Our numbers of ``ROWS``: questions about ``means``, each harder or easier for all rows."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, items)
    return {
        row: {seed: (mean + hard + rng.normal(0, spread, items)).tolist() for seed in range(seeds)}
        for row, mean in zip(ROWS, means, strict=True)
    }


def outcome(check: Any, *numbers: float | None) -> str | None:
    """What printed numbers say."""
    verdict = printed_verdict(check, experiment_of(ROWS, printed(*numbers)))
    return None if verdict is None else verdict.outcome


def test_best_on_printed_numbers() -> None:
    assert outcome(BEST, 1, 2, 3, 1, 2, 3) == "holds"
    assert outcome(BEST, 1, 2, 3, 1, 4, 3) == "fails"
    assert outcome(BEST, 1, 3, 3, 1, 2, 3) == "undecided"  # a tie at the printed digits
    assert outcome(BEST, 1, None, 3, 1, 2, 3) == "holds"  # among what is printed
    assert outcome(BEST, None, None, None, None, None, None) is None
    assert outcome(replace(BEST, lowest=True), 3, 2, 1, 3, 2, 1) == "holds"
    only = Best("wins", {"model": "b", "method": "amapo"}, ("model",))
    assert outcome(only, 9, 9, 1, 1, 2, 3) == "holds"


def test_the_verdict_names_what_decided() -> None:
    verdict = printed_verdict(BEST, experiment_of(ROWS, printed(1, 2, 3, 1, 4, 3)))
    assert verdict is not None
    assert verdict.text == "holds in 1, fails in 1 of 2; b: amapo minus dpo"
    assert verdict.interval == "-1"
    assert [part.outcome for part in verdict.parts] == ["holds", "fails"]


def test_lower_is_better_turns_best_but_not_greater() -> None:
    columns = [replace(WINS, higher_is_better=False)]
    experiment = experiment_of(ROWS, printed(3, 2, 1, 3, 2, 1), columns)
    best, greater = (
        printed_verdict(check, experiment)
        for check in (BEST, Greater("wins", {"method": "sft"}, {"method": "amapo"}, ("model",)))
    )
    assert best is not None
    assert greater is not None
    assert (best.outcome, greater.outcome) == ("holds", "holds")


def test_best_among_a_group_alone() -> None:
    experiment = experiment_of(ROWS[:3], {row: [n] for row, n in zip(ROWS[:3], (9, 2, 3), strict=True)})
    grouped = replace(experiment, groups={"method": (("sft",), ("dpo", "amapo"))})
    before, after = (printed_verdict(BEST, one) for one in (experiment, grouped))
    assert before is not None
    assert after is not None
    assert (before.outcome, after.outcome) == ("fails", "holds")


def test_greater_pairs_rows_that_share_their_other_labels() -> None:
    check = Greater("wins", {"method": "amapo"}, {"method": "dpo"})
    assert [block.where for block in check.blocks(experiment_of(ROWS))] == ["a", "b"]
    assert outcome(check, 0, 2, 3, 0, 9, 8) == "fails"
    across = Greater("wins", {"model": "a", "method": "dpo"}, {"model": "b", "method": "sft"})
    assert outcome(across, 0, 5, 0, 4, 0, 0) == "holds"


def test_degrades_less_along_columns() -> None:
    columns = [replace(WINS, name=name, title=name) for name in ("clean", "flip_20", "flip_40")]
    check = DegradesLess({"method": "amapo"}, {"method": "dpo"}, columns=("clean", "flip_20", "flip_40"))
    rows = ROWS[1:3]
    experiment = experiment_of(rows, {rows[0]: [80, 70, 60], rows[1]: [78, 75, 59]}, columns)
    verdict = printed_verdict(check, experiment)
    assert verdict is not None
    assert verdict.outcome == "holds"
    assert verdict.text == "change from clean to flip_40, amapo minus dpo"
    assert verdict.interval == "+1"
    worse = printed_verdict(check, experiment_of(rows, {rows[0]: [80, 70, 60], rows[1]: [78, 75, 57]}, columns))
    assert worse is not None
    assert worse.outcome == "fails"


def test_degrades_less_along_an_axis() -> None:
    check = DegradesLess({"method": "amapo"}, {"method": "dpo"}, column="wins", over="model")
    assert outcome(check, 0, 10, 9, 0, 5, 6) == "holds"
    assert outcome(check, 0, 10, 9, 0, 5, 3) == "fails"


def test_monotone_and_peak() -> None:
    down = Monotone("down", column="wins", over="method", row={"model": "a"})
    assert outcome(down, 3, 2, 1, 0, 9, 0) == "holds"
    assert outcome(down, 3, 1, 2, 0, 9, 0) == "fails"
    assert outcome(replace(down, direction="up"), 1, 2, 3, 0, 9, 0) == "holds"
    peak = PeakAt("wins", "method", "dpo")
    assert outcome(peak, 1, 2, 1, 0, 9, 8) == "holds"
    assert outcome(peak, 1, 2, 3, 0, 9, 8) == "fails"


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((1, 2, 4, 1, 2, 4), "holds"),
        ((1, 4, 2, 1, 2, 4), "fails"),
        ((1, 2, 2.02, 1, 2, 4), "undecided"),
    ],
)
def test_our_numbers_decide_by_their_interval(tmp_path: Path, means: tuple[float, ...], expected: str) -> None:
    """What a question does to all rows is far more than the rows differ by, and cancels."""
    verdict = reproduced_verdict(BEST, results_of(tmp_path, experiment_of(ROWS), values_of(*means)))
    assert verdict.outcome == expected
    assert verdict.estimate is not None
    assert verdict.estimate.low is not None


def test_one_block_that_fails_is_enough_and_one_undecided_keeps_it_open(tmp_path: Path) -> None:
    results = results_of(tmp_path, experiment_of(ROWS), values_of(1, 2, 4, 1, 2, 2.02))
    verdict = reproduced_verdict(BEST, results)
    assert (verdict.outcome, [part.outcome for part in verdict.parts]) == ("undecided", ["holds", "undecided"])


def test_missing_rows_leave_it_open_unless_another_fails(tmp_path: Path) -> None:
    values = values_of(1, 4, 2, 1, 2, 4)
    del values["b", "dpo"]
    parts = reproduced_verdict(BEST, results_of(tmp_path, experiment_of(ROWS), values)).parts
    assert [part.outcome for part in parts] == ["fails", "undecided"]
    assert "1 of 2 comparisons are not measured yet" in parts[1].text
    nothing = reproduced_verdict(BEST, results_of(tmp_path / "none", experiment_of(ROWS), {}))
    assert nothing.outcome == "undecided"
    assert nothing.interval == ""


def test_without_items_one_seed_decides_nothing_and_several_do(tmp_path: Path) -> None:
    values = {
        row: {seed: [mean + seed] for seed in range(3)} for row, mean in zip(ROWS, (1, 2, 4, 1, 2, 4), strict=True)
    }
    one = reproduced_verdict(BEST, results_of(tmp_path / "one", experiment_of(ROWS), values))
    assert one.outcome == "undecided"
    assert "one seed" in one.text
    three = reproduced_verdict(BEST, results_of(tmp_path / "three", experiment_of(ROWS), values, seeds=(0, 1, 2)))
    assert three.outcome == "holds"


def test_a_claim_about_a_mean_of_columns(tmp_path: Path) -> None:
    columns = [
        WINS,
        Column("twice", "Twice", Measured("alpaca_eval", "win_rate"), scale=2.0),
        Column("mean", "Mean", MeanOf(("wins", "twice"))),
    ]
    results = results_of(tmp_path, experiment_of(ROWS, columns=columns), values_of(1, 2, 4, 1, 2, 4))
    check = Greater("mean", {"method": "amapo"}, {"method": "dpo"})
    single = Greater("wins", {"method": "amapo"}, {"method": "dpo"})
    whole, part = (reproduced_verdict(one, results).estimate for one in (check, single))
    assert whole is not None
    assert part is not None
    assert whole.value == pytest.approx(1.5 * part.value)
    assert whole.low == pytest.approx(1.5 * (part.low or 0))
    assert whole.high == pytest.approx(1.5 * (part.high or 0))


def test_rank_agreement_by_block(tmp_path: Path) -> None:
    experiment = experiment_of(ROWS, printed(1, 2, 3, 1, 2, 3))
    results = results_of(tmp_path, experiment, values_of(1, 3, 5, 5, 3, 1))
    same, turned = agreements(results, WINS, ("model",))
    assert (same.where, same.rows, same.estimate and same.estimate.value) == ("a", 3, 1.0)
    assert (turned.where, turned.estimate and turned.estimate.value) == ("b", -1.0)
    verdict = reproduced_verdict(RankAgreement("wins", ("model",)), results)
    assert (verdict.outcome, [part.outcome for part in verdict.parts]) == ("fails", ["holds", "fails"])
    assert printed_verdict(RankAgreement("wins", ("model",)), experiment) is None


def test_rank_agreement_needs_two_printed_and_measured_rows(tmp_path: Path) -> None:
    experiment = experiment_of(ROWS, printed(1, None, None, 1, 2, 3))
    first, second = agreements(results_of(tmp_path, experiment, {}), WINS, ("model",))
    assert (first.estimate, first.reason) == (None, "the paper prints fewer than two numbers")
    assert (second.estimate, second.reason) == (None, "fewer than two rows are measured")
    verdict = reproduced_verdict(RankAgreement("wins", ("model",)), results_of(tmp_path, experiment, {}))
    assert isinstance(verdict, Verdict)
    assert verdict.outcome == "undecided"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"_target_": "src.experiments.claims.Best", "column": "winz", "row": {"method": "dpo"}}, "no column 'winz'"),
        ({"_target_": "src.experiments.claims.Best", "column": "wins", "row": {"metod": "dpo"}}, "no axis 'metod'"),
        ({"_target_": "src.experiments.claims.Best", "column": "wins", "row": {"method": "dpp"}}, "did you mean 'dpo'"),
        ({"_target_": "src.experiments.claims.PeakAt", "column": "wins", "over": "method", "at": "x"}, "no label 'x'"),
        (
            {"_target_": "src.experiments.claims.Monotone", "column": "wins", "direction": "up"},
            "give columns, or column",
        ),
        ({"_target_": "src.experiments.claims.Bst", "column": "wins"}, "cannot be imported"),
        ({"_target_": "src.experiments.claims.Best", "colum": "wins", "row": {}}, "colum"),
    ],
)
def test_a_mistake_in_a_claim_is_said_by_file_and_claim(check: dict[str, Any], message: str) -> None:
    experiment = experiment_of(ROWS, claims=({"text": "t", "quote": "q", "check": check},))
    with pytest.raises((UserError, Problems), match=message) as caught:
        claims_of(experiment)
    assert "paper/table2.yaml: claims[1]" in str(caught.value)


def test_a_claim_without_the_papers_words_is_refused() -> None:
    check = {"_target_": "src.experiments.claims.Best", "column": "wins", "row": {"method": "dpo"}}
    with pytest.raises(UserError, match="'quote' is missing"):
        claims_of(experiment_of(ROWS, claims=({"text": "t", "check": check},)))
    with pytest.raises(UserError, match="unknown key 'qoute'"):
        claims_of(experiment_of(ROWS, claims=({"text": "t", "qoute": "q", "check": check},)))


@pytest.mark.parametrize("path", all_paths(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_claims_of_every_experiment_can_be_decided(path: Path) -> None:
    experiment = load(path)
    for claim in claims_of(experiment):
        if not isinstance(claim.check, RankAgreement):
            assert claim.check.blocks(experiment)
