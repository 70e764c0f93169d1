"""AlpacaEval on the toy world: from answers to a record through the program itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from src.data.toy.tasks import parse_task
from src.data.toy.writers import dress
from src.errors import UserError
from src.evaluation.alpaca.toy import baseline_body, toy_prompts, toy_reference
from tests.entry import Outcome, assert_says, call
from tests.evaluation.alpaca_tools import PROGRAM

LOVES_LENGTH = ("judge=oracle", "judge.length_bias=2")


def answers(style: str, sentences: int, count: int = 200, seed: int = 0) -> list[dict[str, str]]:
    """The baseline's skill in another dress, as model_outputs.json, in another order."""
    rows = [
        {
            "instruction": prompt[0].content,
            "output": dress(baseline_body(parse_task(prompt), place), style, random.Random(place), sentences),
            "generator": f"{style}_{sentences}",
        }
        for place, prompt in enumerate(toy_prompts()[:count])
    ]
    random.Random(seed).shuffle(rows)
    return rows


def evaluate(folder: Path, rows: list[dict[str, str]], *overrides: str) -> Outcome:
    path = folder / "model_outputs.json"
    path.write_text(json.dumps(rows))
    places = (f"output_root={folder / 'ev'}", f"records_root={folder / 'rec'}", f"cache_root={folder / 'cache'}")
    return call(PROGRAM, "benchmark=toy", f"outputs={path}", "output=json", *places, *overrides)


def result(folder: Path, rows: list[dict[str, str]], *overrides: str) -> dict[str, Any]:
    outcome = evaluate(folder, rows, *overrides)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_dressing_answers_up_wins_raw_but_not_under_length_control(tmp_path: Path) -> None:
    short = result(tmp_path, answers("plain", 0), *LOVES_LENGTH)
    long = result(tmp_path, answers("plain", 2, seed=1), *LOVES_LENGTH)
    assert (short["model"], long["model"], long["judge"]) == ("plain_0", "plain_2", "oracle")
    assert long["avg_length"] > 2 * short["avg_length"] - 10
    gained = {name: long[name] - short[name] for name in ("win_rate", "length_controlled_winrate")}
    assert gained["win_rate"] > 25
    assert gained["length_controlled_winrate"] < gained["win_rate"] / 3
    (path,) = (tmp_path / "rec").glob("*plain_2*.json")
    record = json.loads(path.read_text())
    assert record["metrics"]["length_controlled_winrate"]["value"] == long["length_controlled_winrate"]
    assert record["judge"]["name"] == "oracle"
    assert record["details"]["regularization"]["coefficients"]["length"] < -0.5
    assert set(record["details"]["win_rate_by_dataset"]) >= {"list", "sort"}
    assert record["counts"]["judged"] == 200
    again = result(tmp_path, answers("plain", 2, seed=2), *LOVES_LENGTH, "stage=score")
    assert again["length_controlled_winrate"] == long["length_controlled_winrate"]


def test_the_world_s_files_are_in_the_package_s_formats_and_never_change() -> None:
    fair, fond = toy_reference(), toy_reference(2.0)
    assert (len(fair.questions), fair.baseline) == (200, "toy_novice")
    assert len(fair.positions) == 200
    assert fair.questions == fond.questions
    assert fair.gamed != fond.gamed
    assert toy_reference.__wrapped__(2.0) == fond
    assert len(fair.first(30).questions) == 30
    assert len(fair.first(30).gamed.splitlines()) == 61


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:-3], "3 of 40 questions have no answer"),
        (lambda rows: [*rows, rows[0]], "twice"),
        (lambda rows: [*rows[1:], rows[0] | {"instruction": "What?"}], "none of the benchmark's"),
        (lambda rows: [*rows[1:], rows[0] | {"generator": "another"}], "give those of one model"),
        (lambda rows: [*rows[1:], {"instruction": rows[0]["instruction"], "generator": "plain_0"}], "'output' must be"),
        (lambda rows: [], "must be a JSON list"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    from src.evaluation.alpaca.benchmark import AlpacaEval
    from src.evaluation.outputs import completed

    benchmark = AlpacaEval(toy_reference().first(40))
    path = tmp_path / "out.json"
    path.write_text(json.dumps(answers("plain", 0, count=40)))
    name, found = benchmark.read_outputs(path)
    assert (name, len(found)) == ("plain_0", 40)
    path.write_text(json.dumps(change(answers("plain", 0, count=40))))
    with pytest.raises(UserError, match=says):
        completed(benchmark.items(), benchmark.read_outputs(path)[1], "file")


def test_a_trial_of_a_few_questions_says_so(tmp_path: Path) -> None:
    found = result(tmp_path, answers("plain", 1, count=4), "judge=oracle", "max_items=4")
    assert found["n_total"] == 4
    assert found["length_controlled_winrate"] is None
    assert_says(found["length_controlled_winrate_reason"], "4 instructions are too few")
    assert any("trial" in note for note in found["notes"])


def test_reference_files_are_not_for_the_toy_world(tmp_path: Path) -> None:
    outcome = evaluate(tmp_path, answers("plain", 0), "judge=oracle", "reference_outputs=x.json")
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, "reference_outputs would not be read with benchmark=toy")
