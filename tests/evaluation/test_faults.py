"""Endpoints that misbehave: nothing finished is lost, the end is clear, and the same command goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from src.generation.client import TRY_AGAIN_LATER
from tests.entry import Outcome, assert_says, call
from tests.evaluation.endpoints import FAULTS, JUDGE, NO_LOGPROBS, WRITER, Counted, good
from tests.evaluation.toy_runs import JUDGED, asked, module, result, toy
from tests.unit.chat_server import Reply, serving

SLOW = {"silent": 0.4}
"""Seconds that an attempt may take, where the fault is silence."""

CASES = [("mt_bench", fault) for fault in FAULTS] + [("alpaca_eval", "broken"), ("arena_hard", "half a JSON")]


def evaluated(benchmark: str, folder: Path, url: str, timeout: float = 20.0, concurrency: int = 3) -> Outcome:
    return call(module(benchmark), *toy(folder, *asked(url, timeout=timeout, concurrency=concurrency)))


@dataclass(frozen=True)
class Undisturbed:
    """An evaluation in which nothing goes wrong: its result, and the requests to writer and judge that it takes."""

    result: dict[str, Any]
    written: int
    judged: int


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """Of a benchmark, when it is first asked for."""

    @cache
    def of(benchmark: str) -> Undisturbed:
        with serving(script := Counted()) as server:
            outcome = evaluated(benchmark, tmp_path_factory.mktemp(benchmark), server.base_url)
        assert outcome.code == 0, outcome.err
        assert script.repeated() == []
        models = [payload["model"] for payload in server.payloads]
        return Undisturbed(result(outcome.out), models.count(WRITER), models.count(JUDGE))

    return of


def from_then_on(reply: Reply, model: str, number: int) -> Any:
    """A fault that begins with request ``number`` to ``model`` (from 0)."""
    seen: list[None] = []

    def fault(payload: dict[str, Any], _: int) -> Reply | None:
        if payload["model"] != model:
            return None
        seen.append(None)
        return reply if len(seen) > number else None

    return fault


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("benchmark", "fault"), CASES)
def test_a_judge_that_fails_midway(
    benchmark: str, fault: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    whole = undisturbed(benchmark)
    script = Counted(from_then_on(FAULTS[fault], JUDGE, whole.judged // 2))
    with serving(script) as server:
        broken = evaluated(benchmark, tmp_path, server.base_url, SLOW.get(fault, 20.0))
        assert (broken.code, broken.out) == (TRY_AGAIN_LATER, ""), broken.err
        assert_says(broken.err, "gave no usable answer in", "everything finished is kept", "run the same command again")
        assert "Traceback" not in broken.err
        assert not (tmp_path / "records").exists()
        assert sum(script.answered.values()) == whole.written + whole.judged // 2
        script.fault = lambda payload, number: None
        resumed = evaluated(benchmark, tmp_path, server.base_url)
    assert resumed.code == 0, resumed.err
    assert result(resumed.out) == whole.result
    assert script.repeated() == []
    assert len(script.answered) == whole.written + whole.judged


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("benchmark", JUDGED)
def test_a_writer_that_fails_midway(benchmark: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    whole = undisturbed(benchmark)
    script = Counted(from_then_on(FAULTS["broken"], WRITER, whole.written // 2))
    with serving(script) as server:
        broken = evaluated(benchmark, tmp_path, server.base_url)
        assert (broken.code, broken.out) == (TRY_AGAIN_LATER, ""), broken.err
        assert {payload["model"] for payload in server.payloads} == {WRITER}
        script.fault = lambda payload, number: None
        resumed = evaluated(benchmark, tmp_path, server.base_url)
    assert resumed.code == 0, resumed.err
    assert result(resumed.out) == whole.result
    assert script.repeated() == []
    assert len(script.answered) == whole.written + whole.judged


@pytest.mark.usefixtures("impatient")
def test_every_fault_once_is_got_over(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """One fault after another, each on a request of its own: the second attempt is answered."""
    left = [reply for name, reply in FAULTS.items() if name not in ("busy for hours", "silent")]

    def fault(payload: dict[str, Any], number: int) -> Reply | None:
        return left.pop() if left and number % 2 else None

    with serving(script := Counted(fault)) as server:
        outcome = evaluated("mt_bench", tmp_path, server.base_url, concurrency=1)
    assert outcome.code == 0, outcome.err
    assert left == []
    assert result(outcome.out) == undisturbed("mt_bench").result
    assert script.repeated() == []


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_is_gone_midway(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """The process behind the address has ended: the connection is refused, until another listens there."""
    whole = undisturbed("mt_bench")
    first = Counted(from_then_on(Reply(dropped=True), JUDGE, whole.judged // 2))
    with serving(first) as server:
        port = server.http.server_address[1]
        url = server.base_url
        assert evaluated("mt_bench", tmp_path, url).code == TRY_AGAIN_LATER
    refused = evaluated("mt_bench", tmp_path, url)
    assert (refused.code, refused.out) == (TRY_AGAIN_LATER, ""), refused.err
    assert_says(refused.err, "Connect", "run the same command again")
    with serving(second := Counted(), port):
        resumed = evaluated("mt_bench", tmp_path, url)
    assert resumed.code == 0, resumed.err
    assert result(resumed.out) == whole.result
    assert first.answered.keys().isdisjoint(second.answered)
    assert len(first.answered) + len(second.answered) == whole.written + whole.judged


@pytest.mark.usefixtures("impatient")
def test_log_probs_that_are_null_midway(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """An answer without log-probs is no judgment; it is not kept as one either."""
    whole = undisturbed("alpaca_eval")
    script = Counted(from_then_on(NO_LOGPROBS, JUDGE, whole.judged // 2))
    with serving(script) as server:
        broken = evaluated("alpaca_eval", tmp_path, server.base_url, concurrency=1)
        assert broken.code != 0
        assert broken.out == ""
        assert_says(broken.err, "log-prob", JUDGE)
        script.fault = lambda payload, number: None
        resumed = evaluated("alpaca_eval", tmp_path, server.base_url)
    assert resumed.code == 0, resumed.err
    assert result(resumed.out) == whole.result
    assert script.repeated() == []
    assert len(script.answered) == whole.written + whole.judged


def test_a_wrong_key_is_no_matter_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    denied = Reply(status=401, body=b'{"error": {"message": "Incorrect API key provided"}}')

    def script(payload: dict[str, Any], number: int) -> Reply:
        return denied if payload["model"] == JUDGE else good(payload)

    with serving(script) as server:
        outcome = evaluated("alpaca_eval", tmp_path, server.base_url)
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, "status 401", "Incorrect API key", "environment variable OPENAI_API_KEY")
    assert "sk-wrong" not in outcome.err
    assert not any("sk-wrong" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
