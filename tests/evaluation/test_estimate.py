"""What an evaluation is said to take, and answers matched by id."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.errors import UserError
from src.evaluation.estimate import Estimate, estimate_judging, guessed_outputs
from src.evaluation.judges.settings import OpenAI, Oracle
from src.evaluation.outputs import collected, completed
from tests.evaluation.small import answers_of, grades

JUDGE = OpenAI("http://127.0.0.1:1/v1", "j", input_price=10.0, output_price=30.0, seconds_per_answer=6.0, concurrency=4)


def test_tokens_price_and_time() -> None:
    benchmark = grades(10)
    requests = benchmark.requests(answers_of(benchmark))
    found = estimate_judging(benchmark, JUDGE, None, requests, None)
    asked = sum(round(len(request.messages[0]["content"]) / 4) for request in requests)
    assert (found.calls, found.known, found.prompt_tokens, found.tokens) == (10, 0, asked, 80)
    assert found.usd == pytest.approx((asked * 10 + 80 * 30) / 1e6)
    assert found.seconds == 15.0


def test_answers_that_are_not_written_count_as_usual_ones() -> None:
    benchmark = grades(2, turns=2)
    outputs = guessed_outputs(benchmark.items())
    assert all(1990 <= len(text) <= 2000 for answers in outputs.values() for text in answers)
    assert completed(benchmark.items(), outputs, "x") == outputs


def test_what_is_said(tmp_path: Path) -> None:
    estimate = Estimate(805, 10, 1_260_000, 45_000, 12.345, 1000.0, guessed=True)
    first, second = estimate.lines(JUDGE)
    assert first == (
        "judge: 805 calls (10 are there already), about 1.3 million tokens asked and 45 thousand answered, "
        "about 12.35 USD, about 17 min with judge.concurrency=4"
    )
    assert "2000 characters" in second
    (unknown,) = Estimate(1, 0, 1, 1, None, 10_000.0).lines(JUDGE)
    assert "unknown price" in unknown
    assert "about 2.8 h" in unknown
    assert "free of charge" in Estimate(1, 0, 1, 1, 0.0, 1.0).lines(Oracle())[0]
    assert Estimate(0, 7, 0, 0, 0.0, 0.0).lines(JUDGE) == ["judge: nothing to ask, all 7 judgments are there"]


def test_equal_answers_count_once_and_different_ones_are_refused() -> None:
    found, repeated = collected([("a", ("x",)), ("b", ("y",)), ("a", ("x",))], "f.json")
    assert (found, repeated) == ({"a": ("x",), "b": ("y",)}, 1)
    with pytest.raises(UserError, match=r"f.json holds different answers to the same question, 1 times \(a\)"):
        collected([("a", ("x",)), ("a", ("z",))], "f.json")


def test_many_missing_ids_are_named_by_the_first_few() -> None:
    with pytest.raises(UserError, match=r"8 of 8 questions have no answer \(q0, q1, q2, q3, q4, and 3 more\)"):
        completed(grades(8).items(), {}, "f.json")
