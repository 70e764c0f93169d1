"""The client of chat endpoints: what is tried again, for how long, what is not, and what is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.generation.client import (
    ChatClient,
    ChatEndpoint,
    ChatRequest,
    Completion,
    EndpointError,
    Retries,
    completion_of,
    retry_after_of,
)
from tests.unit.chat_server import Reply, answer, serving

QUICK = Retries(attempts=4, timeout=2.0, first_wait=0.01, longest_wait=0.05, longest_retry_after=2.0)
ASK = [{"role": "user", "content": "Say x"}]


@pytest.fixture(autouse=True)
def no_proxy_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def client_of(base_url: str, retries: Retries = QUICK, **options: Any) -> ChatClient:
    return ChatClient(ChatEndpoint(base_url, "m"), retries, **options)


def first_then(*first: Reply) -> Callable[[dict[str, Any], int], Reply]:
    """Those replies in turn, then a good answer."""
    return lambda payload, number: first[number - 1] if number <= len(first) else answer("good")


def test_an_answer_and_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " secret\n")
    with serving(first_then(answer("x \u2028 ü", "length", 7))) as server, client_of(server.base_url) as client:
        assert client.complete(ASK, temperature=0.5, seed=3) == Completion("x \u2028 ü", "length", 7)
    assert server.payloads == [{"model": "m", "messages": ASK, "temperature": 0.5, "seed": 3}]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_no_key_no_header_and_text_that_is_no_unicode() -> None:
    with serving(first_then()) as server, client_of(server.base_url) as client:
        assert client.complete([{"role": "user", "content": "\ud800"}]).text == "good"
    assert "Authorization" not in server.headers[0]
    assert server.payloads[0]["messages"][0]["content"] == "\ud800"


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=429),
        Reply(status=500, body=b"oops"),
        Reply(status=503),
        Reply(status=408),
        Reply(body=b"<html>no json</html>"),
        Reply(body=b""),
        Reply(body=b"[1, 2]"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": 3}}]}'),
        Reply(body=b"\xff\xfe\x00"),
        Reply(dropped=True),
        Reply(body=answer("cut").body, headers={"Content-Encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:12]!r}-{reply.dropped}",
)
def test_what_may_pass_is_tried_again_and_no_more_often_than_asked(bad: Reply) -> None:
    with serving(first_then(bad, bad)) as server, client_of(server.base_url) as client:
        assert client.complete(ASK).text == "good"
        assert (client.asked, client.retried) == (3, 2)
    started = time.monotonic()
    with serving(first_then(*[bad] * 9)) as server, client_of(server.base_url) as client:
        with pytest.raises(EndpointError, match=r"gave no usable answer in 4 attempts \(last: ") as caught:
            client.complete(ASK)
        assert len(server.payloads) == 4
    assert caught.value.exit_code == 75
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("status", "remedy"), [(400, "as the endpoint says"), (401, "OPENAI_API_KEY"), (404, "check base_url"), (301, "")]
)
def test_a_refusal_is_not_asked_again(status: int, remedy: str) -> None:
    with serving(first_then(Reply(status=status, body=b'{"error": "no"}'))) as server:
        with (
            client_of(server.base_url) as client,
            pytest.raises(EndpointError, match=f"status {status}.*{remedy}") as caught,
        ):
            client.complete(ASK)
        assert len(server.payloads) == 1
    assert caught.value.exit_code == 2
    assert '{"error": "no"}' in str(caught.value)


@pytest.mark.parametrize("slow", [Reply(delay=1.0), Reply(body=answer("long" * 50).body, drip=0.02)])
def test_a_slow_answer_is_cut_off(slow: Reply) -> None:
    started = time.monotonic()
    quick = Retries(attempts=2, timeout=0.3, first_wait=0.01, longest_wait=0.01)
    with serving(first_then(slow, slow)) as server, client_of(server.base_url, quick) as client:
        with pytest.raises(EndpointError, match=r"2 attempts \(last: no answer within 0\.3 s"):
            client.complete(ASK)
        assert time.monotonic() - started < 2
        assert client.complete(ASK).text == "good"


def test_nobody_listens() -> None:
    with serving(first_then()) as server:
        address = server.base_url
    with client_of(address) as client, pytest.raises(EndpointError, match=r"4 attempts \(last: ConnectError") as caught:
        client.complete(ASK)
    assert caught.value.exit_code == 75


def test_retry_after_is_honoured_by_all_threads() -> None:
    busy = Reply(status=429, headers={"Retry-After": "0.5"})
    with serving(first_then(busy)) as server, client_of(server.base_url) as client:
        assert [text.text for _, text in client.each([ChatRequest(ASK)] * 4, 1)] == ["good"] * 4
        gap = server.times[1] - server.times[0]
    assert 0.5 <= gap < 1.2


def test_a_retry_after_that_is_too_long_ends_it() -> None:
    busy = Reply(status=429, headers={"Retry-After": "3600"})
    with serving(first_then(busy)) as server, client_of(server.base_url) as client:
        with pytest.raises(EndpointError, match=r"in 1 attempt .*asks to wait 3600 s"):
            client.complete(ASK)
        assert len(server.payloads) == 1


def test_retry_after_as_seconds_or_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert retry_after_of({"retry-after": "2.5"}) == 2.5
    assert 20 < (retry_after_of({"retry-after": format_datetime(soon, usegmt=True)}) or 0) <= 30
    assert retry_after_of({"retry-after": "-1"}) == 0.0
    for unreadable in ("", "soon", "inf", "nan"):
        assert retry_after_of({"retry-after": unreadable}) is None


def test_waiting_doubles_with_jitter_up_to_a_limit() -> None:
    retries = Retries(first_wait=1.0, longest_wait=5.0)
    assert [retries.wait(attempt, None, 0.0) for attempt in (1, 2, 3, 4, 9)] == [0.5, 1.0, 2.0, 2.5, 2.5]
    assert retries.wait(3, None, 0.5) == 3.0
    assert retries.wait(1, 7.0, 0.0) == 7.0


def test_each_keeps_to_its_concurrency_and_gives_every_answer_once() -> None:
    def script(payload: dict[str, Any], number: int) -> Reply:
        return Reply(body=answer(payload["messages"][0]["content"]).body, delay=0.03)

    requests = [ChatRequest([{"role": "user", "content": str(number)}]) for number in range(20)]
    with serving(script) as server, client_of(server.base_url) as client:
        given = dict(client.each(requests, concurrency=4))
    assert {index: completion.text for index, completion in given.items()} == {n: str(n) for n in range(20)}
    assert 2 <= server.most_under_way <= 4


def test_each_yields_what_is_under_way_and_begins_nothing_after_a_failure() -> None:
    def script(payload: dict[str, Any], number: int) -> Reply:
        if payload["messages"][0]["content"] == "2":
            return Reply(status=500)
        return Reply(body=answer("good").body, delay=0.3)

    requests = [ChatRequest([{"role": "user", "content": str(number)}]) for number in range(30)]
    given = []
    with serving(script) as server, client_of(server.base_url) as client:
        with pytest.raises(EndpointError, match="4 attempts"):
            given.extend(client.each(requests, concurrency=4))
        asked = {payload["messages"][0]["content"] for payload in server.payloads}
        assert {str(index) for index, _ in given} == asked - {"2"}
        assert len(asked) <= 8
        assert client.complete(ASK).text == "good"  # and the client can be used again


def test_a_failure_does_not_wait_for_others_to_try_again() -> None:
    def script(payload: dict[str, Any], number: int) -> Reply:
        return Reply(status=400, delay=0.1) if payload["messages"][0]["content"] == "0" else Reply(status=500)

    requests = [ChatRequest([{"role": "user", "content": str(number)}]) for number in range(3)]
    patient = Retries(attempts=3, first_wait=20.0, longest_wait=20.0)
    started = time.monotonic()
    with serving(script) as server, client_of(server.base_url, patient) as client:
        with pytest.raises(EndpointError, match="status 400"):
            list(client.each(requests, concurrency=3))
        assert len(server.payloads) <= 5
    assert time.monotonic() - started < 5


def test_each_that_is_left_early_leaves_no_thread() -> None:
    before = threading.active_count()
    with serving(lambda payload, number: answer("x")) as server, client_of(server.base_url) as client:
        for _ in client.each([ChatRequest(ASK)] * 20, concurrency=3):
            break
    assert threading.active_count() <= before + 1
    assert len(server.payloads) <= 8


def test_the_cache_asks_once_and_knows_settings_and_address(tmp_path: Path) -> None:
    with serving(lambda payload, number: answer(f"answer {number}")) as server:
        with client_of(server.base_url, cache=tmp_path) as client:
            assert [client.complete(ASK, seed=seed).text for seed in (1, 1, 2)] == ["answer 1", "answer 1", "answer 2"]
        with client_of(server.base_url, cache=tmp_path) as client:
            assert client.complete(ASK, seed=2).text == "answer 2"
            assert client.complete(ASK).text == "answer 3"
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert sorted(entry["text"] for entry in kept) == ["answer 1", "answer 2", "answer 3"]


@pytest.mark.parametrize("address", ["", "localhost:8000/v1", "ftp://x/v1", "http://", "file:///etc"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        ChatEndpoint(address, "m")


def test_secrets_do_not_belong_into_addresses() -> None:
    for address in ("http://me:word@host/v1", "https://host/v1?key=word"):
        with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
            ChatEndpoint(address, "m")
        assert "word" not in str(caught.value).replace("password", "")


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "käse")
    with pytest.raises(UserError, match="holds no key"):
        client_of("http://127.0.0.1:1/v1")


def test_an_empty_answer_is_an_answer() -> None:
    assert completion_of(b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}') == (
        Completion("", "content_filter", None)
    )
