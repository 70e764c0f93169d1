"""Asking a judge: rounds, interruptions, what is kept, and answers without log-probs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.judges.base import Judged
from src.evaluation.judges.settings import OpenAI
from src.evaluation.judging import Progress, judge_all, judge_info, judged_of, stored_judgments
from src.generation.client import TRY_AGAIN_LATER, Completion
from tests.evaluation.small import Grades, answers_of, grades
from tests.unit.chat_server import Reply, answer, serving


def quiet(text: str) -> None:
    """Nothing on the terminal."""


def judged(benchmark: Grades, url: str, folder: Path, *, directory: str = "judgments", **changes: Any) -> list[Judged]:
    """Every answer to the benchmark judged at ``url``."""
    settings = OpenAI(url, "judge-1", concurrency=2, tries=1, **changes)
    judge = settings.open(folder / "cache")
    try:
        requests = benchmark.requests(answers_of(benchmark))
        return judge_all(judge, benchmark, requests, folder / directory, 3, quiet, settings)
    finally:
        judge.close()


def test_answers_come_back_in_order_and_are_kept(tmp_path: Path) -> None:
    benchmark = grades(5, turns=2)
    with serving(lambda payload, number: answer(f"[[{number % 10}]] {payload['messages'][0]['content']}")) as server:
        first = judged(benchmark, server.base_url, tmp_path)
        again = judged(benchmark, server.base_url, tmp_path)
        asked = len(server.payloads)
    assert asked == 10
    assert again == first
    for one in first:
        assert one.request.messages[0]["content"] in one.answers[0].text
    assert [one.request.id for one in first] == [f"{item.id}:{turn}" for item in benchmark.items() for turn in (0, 1)]
    assert stored_judgments(tmp_path / "judgments", benchmark.requests(answers_of(benchmark))) == first
    lines = [json.loads(line) for path in (tmp_path / "judgments/shards").iterdir() for line in path.open()]
    needed = {"id", "request", "messages", "text", "finish_reason", "tokens", "prompt_tokens", "logprobs", "date"}
    assert all(needed <= set(line) for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", line["date"]) for line in lines)


def test_a_judge_that_gives_no_grade_is_asked_once_more(tmp_path: Path) -> None:
    def script(payload: dict[str, Any], number: int) -> Reply:
        asked_on = len(payload["messages"]) > 1
        about = payload["messages"][0]["content"]
        return answer(
            "[[7]]" if asked_on and "of q1" in about else "well" if "of q1" in about or "of q2" in about else "[[5]]"
        )

    benchmark = grades(4)
    with serving(script) as server:
        found = judged(benchmark, server.base_url, tmp_path)
        assert len(server.payloads) == 6
    assert [[one.text for one in case.answers] for case in found] == [
        ["[[5]]"],
        ["well", "[[7]]"],
        ["well"] * 2,
        ["[[5]]"],
    ]
    scores = benchmark.score({}, found)
    assert scores.counts == {"graded": 3, "unparsable": 1}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2, 5, 8])
def test_whatever_was_answered_is_never_asked_again(tmp_path: Path, fails_at: int, cached: bool) -> None:
    """The endpoint breaks at one request; the second call goes on, and the two together ask each request once."""
    benchmark = grades(7)
    good: list[str] = []

    def script(payload: dict[str, Any], number: int) -> Reply:
        if number == fails_at:
            return Reply(status=500, body=b"broken")
        good.append(json.dumps(payload))
        return answer("no grade" if len(payload["messages"]) == 1 and number % 2 else "[[3]]")

    with serving(script) as server:
        with pytest.raises(UserError, match="everything finished is kept") as error:
            judged(benchmark, server.base_url, tmp_path)
        assert error.value.exit_code == TRY_AGAIN_LATER
        assert f"({len(good)} answers to 7 requests are kept in {tmp_path / 'judgments'})" in str(error.value)
        if not cached:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # the journal alone is enough
        found = judged(benchmark, server.base_url, tmp_path)
    assert len(good) == len(set(good)) == sum(len(case.answers) for case in found)
    assert all("[[3]]" in case.answers[-1].text for case in found)


def test_a_lost_directory_costs_nothing_while_the_cache_is_there(tmp_path: Path) -> None:
    benchmark = grades(4)
    with serving(lambda payload, number: answer(f"[[{number}]]")) as server:
        first = judged(benchmark, server.base_url, tmp_path)
        shutil.rmtree(tmp_path / "judgments")
        assert judged(benchmark, server.base_url, tmp_path) == first
        assert len(server.payloads) == 4


def test_a_journal_of_other_requests_is_not_taken(tmp_path: Path) -> None:
    benchmark = grades(2)
    other = replace(benchmark, settings={"temperature": 1})
    with serving(lambda payload, number: answer(f"[[{number}]]")) as server:
        judged(benchmark, server.base_url, tmp_path)
        with pytest.raises(UserError, match="holds records of other settings"):
            judged(other, server.base_url, tmp_path)
        judged(other, server.base_url, tmp_path, directory="other")
        assert len(server.payloads) == 4


def test_a_kept_answer_to_another_question_is_not_taken(tmp_path: Path) -> None:
    """As where asking again was changed between two calls."""
    benchmark = grades(1)
    with (
        serving(lambda payload, number: answer("no grade") if number == 1 else Reply(status=500)) as server,
        pytest.raises(UserError, match="1 answers to 1 requests are kept"),
    ):
        judged(benchmark, server.base_url, tmp_path)
    journal = tmp_path / "judgments" / "partial" / "000000.jsonl"
    (line,) = map(json.loads, journal.open())
    wrong = {**line, "round": 1, "request": "0" * 64, "text": "[[9]]"}
    journal.write_text(f"{json.dumps(line)}\n{json.dumps(wrong)}\n")
    with serving(lambda payload, number: answer("[[2]]")) as server:
        settings = OpenAI(server.base_url, "judge-1")
        begun = tmp_path / "judgments" / "begun.json"
        content = json.loads(begun.read_text())
        content["identity"]["judge"] = settings.open(tmp_path).describe()  # the port is another
        begun.write_text(json.dumps(content))
        (only,) = judged(benchmark, server.base_url, tmp_path)
    assert [one.text for one in only.answers] == ["no grade", "[[2]]"]


def test_changed_judgments_are_refused(tmp_path: Path) -> None:
    benchmark = grades(4)
    requests = benchmark.requests(answers_of(benchmark))
    with serving(lambda payload, number: answer("[[3]]")) as server:
        judged(benchmark, server.base_url, tmp_path)
    shard = tmp_path / "judgments" / "shards" / "000001.jsonl"
    line = json.loads(shard.read_text())
    shard.write_text(json.dumps({**line, "text": "[[9]]"}) + "\n")
    with pytest.raises(UserError, match="a file was changed"):
        stored_judgments(tmp_path / "judgments", requests)
    with pytest.raises(UserError, match=r"1 of 4 lack theirs, first: q3:0"):
        judged_of(requests, [{**line, "id": one.id, "request": one.hash} for one in requests[:3]], tmp_path)


def test_equal_ids_are_a_mistake_of_the_benchmark(tmp_path: Path) -> None:
    benchmark = grades(2)
    twice = replace(benchmark, questions=benchmark.questions[:1] * 2)
    with pytest.raises(ValueError, match="q0:0"):
        judged(twice, "http://127.0.0.1:1/v1", tmp_path)


def with_logprobs(text: str) -> Reply:
    """An answer of one token with its alternatives."""
    top = [{"token": "m", "logprob": -0.1, "bytes": [109]}, {"token": "M", "logprob": float("-inf")}]
    token = {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}
    choice = {"message": {"content": text}, "finish_reason": "length", "logprobs": {"content": [token]}}
    usage = {"completion_tokens": 1, "prompt_tokens": 30}
    return Reply(body=json.dumps({"choices": [choice], "usage": usage}).encode())


def test_a_judge_without_logprobs_is_stopped_at_once_and_asked_anew_later(tmp_path: Path) -> None:
    benchmark = replace(grades(6), settings={"logprobs": True, "top_logprobs": 2})
    served = {"logprobs": False}

    def script(payload: dict[str, Any], number: int) -> Reply:
        return with_logprobs("[[1]]") if served["logprobs"] else answer("[[1]]")

    with serving(script) as server:
        with pytest.raises(UserError, match="without log-probs") as error:
            judged(benchmark, server.base_url, tmp_path)
        assert "top_logprobs" in str(error.value)
        assert len(server.payloads) <= 4
        served["logprobs"] = True  # started anew, with log-probs
        found = judged(benchmark, server.base_url, tmp_path)
    first = found[0].answers[0]
    assert first.logprobs is not None
    assert first.logprobs[0]["top_logprobs"] == [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -9999.0}]
    assert all(case.answers[0].logprobs for case in found)


def test_a_filtered_answer_is_left_to_the_benchmark(tmp_path: Path) -> None:
    benchmark = replace(grades(1), settings={"logprobs": True})
    with serving(lambda payload, number: answer("", finish_reason="content_filter")) as server:
        (only,) = judged(benchmark, server.base_url, tmp_path)
    assert [one.finish_reason for one in only.answers] == ["content_filter"] * 2


def test_progress_says_rate_time_and_cost() -> None:
    said: list[str] = []
    progress = Progress(said.append, 4, OpenAI("http://127.0.0.1:1/v1", "j", input_price=10.0, output_price=30.0))
    progress.started -= 10.0
    progress.count(Completion("", "stop", 1000, 100_000), new=False)
    progress.count(Completion("", "stop", 1000, 100_000), new=True)
    progress.line()
    assert said == ["  judged 2/4, 0.1 a second, about 20 s left, cost so far 2.06 USD"]
    progress.shard_done()
    assert len(said) == 1
    for _ in range(2):
        progress.count(Completion("", "stop"), new=True)
    progress.shard_done()
    assert said[-1].startswith("  judged 4/4, 0.3 a second, cost")


def test_the_record_says_who_judged_when_by_which_prompts() -> None:
    benchmark = grades(1)
    (request,) = benchmark.requests(answers_of(benchmark))
    answers = tuple(Completion("x", "stop", date=f"2026-01-0{day}T00:00:00+00:00") for day in (3, 1))
    described = {"name": "openai", "model": "gpt-4", "base_url": "http://x/v1", "extra": {}}
    info = judge_info(described, benchmark, [Judged(request, answers)])
    assert (info.name, info.model, info.first[:10], info.last[:10]) == ("openai", "gpt-4", "2026-01-01", "2026-01-03")
    assert info.settings == {"base_url": "http://x/v1", "extra": {}}
    assert info.prompts == judge_info(described, grades(3), []).prompts  # of the prompts alone
