"""Arena-Hard from stored judgments and battles, by the entry point: made-up files, and the published ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.entry import assert_says, call, refused
from tests.evaluation.arena_tools import SHARED, complaint, needs_data, scored, written

PROGRAM = "src.evaluation.arena_hard"


def game(text: str | None, **more: Any) -> dict[str, Any]:
    return {"judgment": text, **more}


def judgment(question: str, first: Any, second: Any, model: str = "m", **more: Any) -> dict[str, Any]:
    """A line of 2024; games given as a label become a text that says it."""
    games = [game(f"\nverdict: [[{one}]]", score=one) if isinstance(one, str) else one for one in (first, second)]
    return {"question_id": question, "model": model, "judge": "j", "games": games, **more}


def battles(question: str, winners: str, model: str = "m") -> list[dict[str, Any]]:
    """Rows by letters: a the baseline won, b the model won, t tie."""
    names = {"a": "model_a", "b": "model_b", "t": "tie"}
    return [
        {"question_id": question, "model_a": "gpt-4-0314", "model_b": model, "winner": names[letter]}
        for letter in winners
    ]


def test_judgments_of_both_years(tmp_path: Path) -> None:
    old = [judgment("q1", "A>>B", "A=B"), judgment("q2", "B>A", "A>B")]
    new = [
        {
            "uid": row["question_id"],
            "category": "arena-hard-v0.1",
            "model": "m",
            "judge": "j",
            "baseline": "gpt-4-0314",
            "games": [{**one, "judgment": {"answer": one["judgment"]}} for one in row["games"]],
        }
        for row in old
    ]
    as_list = tmp_path / "list.json"
    as_list.write_text("\n " + json.dumps(new))
    found = [
        scored(f"judgments={path}", "rounds=5")[0]
        for path in (written(tmp_path / "old.jsonl", old), written(tmp_path / "new.jsonl", new), as_list)
    ]
    assert found[0] == found[1] == found[2]
    # 3 lost, 1 tied, 2 won
    assert found[0]["score"] == pytest.approx(100 * 2.5 / 6, abs=1e-4)
    assert (found[0]["model"], found[0]["judge"], found[0]["benchmark"]) == ("m", "j", "arena_hard")
    assert found[0]["score_low"] <= found[0]["score"] <= found[0]["score_high"]


def test_games_without_a_verdict_are_counted_by_kind(tmp_path: Path) -> None:
    rows = [
        judgment("q1", game("nothing", score=None), "A>B"),
        judgment("q2", game("[[A>B]] or [[B>A]]", score=None), "A>B"),
        judgment("q3", game("[[A<B]]", score="A<B"), None),
        judgment("q4", "A>B", "B>A"),
        judgment("q5", game(None), game("[[A>B]]", score="B>A")),
        judgment("q6", {"score": "A>B"}, {"score": None}),
    ]
    path = written(tmp_path / "j.jsonl", rows)
    (old,) = scored(f"judgments={path}", "rounds=2")
    wanted = {"unparsable": 3, "contradictory": 1, "unknown_label": 1, "missing_games": 3, "relabelled": 1}
    wanted |= {"questions": 5, "battles": 6, "half_judged_questions": 4, "unjudged_questions": 1}
    assert old["counts"] == old["counts"] | wanted
    # q1, q2 and q5 game 2 won; q4 both lost; q6 game 1 lost (label without a text)
    assert old["score"] == pytest.approx(50, abs=1e-4)
    assert "1 stored labels are not what rules v0.1 read" in " ".join(old["notes"])
    (new,) = scored(f"judgments={path}", "rounds=2", "rules=current")
    # q2 and q4: the last label of "[[A>B]] or [[B>A]]" counts
    assert new["counts"]["questions"] == 2
    assert new["counts"]["battles"] == 4
    assert new["counts"]["unparsable"] == 1


def test_a_question_judged_twice(tmp_path: Path) -> None:
    rows = [judgment("q1", "A>B", "B>A"), judgment("q2", "A=B", "A=B"), judgment("q1", "B>>A", "A>B")]
    path = written(tmp_path / "j.jsonl", rows)
    (last,) = scored(f"judgments={path}", "rounds=2")
    assert last["score"] == pytest.approx(100 * 5 / 6, abs=1e-4)
    assert last["counts"]["duplicate_judgments"] == 1
    assert "1 judgments are of a question that was judged already; the last" in " ".join(last["notes"])
    (every,) = scored(f"judgments={path}", "rounds=2", "duplicates=all")
    assert every["score"] == pytest.approx(100 * 5 / 8, abs=1e-4)
    assert every["counts"]["duplicate_judgments"] == 1


def test_questions_tell_what_is_missing_and_unknown(tmp_path: Path) -> None:
    questions = written(tmp_path / "q.jsonl", [{"uid": f"q{i}", "prompt": "?"} for i in range(3)])
    old = [{"question_id": f"q{i}", "turns": [{"content": "?"}]} for i in range(3)]
    rows = [judgment("q1", "A>B", "A>B"), judgment("zz", "A>>B", "B>A")]
    path = written(tmp_path / "j.jsonl", rows)
    for file in (questions, written(tmp_path / "old.jsonl", old)):
        (found,) = scored(f"judgments={path}", f"questions={file}", "rounds=2")
        assert found["score"] == pytest.approx(50, abs=1e-4)
        assert (found["counts"]["missing_questions"], found["counts"]["unknown_questions"]) == (2, 1)
    rows = battles("q1", "ab") + battles("zz", "aaab")
    (found,) = scored(f"battles={written(tmp_path / 'b.jsonl', rows)}", f"questions={questions}", "rounds=2")
    assert found["score"] == pytest.approx(50, abs=1e-4)
    assert (found["counts"]["missing_questions"], found["counts"]["unknown_questions"]) == (2, 4)
    assert scored(f"judgments={path}", "rounds=2")[0]["counts"]["missing_questions"] == 498


def test_battles_show_which_questions_had_one_verdict(tmp_path: Path) -> None:
    winners = {"q1": "aab", "q2": "t", "q3": "bbb", "q4": "aaab", "q5": "bb"}
    rows = [row for question, letters in winners.items() for row in battles(question, letters)]
    path = written(tmp_path / "b.jsonl", rows)
    (old,) = scored(f"battles={path}", "rounds=2")
    assert old["score"] == pytest.approx(100 * (1 + 0.5 + 3 + 1 + 2) / 13, abs=1e-4)
    # q1: a battle of q1 is there twice; no two games come to that
    wanted = {"irregular_questions": 1, "half_judged_questions": 2, "questions": 5, "wins": 7, "ties": 1, "losses": 5}
    assert old["counts"] == old["counts"] | wanted
    assert "no two games come to" in " ".join(old["notes"])
    (new,) = scored(f"battles={path}", "rounds=0", "rules=current")
    assert new["counts"]["questions"] == 3
    assert new["score"] == pytest.approx(100 * 4 / 9)


def test_several_models_and_files_in_their_order(tmp_path: Path) -> None:
    first = written(tmp_path / "1.jsonl", battles("q1", "ab", "z") + battles("q1", "bb", "y"))
    swapped = [{"uid": "q1", "model_a": "x", "model_b": "gpt-4-0314", "winner": "model_a"}]
    second = written(tmp_path / "2.jsonl", swapped)
    found = scored(f"battles=[{first},{second}]", "rounds=2")
    assert [(one["model"], round(one["score"], 3)) for one in found] == [("z", 50.0), ("y", 100.0), ("x", 100.0)]
    third = written(tmp_path / "3.jsonl", battles("q2", "a", "z"))
    message = complaint("stage=score", f"battles=[{first},{third}]")
    assert_says(message, "3.jsonl:1: z is in", "twice")


@pytest.mark.parametrize(
    ("key", "record", "fragments"),
    [
        ("judgments", {"question_id": "q", "model": "m"}, ["j.jsonl:1: field 'games' is missing"]),
        ("judgments", judgment("q", "A>B", "A>B", baseline="o3"), ["against o3, not gpt-4-0314", "baseline=o3"]),
        ("judgments", judgment("q", "A>B", "A>B", category="hard_prompt"), ["hard_prompt", "arena-hard-v0.1"]),
        ("judgments", judgment("q", 3, None), ["each of 'games' must be an object, not 3"]),
        ("judgments", {**judgment("q", None, None), "games": [None] * 3}, ["a list of two games"]),
        ("battles", {**battles("q", "a")[0], "winner": "both"}, ["winner 'both'", "model_a, model_b, tie"]),
        ("battles", {**battles("q", "a")[0], "model_a": "n"}, ["n against m", "baseline=NAME"]),
        ("battles", {"model_a": "m"}, ["field 'model_b' is missing"]),
    ],
)
def test_damaged_rows_are_refused_with_their_place(
    tmp_path: Path, key: str, record: dict[str, Any], fragments: list[str]
) -> None:
    path = written(tmp_path / "j.jsonl", [record])
    assert_says(complaint("stage=score", f"{key}={path}"), "j.jsonl:1: ", *fragments)


def test_another_baseline_by_name_or_by_its_answers(tmp_path: Path) -> None:
    rows = [{**row, "model_a": "base"} for row in battles("q1", "bb")]
    path = written(tmp_path / "b.jsonl", rows)
    message = [{"role": "assistant", "content": "?"}]
    answers = written(tmp_path / "a.jsonl", [{"uid": "q1", "model": "base", "messages": message}])
    for given in ("baseline=base", f"baseline_answers={answers}"):
        (found,) = scored(f"battles={path}", given, "rounds=2")
        assert found["score"] == 100.0
        assert "against base" in found["notes"][0]
    message_of_both = complaint("stage=score", f"battles={path}", "baseline=x", f"baseline_answers={answers}")
    assert_says(message_of_both, "baseline=x", "1 answers of base")


def test_what_cannot_be_scored_together_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", [judgment("q", "A>B", "A>B"), judgment("q", "A>B", "A>B", "n", judge="k")])
    assert_says(complaint("stage=score", f"judgments={path}"), "j.jsonl:2: ", "judged by j and k")
    message = complaint(f"judgments={path}", f"battles={path}", "checkpoint=runs/x", "decoding.top_p=1", "dry_run=true")
    assert_says(message, "5 problems", "one of the two", "stage=score", "checkpoint=runs/x", "decoding.top_p=1.0")
    assert_says(complaint("stage=score", "judgments=/nowhere.jsonl"), "judgments=/nowhere.jsonl: no such file")
    assert_says(refused(PROGRAM, "stage=score", f"judgments={path}", "rules=new"), "rules=new", "v0.1, current")
    assert_says(complaint("stage=score", f"judgments={path}", "rounds=-1"), "rounds=-1", "at least 0")


def test_a_key_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "b.jsonl", battles("q1", "ab"))
    for given in (["stage=score", f"battles={path}"], ["checkpoint=x"]):
        assert_says(complaint(*given, "duplicates=all"), "duplicates=all is of stored judgments")


def test_text_for_people(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", [judgment("q", "A>B", "A>B")])
    outcome = call(PROGRAM, "stage=score", f"judgments={path}", "rounds=2")
    assert_says(outcome.out, "arena_hard: m, judged by j", "score", "rules v0.1", "499 questions have no row")


@needs_data
def test_the_published_score_of_gpt4() -> None:
    (found,) = scored(f"battles={SHARED / 'battles_official_gpt-4-0613.jsonl.gz'}")
    assert found["model"] == "gpt-4-0613"
    assert found["score"] == pytest.approx(37.90192926, abs=1e-7)
    # the owners' script of 2024 on these rows alone, scikit-learn 1.9.1
    assert found["score_low"] == pytest.approx(36.027873047, abs=1e-6)
    assert found["score_high"] == pytest.approx(40.219975930, abs=1e-6)
    (found,) = scored(f"battles={SHARED / 'battles_official_gpt-4-0613.jsonl.gz'}", "rules=current", "rounds=0")
    assert found["score"] == pytest.approx(37.90192926, abs=1e-7)


@needs_data
def test_preference_models_and_the_pool_of_both_official_ones(tmp_path: Path) -> None:
    path = SHARED / "battles_pref_models_myashka.jsonl.gz"
    found = {one["model"]: one["score"] for one in scored(f"battles={path}", "rounds=0")}
    name = "Llama-3-Base-8B-{}-UltraFeedback"
    wanted = {"DPO": 10.747, "IPO": 9.143, "TR_DPO-Tau_256": 12.967, "TR_DPO-Alpha_0.6": 17.368}
    wanted = {name.format(key): value for key, value in wanted.items()} | {"Llama-3-Base-8B-SFT-Ultrachat": 3.162}
    wanted |= {"gpt-4-0613": 37.902, "gpt-3.5-turbo-0125": 23.338}
    assert {key: round(found[key], 3) for key in wanted} == wanted
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    both = [line for one in ("gpt-3.5-turbo-0125", "gpt-4-0613") for line in lines if f'"{one}"' in line]
    pooled = tmp_path / "both.jsonl"
    pooled.write_text("".join(both))
    last = scored(f"battles={pooled}")[1]
    # the interval that the owners' script gives for the two models' file
    assert round(last["score_low"] - last["score"], 2) == -2.55
    assert round(last["score_high"] - last["score"], 2) == 2.08


@needs_data
@pytest.mark.parametrize(("rules", "questions", "battles_"), [("v0.1", 192, 569), ("current", 175, 544)])
def test_every_stored_label_follows_from_its_text(rules: str, questions: int, battles_: int) -> None:
    path = SHARED / "judgments_full_text_myashka_TR_KTO.jsonl.gz"
    (found,) = scored(f"judgments={path}", f"rules={rules}", f"questions={SHARED / 'question.jsonl.gz'}", "rounds=3")
    wanted = {"unparsable": 19, "relabelled": 0, "questions": questions, "battles": battles_, "missing_questions": 307}
    assert found["counts"] == found["counts"] | wanted
    assert found["judge"] == "gpt-4-1106-preview"
