"""`python -m src.evaluation.mt_bench` as a whole: writer and judge behind an endpoint, stored answers, toy world."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from src.evaluation.mtbench import files
from src.evaluation.mtbench.benchmark import toy
from src.evaluation.mtbench.prompts import OWN, read_prompts
from tests.entry import assert_says, call, refused
from tests.evaluation.endpoints import JUDGE, WRITER
from tests.evaluation.toy_runs import asked, places, results
from tests.unit.chat_server import ChatServer, Reply, answer, serving

PROGRAM = "src.evaluation.mt_bench"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt_bench"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")

QUESTIONS = (
    {"question_id": 81, "category": "writing", "turns": ["Tell a tale.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "Plus 1?"]},
)
RATINGS = {"Tell a tale.": ("8", "6.5"), "1 + 1?": ("10", "none")}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(question: object, *turns: str, model: str = "m") -> dict[str, Any]:
    return {"question_id": question, "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}


def files_of(folder: Path) -> tuple[str, ...]:
    """Overrides that name questions and references of one's own."""
    questions = lines(folder / "questions.jsonl", *QUESTIONS)
    references = lines(folder / "references.jsonl", stored(111, "2", "3"))
    return (f"questions={questions}", f"reference_answers={references}", "output=json", *places(folder))


def write_and_judge(payload: dict[str, Any], number: int) -> Reply:
    """A writer that says what it was asked, and a judge with the ratings above."""
    messages = payload["messages"]
    if payload["model"] == WRITER:
        return answer(f"to {messages[-1]['content']}", tokens=4)
    asked_about = next(first for first in RATINGS if first in messages[-1]["content"])
    turn = 2 if "Conversation with User" in messages[-1]["content"] else 1
    return answer(f"Rating: [[{RATINGS[asked_about][turn - 1]}]]", tokens=9)


def payloads(server: ChatServer, model: str) -> list[dict[str, Any]]:
    return [payload for payload in server.payloads if payload["model"] == model]


def test_two_turns_a_judge_and_a_record(tmp_path: Path) -> None:
    with serving(write_and_judge) as server:
        settings = (*files_of(tmp_path), *asked(server.base_url))
        dry = call(PROGRAM, *settings, "dry_run=true")
        assert (dry.code, dry.out, server.payloads) == (0, "", [])
        assert_says(dry.err, "answers: 4 to write", "judge: 4 calls")
        first = call(PROGRAM, *settings)
        written, judged = payloads(server, WRITER), payloads(server, JUDGE)
        again = [call(PROGRAM, *settings, *more).out for more in ((), ("stage=score",))]
        assert len(server.payloads) == 8
    assert (first.code, again) == (0, [first.out, first.out])
    (found,) = results(first.out)
    assert (found["model"], found["judge"], found["overall"]) == (WRITER, JUDGE, (8 + 6.5 + 10) / 3)
    assert (found["first_turn"], found["second_turn"], found["category/math"]) == (9.0, 6.5, 10.0)
    assert (found["counts"]["unparsable"], found["counts"]["missing"]) == (1, 0)
    drawn = {payload["messages"][0]["content"]: payload["temperature"] for payload in written}
    assert drawn == {"Tell a tale.": 0.7, "1 + 1?": 0.0}
    assert {payload["max_tokens"] for payload in written} == {1024}
    said = [[(one["role"], one["content"]) for one in payload["messages"]] for payload in written]
    assert [("user", "1 + 1?"), ("assistant", "to 1 + 1?"), ("user", "Plus 1?")] in said
    assert all((payload["temperature"], payload["max_tokens"]) == (0, 2048) for payload in judged)
    shown = next(one["messages"][1]["content"] for one in judged if "Plus 1?" in one["messages"][1]["content"])
    assert_says(shown, "### Reference answer:\n3\n", "### Assistant A:\nto Plus 1?")
    (kept,) = (tmp_path / "evaluations" / "judgments").iterdir()
    questions = next(part for part in settings if part.startswith("questions="))
    (alone,) = results(call(PROGRAM, "stage=score", f"judgments={kept}", questions, "output=json").out)
    assert alone == {**{key: found[key] for key in alone}, "model": kept.name}
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["judge"]["model"]) == ("mt_bench", JUDGE)
    assert record["counts"] == found["counts"]
    assert record["judge"]["first"] <= record["judge"]["last"]
    assert {"questions", "reference answers", "judge prompts", "judgments"} <= set(record["sources"])
    assert all(source["hash"] for source in record["sources"].values())


def test_one_temperature_for_all_and_fewer_questions(tmp_path: Path) -> None:
    with serving(write_and_judge) as server:
        settings = (*files_of(tmp_path), *asked(server.base_url), "decoding.temperature=0.3", "max_items=1")
        (found,) = results(call(PROGRAM, *settings).out)
        assert [payload["temperature"] for payload in payloads(server, WRITER)] == [0.3, 0.3]
    assert (found["overall"], found["counts"]["judgments"]) == (7.25, 2)
    assert any("only the first 1 items" in note for note in found["notes"])


def test_stored_answers_are_judged(tmp_path: Path) -> None:
    outputs = lines(tmp_path / "m.jsonl", stored(111, "two", "three"), stored(81, "Once", "On"))
    with serving(write_and_judge) as server:
        settings = (*files_of(tmp_path), *asked(server.base_url)[2 + 4 :], f"outputs={outputs}")
        (found,) = results(call(PROGRAM, *settings).out)
        assert len(server.payloads) == 4
        (trial,) = results(call(PROGRAM, *settings, "max_items=1").out)
        assert len(server.payloads) == 4
    assert (found["model"], found["overall"]) == ("m", (8 + 6.5 + 10) / 3)
    assert trial["overall"] == 7.25


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        (
            [stored(81, "a"), stored(7, "a", "b")],
            ("1 of 2 questions have no answer (111)", "to no question", "(7)", "another number of turns", "(81)"),
        ),
        ([stored(81, "a", "b"), stored(81, "a", "b")], ("question 81 is there twice",)),
    ],
)
def test_answers_that_do_not_fit(tmp_path: Path, rows: list[dict[str, Any]], fragments: tuple[str, ...]) -> None:
    file = lines(tmp_path / "m.jsonl", *rows)
    judge = ("judge=openai", "judge.base_url=http://127.0.0.1:9/v1", "judge.model=x")
    assert_says(refused(PROGRAM, *files_of(tmp_path), *judge, f"outputs={file}"), str(file), *fragments)


def test_the_toy_world_by_its_oracle(tmp_path: Path) -> None:
    benchmark = toy(read_prompts(OWN))
    rows = [stored(one.id, *benchmark.references[one.id], model="ideal") for one in benchmark.questions]
    file = lines(tmp_path / "ideal.jsonl", *rows)
    settings = ("benchmark=toy", "judge=oracle", f"outputs={file}", "output=json", *places(tmp_path))
    (found,) = results(call(PROGRAM, *settings).out)
    assert found["overall"] > 9.7
    assert found["counts"]["scores"] == 96
    assert (found["model"], found["judge"]) == ("ideal", "oracle")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"fastchat": ("http://127.0.0.1:9/question.jsonl", "0" * 64)}
    monkeypatch.setattr("src.evaluation.mtbench.benchmark.QUESTIONS", nowhere)
    message = refused(PROGRAM, "checkpoint=nowhere", *places(tmp_path))
    assert_says(message, "http://127.0.0.1:9/question.jsonl cannot be fetched", "give a copy of it in questions=FILE")
    without = [part for part in files_of(tmp_path) if not part.startswith("reference_answers")]
    empty = lines(tmp_path / "none.jsonl", stored(5, "a", "b"))
    message = refused(PROGRAM, *without, f"reference_answers={empty}", "checkpoint=nowhere")
    assert_says(message, "question 111 (math) has no reference answer", "give reference_answers=")
    assert_says(
        refused(PROGRAM, *files_of(tmp_path), "checkpoint=nowhere", "duplicates=all"),
        "duplicates=all would not be read",
    )
    assert_says(refused(PROGRAM, "stage=score"), "nothing to measure", "checkpoint=RUN", "stage=score judgments=FILE")
    assert files.REFERENCES.keys() == {"fastchat", "simpo"}


@needs_shared
def test_stored_answers_judged_as_gpt4_judged_them_give_the_published_mean(tmp_path: Path) -> None:
    """A judge that says what GPT-4 said to the very same text."""
    model = "mamba_0_5_dpo_ep3"
    with gzip.open(SHARED / "judgment_gpt-4_single_mambainllama_dpo.jsonl.gz", "rt") as file:
        said = {row["user_prompt"]: row["judgment"] for row in map(json.loads, file) if row["model"] == model}
    with serving(lambda payload, _: answer(said[payload["messages"][1]["content"]])) as server:
        settings = (
            f"questions={SHARED / 'question.jsonl.gz'}",
            f"reference_answers={SHARED / 'reference_answer_gpt-4.jsonl.gz'}",
            f"outputs={SHARED / 'model_answer' / model}.jsonl.gz",
            *asked(server.base_url)[2 + 4 :],
            *places(tmp_path),
            "output=json",
        )
        (found,) = results(call(PROGRAM, *settings).out)
        assert len(server.payloads) == len(said) == 160
    assert (found["model"], found["overall"]) == (model, 7.3125)
