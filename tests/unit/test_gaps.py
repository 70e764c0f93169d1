"""The histogram of score gaps and the gradient mass of each weighting, by hand and through the program."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import compose_train
from src.data import gap_mass
from src.data.gap_mass import gap_report, nice_width
from src.errors import UserError
from src.reporting.gap_figure import draw_gaps
from src.training import run as runs
from src.training.reopened import gradient_weights
from tests.entry import assert_says, call, refused
from tests.support import SMALL_DATA, SMALL_RUN, metrics, places
from tests.unit.data_tools import pair, write_lines

GAPS = [0.0, 0.5, 1.0, 2.0, 3.0]
SCORES = np.array([[1.0, 1.0], [2.0, 1.5], [1.0, 2.0], [4.0, 2.0], [5.0, 2.0]])
FLIPPED = np.array([False, False, True, False, False])


def reported(scores: Any = SCORES, flipped: Any = FLIPPED, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"bin_width": 1.0, "min_score_gap": 1.0, "batch": 2, "seed": 0}
    return gap_report(scores, flipped, **(settings | changes))


def mass(report: dict[str, Any], name: str) -> list[float]:
    return [one["mass"][name] for one in report["bins"]]


def test_gaps_and_bins() -> None:
    report = reported()
    assert report["gap"] == {"mean": pytest.approx(1.3), "median": 1.0, "max": 3.0}
    assert (report["pairs"], report["ties"], report["chosen_scores_less"], report["flipped"]) == (5, 1, 1, 1)
    assert [one["pairs"] for one in report["bins"]] == [2, 1, 2], "an edge belongs above it, the largest gap below"
    assert [(one["from"], one["to"]) for one in report["bins"]] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("uniform", [1.0] * 5),
        ("hard_filter", [0.0, 0.0, 1.0, 1.0, 1.0]),
        ("linear", GAPS),
        ("quadratic", [gap**2 for gap in GAPS]),
        ("exponential", [math.exp(gap) - 1 for gap in GAPS]),
    ],
)
def test_mass_is_the_share_of_the_weights(name: str, weights: list[float]) -> None:
    report, total = reported(), sum(weights)
    expected = [sum(weights[:2]) / total, weights[2] / total, sum(weights[3:]) / total]
    assert mass(report, name) == pytest.approx(expected, abs=1e-12)
    assert report["counting"][name] == pytest.approx(total**2 / (5 * sum(weight**2 for weight in weights)))
    assert report["on_flipped"][name] == pytest.approx(weights[2] / total)


def test_normalized_weights_average_one_in_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [4, 0, 3, 1, 2]
    monkeypatch.setattr(gap_mass, "permutation", lambda pairs, seed, epoch: order)
    weights = [0.0] * 5
    for batch in (order[:2], order[2:4], order[4:]):
        mean = sum(GAPS[place] for place in batch) / len(batch)
        for place in batch:
            weights[place] = GAPS[place] / mean
    expected = [sum(weights[:2]) / 5, weights[2] / 5, sum(weights[3:]) / 5]
    assert mass(reported(), "normalized") == pytest.approx(expected, abs=1e-12)
    assert mass(reported(batch=5), "normalized") == pytest.approx(mass(reported(), "linear"))


def test_a_gap_that_rounding_left_below_an_edge_belongs_above_it() -> None:
    scores = np.array([[4.1, 1.9], [4.3, 4.0], [0.0, 3.0]])
    report = reported(scores, np.zeros(3, bool), bin_width=0.1)
    assert (scores[0, 0] - scores[0, 1], scores[1, 0] - scores[1, 1]) < (2.2, 0.3)
    assert [place for place, one in enumerate(report["bins"]) if one["pairs"]] == [3, 22, 29]


def test_pairs_without_any_gap_have_no_mass_to_share() -> None:
    report = reported(np.ones((3, 2)), np.zeros(3, bool), bin_width=None)
    (only,) = report["bins"]
    assert (only["pairs"], report["ties"]) == (3, 3)
    assert only["mass"] == dict.fromkeys(gap_mass.WEIGHTINGS, None) | {"uniform": 1.0, "hard_filter": None}
    assert report["counting"]["linear"] is None
    draw_gaps(report | {"data": {"dataset": "ties", "split": "train"}})


@pytest.mark.parametrize(("largest", "width"), [(9.0, 1.0), (5.5, 0.5), (1.0, 0.1), (3.7, 0.5), (20.0, 2.0), (0, 1)])
def test_widths_are_round(largest: float, width: float) -> None:
    assert nice_width(largest) == pytest.approx(width)


def test_too_narrow_bins_are_refused() -> None:
    with pytest.raises(UserError, match=r"bin_width=0\.001 would make 3000 bins of gaps up to 3; give at least 0\.25"):
        reported(bin_width=0.001)


# --- the program ------------------------------------------------------------------------------------------------------


def shown(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    outcome = call("src.data.gaps", *SMALL_DATA, f"cache_root={tmp_path / 'cache'}", "output=json", *overrides)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_the_program_reports_on_prepared_pairs(tmp_path: Path) -> None:
    report = shown(tmp_path, f"figure={tmp_path / 'figures' / 'gaps'}")
    assert 40 < report["pairs"] == sum(one["pairs"] for one in report["bins"]) < 80
    assert report["data"].items() >= {"dataset": "toy", "split": "train", "noise": {"kind": "none"}}.items()
    for name in report["counting"]:
        assert sum(mass(report, name)) == pytest.approx(1)
    linear, uniform = mass(report, "linear"), mass(report, "uniform")
    assert linear[0] < uniform[0]
    assert sum(linear[len(linear) // 2 :]) > sum(uniform[len(uniform) // 2 :])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"gaps.png", "gaps.svg"}
    assert "exponential" in (tmp_path / "figures" / "gaps.svg").read_text()
    held_out = shown(tmp_path, "split=validation")
    assert held_out["pairs"] + report["pairs"] == 80
    assert held_out["data"]["content"] != report["data"]["content"]


def test_flipped_pairs_keep_their_gap_and_are_said(tmp_path: Path) -> None:
    clean, noisy = shown(tmp_path), shown(tmp_path, "noise=random_flip", "noise.rate=0.5")
    assert noisy["bins"] == clean["bins"], "exchanging both scores leaves every weight of their gap as it was"
    assert (clean["flipped"], clean["on_flipped"]["linear"]) == (0, 0.0)
    assert 0.2 < noisy["on_flipped"]["uniform"] == noisy["flipped"] / noisy["pairs"] < 0.8
    assert noisy["chosen_scores_less"] == noisy["flipped"]


def test_the_table_says_what_the_data_says(tmp_path: Path) -> None:
    places = (*SMALL_DATA, f"cache_root={tmp_path / 'cache'}", "noise=random_flip", "bin_width=1", "hard_filter=2")
    outcome = call("src.data.gaps", *places)
    assert outcome.code == 0, outcome.err
    report = shown(tmp_path, "noise=random_flip", "bin_width=1", "hard_filter=2")
    assert outcome.out.startswith(f"toy, train split: {report['pairs']} pairs, {report['flipped']} flipped by noise; ")
    first = next(line for line in outcome.out.splitlines() if line.startswith("0 – 1 "))
    cells = first.split()
    assert cells[3] == str(report["bins"][0]["pairs"])
    assert cells[4:10] == [f"{100 * value:.1f}" for value in report["bins"][0]["mass"].values()]
    assert cells[5] == "0.0", "the hard filter at 2 leaves nothing of gaps below 1"
    assert "flipped pairs' share" in outcome.out


@pytest.mark.parametrize("method", ["gappo", "dpo"])
def test_the_weights_of_a_run_are_those_that_it_logged(tmp_path: Path, method: str) -> None:
    config = compose_train([*SMALL_RUN, *places(tmp_path), f"method={method}", "evaluation.max_pairs=null"])
    assert runs.train(config) == 0
    directory = runs.planned_directory(config)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    found = gradient_weights(directory, "last", "validation")
    logged = metrics(directory, "validation")[-1]
    assert logged["step"] == 8
    assert found.weights.mean().item() == pytest.approx(logged["weight/gradient"], rel=1e-6)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before

    outcome = call("src.data.gaps", f"checkpoint={directory}", "which=last", "output=json", "split=validation")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["data"]["run"] == str(directory)
    assert (report["data"]["method"], report["data"]["step"]) == (method, 8)
    gaps = [abs((pair.chosen_score or 0) - (pair.rejected_score or 0)) for pair in found.pairs]
    top = report["bins"][-1]
    share = sum(weight for weight, gap in zip(found.weights.tolist(), gaps, strict=True) if gap >= top["from"] - 1e-9)
    assert top["mass"]["trained"] == pytest.approx(share / found.weights.sum().item(), rel=1e-5)
    near = "linear" if method == "gappo" else "uniform"
    assert top["mass"]["trained"] == pytest.approx(top["mass"][near], rel=0.3)
    assert "trained: " in call("src.data.gaps", f"checkpoint={directory}").out


def test_runs_that_cannot_be_weighed_are_refused(tmp_path: Path) -> None:
    message = refused("src.data.gaps", "checkpoint=nowhere", "dataset=toy", "dataset.split_seed=1")
    assert_says(message, "dataset=toy, dataset.split_seed=1 would not be read beside checkpoint=RUN")
    assert_says(refused("src.data.gaps", f"checkpoint={tmp_path}"), "is not a run directory")
    config = compose_train([*SMALL_RUN, *places(tmp_path), "method=sft", "training.max_steps=2"])
    assert runs.train(config) == 0
    message = refused("src.data.gaps", f"checkpoint={runs.planned_directory(config)}")
    assert_says(message, "trained on demonstrations, which have no pairs to weigh")


def test_pairs_without_scores_and_bad_settings_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", [pair(n, chosen_score=None).to_json() for n in range(40)])
    cache = f"cache_root={tmp_path / 'cache'}"
    message = refused("src.data.gaps", "dataset=local", f"dataset.source.path={path}", cache)
    assert_says(message, "the histogram of score gaps needs the scores of both responses", "give chosen_score")
    message = refused("src.data.gaps", "bin_width=0", "batch=1", "split=all", "output=page", "hard_filter=-1", cache)
    for key in ("bin_width=0", "batch=1", "split=all", "output=page", "hard_filter=-1"):
        assert_says(message, key)
