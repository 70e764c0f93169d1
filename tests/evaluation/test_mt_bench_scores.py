"""MT-Bench from stored judgments: ratings, rules for what is twice, absent or unreadable, and the published means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.mtbench.files import official_layout, read_judgments, read_questions
from src.evaluation.mtbench.ratings import Judgment, parse_rating, score
from tests.entry import assert_says, call, refused

PROGRAM = "src.evaluation.mt_bench"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt_bench"
JUDGMENTS = SHARED / "judgment_gpt-4_single_mambainllama_dpo.jsonl.gz"
PUBLISHED = {
    "mamba_0_5_dpo_ep1": 7.121875,
    "mamba_0_5_dpo_ep3": 7.3125,
    "mamba_0_75_dpo_ep1": 7.034375,
    "mamba_0_75_dpo_ep3": 6.58125,
    "mamba_0_875_dpo_ep1": 6.3875,
    "mamba_0_875_dpo_ep3": 6.36875,
}
"""Means over both turns of the MambaInLlama models (their README has them to two digits)."""

needs_shared = pytest.mark.skipif(not JUDGMENTS.exists(), reason=f"{JUDGMENTS} is not on this machine")
CATEGORIES = {"1": "writing", "2": "math"}


def row(question: object, turn: int, score: Any = 7, model: str = "m", /, **changes: Any) -> dict[str, Any]:
    """A line of a judgment file; "absent" leaves a field out."""
    row = {"question_id": question, "model": model, "judge": ["gpt-4", "single-v1"], "turn": turn, "score": score}
    row |= {"judgment": f"Fine. Rating: [[{score}]]", **changes}
    return {key: value for key, value in row.items() if value != "absent"}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def printed(*overrides: str) -> list[dict[str, Any]]:
    outcome = call(PROGRAM, "stage=score", "output=json", *overrides)
    assert outcome.code == 0, outcome
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5.0),
        ("[[7.5]] at first, then [[3]]", 7.5),
        ("[4] but in the end [[9]]", 9.0),
        ("Rating: [8]", 8.0),
        ("[6.] then [2]", 6.0),
        ("[[rating]] would be [[ 5 ]]", None),
        ("I give it 7 of 10", None),
        ("[[-1]]", None),
        ("", None),
        ("$ERROR$", None),
        (f"[[{'9' * 400}]]", None),
    ],
)
def test_the_first_rating_in_double_brackets_else_in_single_ones(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


def test_means_are_over_all_scores_and_not_over_means() -> None:
    texts = [("1", 1, "[[10]]"), ("1", 2, "no word of it"), ("2", 1, "[[4]]"), ("2", 2, "[[1]]")]
    scores = score([Judgment(*content) for content in texts], CATEGORIES, 2)
    values = {name: (metric["value"], metric["n"]) for name, metric in scores.metrics.items()}
    assert values == {
        "overall": (5.0, 3),
        "first_turn": (7.0, 2),
        "second_turn": (1.0, 1),
        "category/writing": (10.0, 1),
        "category/math": (2.5, 2),
    }
    assert (scores.counts["judgments"], scores.counts["scores"], scores.counts["unparsable"]) == (4, 3, 1)
    assert scores.counts["missing"] == 0
    assert scores.notes == ("1 judgments have no rating and are left out",)


def test_the_interval_draws_questions_not_scores() -> None:
    judgments = [Judgment(str(q), turn, f"[[{rating}]]") for q, rating in ((1, 2), (2, 8)) for turn in (1, 2)]
    overall = score(judgments, CATEGORIES, 2).metrics["overall"]
    # two questions drawn of two: both turns of one, of the other, or of both
    assert (overall["value"], overall["low"], overall["high"]) == (5.0, 2.0, 8.0)
    writing = score(judgments, CATEGORIES, 2).metrics["category/writing"]
    assert (writing["low"], writing["reason"]) == (None, "one prompt only: no interval")


def test_nothing_to_count_is_no_zero() -> None:
    scores = score([Judgment("1", 1, "no word of it")], CATEGORIES, 2)
    assert scores.metrics["overall"]["value"] is None
    assert scores.metrics["overall"]["reason"] == "no judgment has a rating"
    assert scores.counts["missing"] == 3


def test_judged_again_the_last_rating_counts_or_every_one(tmp_path: Path) -> None:
    rows = [row(81, 1, 2), row(81, 1, 2), row(81, 1, 6), row(81, 2, 9), row(81, 2, -1, judgment="no rating")]
    file = written(tmp_path / "again.jsonl", *rows)
    (last,) = printed(f"judgments={file}")
    assert (last["overall"], last["first_turn"], last["second_turn"]) == (7.5, 6.0, 9.0)
    assert last["counts"] == {
        "judgments": 5,
        "scores": 2,
        "unparsable": 1,
        "missing": 158,
        "duplicates_identical": 1,
        "duplicates_differing": 2,
        "stored_scores_differ": 0,
        "stored_scores_nan": 0,
        "out_of_scale": 0,
    }
    (every,) = printed(f"judgments={file}", "duplicates=all")
    assert every["overall"] == (2 + 2 + 6 + 9) / 4
    assert every["counts"] == {**last["counts"], "scores": 4}
    note = next(note for note in last["notes"] if "duplicates" in note)
    assert_says(note, "1 judgments are there twice", "2 answers were judged again", "overall 7.5", "4.75 where every")


def test_the_text_decides_and_a_stored_score_is_checked(tmp_path: Path) -> None:
    rows = [
        row(81, 1, 3, judgment="[[8]]"),
        row(82, 1, float("nan"), judgment="[[6]]"),
        row(83, 1, float("nan"), judgment="absent"),
        row(84, 1, 4, judgment="absent"),
        row(85, 1, -1, judgment="absent"),
        row(86, 1, None, judgment="absent"),
        row(87, 1, 11),
        row(88, 1, "absent", judgment="[[7]]"),
        row(89, 1, 5, judgment="no rating"),
    ]
    (found,) = printed(f"judgments={written(tmp_path / 'odd.jsonl', *rows)}")
    assert found["overall"] == (8 + 6 + 4 + 11 + 7) / 5
    counts = found["counts"]
    assert (counts["stored_scores_differ"], counts["stored_scores_nan"]) == (3, 3)
    assert (counts["unparsable"], counts["out_of_scale"], counts["scores"]) == (4, 1, 5)
    assert_says(
        " ".join(found["notes"]),
        "3 stored scores are not what the judgment says (first: question 81, turn 1, stored 3, said 8)",
        "1 ratings are outside of 1 to 10",
    )


def test_several_models_and_files_come_in_their_order(tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", row(81, 1, 4, "z"), row(81, 1, 5, "a"))
    two = tmp_path / "two.json.gz"
    two.write_bytes(gzip.compress(json.dumps([row(81, 2, 8, "z")]).encode()))
    found = printed(f"judgments=[{one},{two}]")
    assert [(model["model"], model["overall"], model["judge"]) for model in found] == [
        ("z", 6.0, "gpt-4"),
        ("a", 5.0, "gpt-4"),
    ]


def test_questions_of_ones_own(tmp_path: Path) -> None:
    questions = [{"question_id": name, "category": "tales", "turns": ["a", "b", "c"]} for name in ("x", "y")]
    file = written(tmp_path / "questions.jsonl", *questions)
    rows = [row("x", turn, turn) for turn in (1, 2, 3)]
    (found,) = printed(f"judgments={written(tmp_path / 'j.jsonl', *rows)}", f"questions={file}")
    assert (found["overall"], found["turn_3"], found["category/tales"], found["counts"]["missing"]) == (2, 3, 2, 3)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"question_id": 7}, ("question 7 is none of the 80 questions", "give in questions=")),
        ({"turn": 3}, ("'turn' must be from 1 to 2, not 3",)),
        ({"judge": ["gpt-4-1106-preview", "single-v1"]}, ("judged by gpt-4 and gpt-4-1106-preview", "apart")),
        ({"g1_winner": "model_1"}, ("a comparison of two models", "*_single.jsonl")),
        ({"score": "seven"}, ("'score' must be a number, not 'seven'",)),
        ({"judgment": "absent", "score": "absent"}, ("nothing to count",)),
        ({"model": "absent"}, ("'model' is missing",)),
        ({"judge": 4}, ("'judge' must be a name",)),
        ({"question_id": 8.5}, ("'question_id' must be",)),
    ],
)
def test_lines_that_are_no_judgment(tmp_path: Path, changes: dict[str, Any], fragments: tuple[str, ...]) -> None:
    file = written(tmp_path / "j.jsonl", row(81, 1), row(81, 2, **changes))
    with pytest.raises(UserError) as caught:
        read_judgments(str(file), official_layout())
    assert_says(str(caught.value), f"{file}:2: ", *fragments)


def test_keys_that_would_not_be_read_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "j.jsonl", row(81, 1))
    message = refused(
        PROGRAM,
        f"judgments={file}",
        "checkpoint=runs/x",
        "which=last",
        "max_items=3",
        "decoding.top_p=0.5",
        "dry_run=true",
    )
    named = ("checkpoint=runs/x", "which=last", "max_items=3", "decoding.top_p", "dry_run")
    assert_says(message, "stage=score, not stage=all", *named)
    assert_says(refused(PROGRAM, "stage=score", "judgments=nowhere.jsonl"), "judgments=nowhere.jsonl: no such file")
    assert_says(refused(PROGRAM, "stage=score", f"judgments=[{file},{file}]"), "would count twice")


def test_standard_output_holds_json_alone(tmp_path: Path) -> None:
    outcome = call(PROGRAM, "stage=score", f"judgments={written(tmp_path / 'j.jsonl', row(81, 1))}", "output=json")
    assert outcome.out.count("\n") == 1
    assert "the official ones" in outcome.err
    text = call(PROGRAM, "stage=score", f"judgments={tmp_path / 'j.jsonl'}").out
    assert_says(text, "mt_bench: m, judged by gpt-4", "overall", "missing: 159", "note: 159 answers have no judgment")


@needs_shared
def test_the_published_means() -> None:
    found = printed(f"judgments={JUDGMENTS}", f"questions={SHARED / 'question.jsonl.gz'}")
    assert {model["model"]: model["overall"] for model in found} == PUBLISHED
    for model in found:
        assert model["counts"]["scores"] == 160
        assert sum(model["counts"].values()) == 320  # nothing fell under any other rule
        assert (model["first_turn"] + model["second_turn"]) / 2 == pytest.approx(model["overall"])
        assert sum(name.startswith("category/") and name.count("_") == 0 for name in model) == 8
        assert model["overall_low"] < model["overall"] < model["overall_high"]


@needs_shared
def test_every_stored_judgment_says_its_stored_score() -> None:
    models = read_judgments(str(JUDGMENTS), official_layout())
    judgments = [judgment for model in models for judgment in model.judgments]
    assert len(judgments) == 960
    assert [judgment.rating for judgment in judgments] == [judgment.stored for judgment in judgments]


@needs_shared
def test_the_official_layout_is_that_of_the_questions() -> None:
    questions = read_questions(SHARED / "question.jsonl.gz")
    layout = official_layout()
    assert {question.id: question.category for question in questions} == layout.categories
    assert {len(question.turns) for question in questions} == {layout.turns}
