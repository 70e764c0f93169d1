"""Arena-Hard as a benchmark: what the judge is asked, when once more, files of both years, whole evaluations."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from src.data.toy.tasks import parse_task
from src.data.toy.writers import WRITERS, write
from src.evaluation.arena import lengths
from src.evaluation.arena.benchmark import ArenaHard, as_prompt, spoken, toy_world
from src.evaluation.arena.files import Question, read_answers, read_questions
from src.evaluation.arena.lengths import answer_lengths
from src.evaluation.arena.prompts import judge_prompts
from src.evaluation.arena.verdicts import RULES
from src.evaluation.judges.base import Judged, Opinion
from src.generation.client import Completion
from tests.entry import assert_says
from tests.evaluation.arena_tools import SHARED, complaint, needs_data, printed, written
from tests.unit.chat_server import Reply, answer, serving

QUESTIONS = (Question("q1", "First {braces}?", "c1"), Question("q2", "Second?", "c2"))
AGAIN = "continue your judgment and finish by outputting a final verdict label"


def arena(rules: str = "v0.1") -> ArenaHard:
    return ArenaHard(QUESTIONS, "base", {"q1": "base {one}", "q2": "base two"}, RULES[rules], rounds=2, seed=1)


OUTPUTS = {"q1": ("model {one}",), "q2": ("model two",)}


def said(*texts: str) -> tuple[Completion, ...]:
    return tuple(Completion(text, "stop") for text in texts)


def new_answer(question: str, text: str, model: str = "m") -> dict[str, Any]:
    """A line of ``model_answer`` as of 2025."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": text}}]
    return {"uid": question, "ans_id": "a", "model": model, "messages": messages, "metadata": {"token_len": 2}}


def old_answer(question: str, text: str, model: str = "m") -> dict[str, Any]:
    """The same as of 2024."""
    choices = [{"index": 0, "turns": [{"content": text, "token_len": 2}]}]
    return {"question_id": question, "answer_id": "a", "model_id": model, "choices": choices}


def test_two_games_a_question_in_both_orders() -> None:
    requests = arena().requests(OUTPUTS)
    assert [one.id for one in requests] == ["q1:game-1", "q1:game-2", "q2:game-1", "q2:game-2"]
    system, user = (message["content"] for message in requests[0].messages)
    assert system.startswith("Please act as an impartial judge")
    assert system.endswith('Example output: "My final verdict is tie: [[A=B]]".')
    assert user == (
        "<|User Prompt|>\nFirst {braces}?\n\n<|The Start of Assistant A's Answer|>\nbase {one}\n<|The End of Assistant "
        "A's Answer|>\n\n<|The Start of Assistant B's Answer|>\nmodel {one}\n<|The End of Assistant B's Answer|>"
    )
    assert requests[0].answers == ("base {one}", "model {one}")
    assert requests[1].answers == ("model {one}", "base {one}")
    assert requests[1].messages[1]["content"].index("model {one}") < requests[1].messages[1]["content"].index("base")
    assert {json.dumps(one.settings) for one in requests} == {'{"temperature": 0, "max_tokens": 4096}'}


def test_asked_once_more_only_where_there_is_no_label() -> None:
    old, new = arena(), arena("current")
    request = old.requests(OUTPUTS)[0]
    following = old.ask_again(request, said("I wonder"))
    assert following is not None
    assert following.id == request.id
    assert following.messages[:2] == request.messages
    assert following.messages[2:] == (
        {"role": "assistant", "content": "I wonder"},
        {"role": "user", "content": AGAIN},
    )
    assert old.ask_again(request, said("I wonder", "still")) is None
    assert old.ask_again(request, said("[[A>B]]")) is None
    assert old.ask_again(request, said("[[A>B]] [[B>A]]")) is None  # contradictory labels are left, as the owners do
    assert old.ask_again(request, said("[[C]]")) is not None
    assert new.ask_again(request, said("I wonder")) is None


def test_verdicts_of_both_attempts_are_read_as_one_text() -> None:
    benchmark = arena()
    texts = (said("[[B>>A]]"), said("hm", "so [[A>B]]"), said("nothing", "at all"), said("[[A>B]] [[B>A]]"))
    requests = benchmark.requests(OUTPUTS)
    judged = [Judged(request, answers) for request, answers in zip(requests, texts, strict=True)]
    found = benchmark.score(OUTPUTS, judged)
    assert found.metrics["score"]["value"] == 100.0  # q1: three battles won, and one as A
    wanted = {"battles": 4, "wins": 4, "unparsable": 2, "contradictory": 1, "unjudged_questions": 1, "asked_again": 2}
    assert dict(found.counts) == {**found.counts, **wanted}
    assert found.details["answers"]["average_characters"] == 10.0
    none = replace(benchmark, rules=RULES["current"]).score(OUTPUTS, [Judged(one, said("")) for one in requests])
    assert none.metrics["score"]["value"] is None


def test_what_scores_depend_on_is_described() -> None:
    base = arena()
    changed = [
        replace(base, questions=(QUESTIONS[1], QUESTIONS[0])),
        replace(base, answers={**base.answers, "q2": "another"}),
        replace(base, baseline="other"),
        replace(base, rules=RULES["current"]),
        replace(base, rounds=3),
        replace(base, seed=2),
    ]
    assert len({json.dumps(one.describe()) for one in (base, *changed)}) == 7
    # what the judge is asked depends on how often it may be asked, not on the bootstrap
    prompts = [one.describe()["judge_prompts"] for one in (base, *changed)]
    assert [prompt == prompts[0] for prompt in prompts] == [True, True, True, True, False, True, True]


@pytest.mark.parametrize(
    ("a", "b", "label"),
    [(4, 3, "A>>B"), (4, 3.5, "A>B"), (4, 3.95, "A=B"), (3.95, 4, "A=B"), (3.5, 4, "B>A"), (3, 4, "B>>A")],
)
def test_the_oracle_speaks_in_labels(a: float, b: float, label: str) -> None:
    for rules in RULES.values():
        assert rules.read(spoken(Opinion((a, b), 0.5)).text).label == label


def test_files_of_both_years_are_the_same(tmp_path: Path) -> None:
    new = [
        {"uid": one.id, "category": "arena-hard-v0.1", "cluster": one.cluster, "prompt": one.prompt}
        for one in QUESTIONS
    ]
    old = [{"question_id": one.id, "cluster": one.cluster, "turns": [{"content": one.prompt}]} for one in QUESTIONS]
    for rows in (new, old):
        assert read_questions(written(tmp_path / "q.jsonl", rows)) == QUESTIONS
    for make in (new_answer, old_answer):
        path = written(tmp_path / "a.jsonl", [make("q2", "two"), make("q1", "one")])
        assert read_answers(path) == ("m", {"q2": "two", "q1": "one"})


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([new_answer("q1", "x"), new_answer("q1", "x")], ["o.jsonl:2: question q1 is answered twice"]),
        ([new_answer("q1", "x"), new_answer("q2", "x", "n")], ["answers of several models (m, n)"]),
        ([{"uid": "q1", "model": "m", "messages": []}], ["o.jsonl:1: field 'messages' must be a list"]),
        ([{"uid": "q1", "model": "m", "messages": [{"role": "user", "content": "?"}]}], ["not the assistant's"]),
        ([{**old_answer("q1", "x"), "choices": [{"turns": []}]}], ["a list of one turn with 'content'"]),
        ([new_answer("q1", "x")], ["1 of 2 questions have no answer (q2)"]),
        ([new_answer(one, "x") for one in ("q1", "q2", "q3")], ["1 answers are to no question of the benchmark (q3)"]),
    ],
)
def test_answers_must_be_one_to_each_question(tmp_path: Path, rows: list[dict[str, Any]], fragments: list[str]) -> None:
    outputs = written(tmp_path / "o.jsonl", rows)
    message = complaint(
        f"outputs={outputs}", *official(tmp_path), *asked("http://127.0.0.1:9/v1"), groups=["judge=openai"]
    )
    assert_says(message, *fragments)


def official(folder: Path) -> list[str]:
    """Small files in the owners' format, and where an evaluation on them writes."""
    rows = [{"uid": one.id, "prompt": one.prompt} for one in QUESTIONS]
    answers = [new_answer(one.id, f"base {one.id}", "base") for one in QUESTIONS]
    return [
        f"questions={written(folder / 'questions.jsonl', rows)}",
        f"baseline_answers={written(folder / 'base.jsonl', answers)}",
        f"output_root={folder / 'e'}",
        f"records_root={folder / 'records'}",
        f"cache_root={folder / 'cache'}",
    ]


def asked(url: str) -> list[str]:
    return [f"judge.base_url={url}", "judge.model=j", "judge.tries=1", "rounds=2"]


def test_stored_answers_judged_by_an_endpoint(tmp_path: Path) -> None:
    outputs = written(tmp_path / "o.jsonl", [old_answer("q2", "mine q2"), old_answer("q1", "mine q1")])
    refusals: Counter[str] = Counter()

    def script(payload: dict[str, Any], number: int) -> Reply:
        text = payload["messages"][1]["content"]
        if len(payload["messages"]) == 2 and "q2" in text:
            refusals[text] += 1
            return answer("It depends.")
        return answer("[[B>>A]]" if text.index("base") < text.index("mine") else "[[A>B]]")

    with serving(script) as server:
        command = (f"outputs={outputs}", *official(tmp_path), *asked(server.base_url))
        (found,) = printed(*command, groups=["judge=openai"])
        calls = len(server.payloads)
        assert printed(*command, groups=["judge=openai"]) == [found]
        assert calls == len(server.payloads) == 6  # two of them once more
    assert (found["model"], found["judge"], found["score"]) == ("m", "j", 100.0)
    assert found["counts"]["asked_again"] == 2
    assert sorted(refusals.values()) == [1, 1]
    assert {payload["temperature"] for payload in server.payloads} == {0}
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert record["benchmark"] == "arena_hard"
    assert {"questions", "baseline answers", "judgments"} <= set(record["sources"])
    assert record["details"]["rules"]["baseline"] == "base"
    message = complaint(*command, "baseline=gpt-4-0314", groups=["judge=openai"])
    assert_says(message, "baseline=gpt-4-0314", "holds 2 answers of base")


def test_a_trial_passes_over_answers_to_the_other_questions(tmp_path: Path) -> None:
    outputs = written(tmp_path / "o.jsonl", [new_answer("q1", "mine"), new_answer("q2", "mine")])
    with serving(lambda payload, number: answer("[[A=B]]")) as server:
        command = (f"outputs={outputs}", *official(tmp_path), *asked(server.base_url), "max_items=1")
        (found,) = printed(*command, groups=["judge=openai"])
        assert len(server.payloads) == 2
    assert (found["score"], found["counts"]["questions"]) == (pytest.approx(50), 1)
    assert "only the first 1 items" in " ".join(found["notes"])


def test_the_toy_world_by_the_same_code(tmp_path: Path) -> None:
    questions, baseline = toy_world()
    assert len(questions) == len(baseline) == 100
    places = [f"output_root={tmp_path / 'e'}", f"records_root={tmp_path / 'r'}", f"cache_root={tmp_path / 'c'}"]
    scores = {}
    for name in ("expert", "novice"):
        rows = [
            new_answer(one.id, write(WRITERS[name], parse_task(as_prompt(one.prompt)), random.Random(one.id)), name)
            for one in questions
        ]
        outputs = written(tmp_path / f"{name}.jsonl", rows)
        (scores[name],) = printed(f"outputs={outputs}", "benchmark=toy", "rounds=5", *places, groups=["judge=oracle"])
    assert scores["novice"]["score"] < 40 < 60 < scores["expert"]["score"]
    assert scores["expert"]["counts"]["unparsable"] == 0
    judged = [json.loads(line) for path in tmp_path.glob("e/judgments/*/shards/*") for line in path.open()]
    labels = Counter(RULES["v0.1"].read(one["text"]).label for one in judged)
    assert set(labels) == {"A>>B", "A>B", "A=B", "B>A", "B>>A"}
    # each game is the mirror of the other
    assert (labels["A>>B"], labels["A>B"]) == (labels["B>>A"], labels["B>A"])
    message = complaint("benchmark=toy", "questions=x", "baseline=y")
    assert_says(message, "2 problems", "questions=x would not be read with benchmark=toy", "baseline=y")


def test_files_that_cannot_be_fetched_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(address: str, **_: Any) -> None:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "get", nowhere)
    message = complaint(f"cache_root={tmp_path}")
    assert_says(message, "question.jsonl cannot be fetched", "questions=FILE")


def test_tokens_are_counted_by_who_can_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def encode(self, text: str, disallowed_special: tuple[str, ...] = ("all",)) -> list[str]:
            assert disallowed_special == ()
            return text.split()

    monkeypatch.setattr(lengths, "tiktoken_encoding", lambda: None)
    found = answer_lengths(["a b", "c"], None)
    assert found == {"average_characters": 2.0, "average_tokens": None, "tokens_counted_by": None}
    monkeypatch.setattr(lengths, "tiktoken_encoding", Words)
    found = answer_lengths(["a b", "c"], None)
    assert found == {"average_characters": 2.0, "average_tokens": 1.5, "tokens_counted_by": "tiktoken cl100k_base"}


@needs_data
def test_the_owners_requests_to_the_letter() -> None:
    """Template, order and baseline: the prompts that stand in published judgments."""
    questions = {one.id: one.prompt for one in read_questions(SHARED / "question.jsonl.gz")}
    baseline, answers = read_answers(SHARED / "model_answer" / "gpt-4-0314.jsonl.gz")
    assert (len(questions), len(answers), baseline) == (500, 500, "gpt-4-0314")
    place = "the model's answer, not known"
    seen = 0
    with gzip.open(SHARED / "judgments_full_text_myashka_TR_KTO.jsonl.gz") as lines:
        for record in map(json.loads, lines):
            question, reference = questions[record["question_id"]], answers[record["question_id"]]
            first, second = (game["user_prompt"] for game in record["games"])
            before, after = judge_prompts().messages(question, reference, place)[1]["content"].split(place)
            assert first.startswith(before)
            assert first.endswith(after)
            own = first[len(before) : -len(after)]
            assert second == judge_prompts().messages(question, own, reference)[1]["content"]
            seen += 1
    assert seen == 193
