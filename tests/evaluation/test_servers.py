"""Clients of writers and judges against a real chat server of a real (tiny) model, through the entry points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.entry import assert_says, call
from tests.evaluation.chat_model import LogProbs, transformers_serving
from tests.evaluation.toy_runs import module, result, toy
from tests.unit.chat_server import serving
from tests.unit.generation_tools import tiny_model

CONTEXT = 16384
"""Tokens; the tokenizer has about one a character, and a judge reads whole answers."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve`, in a process of its own."""
    with transformers_serving(tiny_model(CONTEXT), tmp_path_factory.mktemp("server") / "log") as url:
        yield url


def writer(url: str) -> tuple[str, ...]:
    return (
        "generator=openai",
        f"generator.base_url={url}",
        f"generator.model={tiny_model(CONTEXT)}",
        "generator.concurrency=2",
        "decoding.max_new_tokens=12",
    )


def judge(url: str, model: str) -> tuple[str, ...]:
    return ("judge=openai", f"judge.base_url={url}", f"judge.model={model}", "judge.tries=2", "judge.concurrency=2")


def short(tokens: int) -> str:
    """A random model never ends by itself."""
    return f"+judge.extra.max_tokens={tokens}"


def record(folder: Path) -> dict[str, object]:
    (path,) = (folder / "records").glob("*.json")
    content: dict[str, object] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(("benchmark", "judgments"), [("arena_hard", 4), ("mt_bench", 4)])
def test_writer_and_judge_behind_transformers_serve(
    benchmark: str, judgments: int, address: str, tmp_path: Path
) -> None:
    """A random model gives no verdict: every judgment is asked for, kept and counted as unparsable."""
    model = str(tiny_model(CONTEXT))
    settings = toy(tmp_path, *writer(address), *judge(address, model), short(8), items=2)
    outcome = call(module(benchmark), *settings)
    assert outcome.code == 0, outcome.err
    found = result(outcome.out)
    assert (found["benchmark"], found["model"], found["judge"]) == (benchmark, model, model)
    assert found["counts"]["unparsable"] == judgments
    kept = [line for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(kept) > judgments
    again = call(module(benchmark), *settings)
    assert (again.code, again.out) == (0, outcome.out)


def test_alpaca_eval_with_a_judge_that_gives_log_probs(address: str, tmp_path: Path) -> None:
    """Preferences are the model's own log-probs of "m" and "M", read back from the kept answers."""
    model = tiny_model(CONTEXT)
    with serving(LogProbs(model)) as server:
        settings = toy(tmp_path, *writer(address), *judge(server.base_url, "letters"))
        outcome = call(module("alpaca_eval"), *settings)
        assert outcome.code == 0, outcome.err
        asked = len(server.payloads)
        assert {payload["model"] for payload in server.payloads} == {"letters"}
        assert all(payload["logprobs"] and payload["max_tokens"] == 1 for payload in server.payloads)
        again = call(module("alpaca_eval"), *settings)
        assert (again.code, again.out) == (0, outcome.out)
        assert len(server.payloads) == asked
    found = result(outcome.out)
    assert found["judge"] == "letters"
    assert asked == found["counts"]["rows"] == 4
    assert 0 < found["win_rate"] < 100


def test_a_judge_without_log_probs_is_said(address: str, tmp_path: Path) -> None:
    """`transformers serve` passes over the wish for log-probs."""
    model = str(tiny_model(CONTEXT))
    outcome = call(module("alpaca_eval"), *toy(tmp_path, *writer(address), *judge(address, model)))
    assert outcome.code != 0
    assert outcome.out == ""
    assert_says(outcome.err, "log-prob", model)
    assert "Traceback" not in outcome.err


def test_a_model_that_the_server_does_not_serve(address: str, tmp_path: Path) -> None:
    outcome = call(module("arena_hard"), *toy(tmp_path, *writer(address), *judge(address, "another")))
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, "refused model=another with status 400", "requested 'another'")
