"""Scores of stored judgments by the alpaca-eval package, on a made-up benchmark."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.entry import assert_says, call, refused
from tests.evaluation.alpaca_tools import (
    PROGRAM,
    QUESTIONS,
    judged,
    objects,
    reference,
    reference_files,
    scored,
    slim,
)


def scores(folder: Path, rows: list[Any], **keys: Any) -> dict[str, Any]:
    """The one object printed."""
    outcome = scored(folder, rows, **keys)
    assert (outcome.code, outcome.err) == (0, "")
    (found,) = objects(outcome)
    return found


def test_win_rate_standard_error_and_counts_by_hand(tmp_path: Path) -> None:
    rows = judged("m")
    special = [0, 1.5, None, math.nan, 1, 2, 7.0]
    for row, value in zip(rows, special, strict=False):
        row["preference"] = value
    found = scores(tmp_path, rows)
    values = [0.5, 0.5, 0.0, 1.0, *(row["preference"] - 1 for row in rows[len(special) :])]
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(values), abs=1e-9)
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)
    assert found["n_wins"] == sum(value > 0.5 for value in values)
    assert found["n_wins_base"] == sum(value < 0.5 for value in values)
    assert found["n_total"] == len(values) == QUESTIONS - 3
    assert found["n_draws"] == 2
    rounded = [value if value == 0.5 else round(value) for value in values]
    assert found["discrete_win_rate"] == pytest.approx(100 * statistics.mean(rounded), abs=1e-9)
    assert found["avg_length"] == int(statistics.mean(len(row["output_2"]) for row in rows))
    counts = found["counts"]
    assert (counts["ties"], counts["no_preference"], counts["invalid"], counts["missing"]) == (2, 2, 1, 0)
    assert_says(found["notes"][0], f"3 of {QUESTIONS} judgments hold no preference")
    assert list(found)[3:13] == [
        *("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"),
        *("avg_length", "length_controlled_winrate", "lc_standard_error"),
    ]


def test_length_control_is_the_fitted_model_at_equal_length(tmp_path: Path) -> None:
    found = scores(tmp_path, judged("m"), regularization=2.5)
    fit = found["details"]["regularization"]
    assert (fit["C"], fit["by"]) == (2.5, "given")
    coefficients = fit["coefficients"]
    assert coefficients["length"] < -0.3  # the longer the baseline's answer, the fewer wins
    hardness = {
        int(row["index"]): float(row["instruction_difficulty"])
        for row in csv.DictReader(io.StringIO(reference().gamed))
    }
    chances = [
        1 / (1 + math.exp(-coefficients["model"] - coefficients["difficulty"] * hardness[place]))
        for place in range(QUESTIONS)
    ]
    assert found["length_controlled_winrate"] == pytest.approx(100 * statistics.mean(chances), abs=1e-9)
    error = 100 * statistics.stdev(chances) / math.sqrt(QUESTIONS)
    assert found["lc_standard_error"] == pytest.approx(error, abs=1e-9)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = judged("m")
    shuffled = random.Random(0).sample(rows, len(rows))
    assert shuffled != rows
    assert scores(tmp_path, shuffled) == scores(tmp_path, rows)


def test_slim_lines_say_the_same_as_annotations(tmp_path: Path) -> None:
    rows = judged("m")
    lean = scores(tmp_path, [slim(rows)], name="slim.jsonl")
    assert lean == scores(tmp_path, rows) | {"judge": None}


def test_models_of_several_files_come_in_their_order_and_a_bad_one_hides_no_other(tmp_path: Path) -> None:
    short, whole, double = judged("short")[:-2], judged("whole"), judged("double")
    (tmp_path / "a.json").write_text(json.dumps([*short, *whole]))
    (tmp_path / "b.json").write_text(json.dumps([*judged("other"), *double, double[0], *judged("whole")]))
    files = f"annotations=[{tmp_path / 'a.json'},{tmp_path / 'b.json'}]"
    outcome = call(PROGRAM, *reference_files(tmp_path), files)
    assert [found["model"] for found in objects(outcome)] == ["whole", "other"]
    assert outcome.code == 2
    assert_says(
        outcome.err,
        "3 problems",
        f"short: {QUESTIONS - 2} of {QUESTIONS} instructions",
        f"missing: {QUESTIONS - 2}, {QUESTIONS - 1}",
        "missing_rows=as_published",
        f"double: 1 of {QUESTIONS} instructions have several rows",
        "whole: judgments in",
    )


def test_incomplete_judgments_are_scored_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.evaluation.alpaca.scores import PUBLISHED_ROWS

    rows = judged("m")
    short = rows[:10] + rows[12:]
    found = scores(tmp_path, short, missing_rows="as_published")
    assert (found["n_total"], found["counts"]["missing"]) == (QUESTIONS - 2, 2)
    assert_says(found["notes"][0], f"scored as published on {QUESTIONS - 2} of {QUESTIONS}")
    monkeypatch.setitem(PUBLISHED_ROWS, "m", QUESTIONS - 2)
    assert scores(tmp_path, short) == found
    monkeypatch.setitem(PUBLISHED_ROWS, "m", QUESTIONS - 3)
    assert scored(tmp_path, short).code == 2


def test_nothing_but_unreadable_judgments_is_an_error(tmp_path: Path) -> None:
    rows = judged("m")
    for row in rows:
        row["preference"] = None
    outcome = scored(tmp_path, rows)
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, "m: none of its 60 judgments", "nothing to score")


def test_the_baseline_against_itself_is_one_half(tmp_path: Path) -> None:
    rows = judged(reference().baseline)
    for row in rows:
        row |= {"preference": 1.5, "output_2": row["output_1"]}
    found = scores(tmp_path, rows)
    assert (found["win_rate"], found["length_controlled_winrate"], found["n_draws"]) == (50.0, 50.0, QUESTIONS)


def test_regularization_is_a_number_a_mapping_or_chosen(tmp_path: Path) -> None:
    rows = [*judged("a"), *judged("b")]
    mapping = tmp_path / "c.json"
    mapping.write_text(json.dumps({"a": 0.02}))
    first, second = objects(scored(tmp_path, rows, regularization=str(mapping)))
    assert first["details"]["regularization"]["C"] == 0.02
    assert second["details"]["regularization"]["by"] == "cross-validation"
    assert_says(second["notes"][0], "no such model")
    free = objects(scored(tmp_path, rows, regularization=None))
    assert free[1]["length_controlled_winrate"] == second["length_controlled_winrate"]
    assert free[0]["length_controlled_winrate"] != first["length_controlled_winrate"]
    chosen = math.log10(free[0]["details"]["regularization"]["C"])
    assert (chosen + 4) * 9 / 8 == pytest.approx(round((chosen + 4) * 9 / 8))  # of ten from 1e-4 to 1e4
    for bad in (0, -1, {"a": "x"}, "nowhere.json", True):
        outcome = scored(tmp_path, rows, regularization=bad)
        assert outcome.code == 2
        assert_says(outcome.err, "regularization")


def test_the_difficulty_file_takes_the_place_of_the_column(tmp_path: Path) -> None:
    rows = judged("m")
    difficulty = tmp_path / "difficulty.csv"
    difficulty.write_text("index,instruction_difficulty\n" + "".join(f"{n},{n % 3}\n" for n in range(QUESTIONS)))
    plain = scores(tmp_path, rows)
    other = scores(tmp_path, rows, instruction_difficulty=str(difficulty))
    assert other["win_rate"] == plain["win_rate"]
    assert abs(other["length_controlled_winrate"] - plain["length_controlled_winrate"]) > 1e-3
    difficulty.write_text("index,instruction_difficulty\n0,1\n")
    assert_says(scored(tmp_path, rows, instruction_difficulty=str(difficulty)).err, "is of 1 instructions")


def test_nothing_is_fetched_written_or_left_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    folder = Path(glm_winrate.__file__).parents[1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert len(before) > 100
    download, fit = glm_winrate.hf_hub_download, glm_winrate.fit_LogisticRegressionCV
    options, environment = sklearn.get_config(), dict(os.environ)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
    scores(tmp_path, judged("m"))
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    assert (glm_winrate.hf_hub_download, glm_winrate.fit_LogisticRegressionCV) == (download, fit)
    assert sklearn.get_config() == options
    assert dict(os.environ) == environment


def test_without_reference_files_and_hub_the_message_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    (tmp_path / "a.json").write_text(json.dumps(judged("m")))
    message = refused(PROGRAM, "stage=score", f"annotations={tmp_path / 'a.json'}", f"cache_root={tmp_path}")
    assert_says(message, "reference_outputs=FILE", "alpaca_eval_gpt4_baseline.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction": "unheard of"}, "none of reference_outputs"),
        ({"preference": "2"}, "a preference is a number"),
        ({"preference": True}, "a preference is a number"),
        ({"generator_1": "davinci", "output_1": "else"}, "judged against davinci"),
        ({"annotator": "another"}, "a score is by one judge"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    rows = judged("m")
    rows[3] |= change
    outcome = scored(tmp_path, rows)
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("stage=all",), "write stage=score"),
        (("annotations=null",), "there is nothing to measure"),
        (("checkpoint=runs/x",), "checkpoint=runs/x would not be read"),
        (("annotations=[]",), "annotations"),
        (("annotations=nowhere.json",), "no such file"),
        (("missing_rows=never",), "choose one of"),
    ],
)
def test_contradictory_keys_are_refused(tmp_path: Path, overrides: tuple[str, ...], says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(judged("m")))
    given = {text.split("=")[0]: text for text in [*reference_files(tmp_path), f"annotations={path}", *overrides]}
    assert_says(refused(PROGRAM, *given.values()), says)


def test_win_rates_by_dataset_add_up(tmp_path: Path) -> None:
    rows = judged("m")
    rows[0]["preference"], rows[1]["preference"] = 0, None
    found = scores(tmp_path, rows)
    parts = found["details"]["win_rate_by_dataset"]
    assert len(parts) > 2
    assert sum(part["n"] for part in parts.values()) == found["n_total"] == QUESTIONS - 1
    total = sum(part["n"] * part["win_rate"] for part in parts.values()) / found["n_total"]
    assert total == pytest.approx(found["win_rate"], abs=1e-9)
    own = [row["preference"] - 1 for row, one in zip(rows, reference().questions, strict=True) if one.dataset == "sort"]
    assert parts["sort"]["standard_error"] == pytest.approx(100 * statistics.stdev(own) / math.sqrt(len(own)), abs=1e-9)


def test_raw_win_rates_need_no_gamed_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise ValueError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    with_all = scores(tmp_path, judged("m"))
    without = scores(tmp_path, judged("m"), gamed_annotations=None)
    assert without["win_rate"] == with_all["win_rate"]
    assert without["length_controlled_winrate"] is None
    assert "gamed_annotations=FILE" in without["length_controlled_winrate_reason"]
