"""A client of OpenAI-compatible chat endpoints: bounded retries, a disk cache, and a clear end.

    client = ChatClient(ChatEndpoint("http://127.0.0.1:8000/v1", "some-model"))
    answer = client.complete([{"role": "user", "content": "Hello"}], temperature=0.0, max_tokens=64)

Many at once, each as it is finished: ``client.each(requests, concurrency=8)``.
What is tried again: no connection, time-outs, 408, 409, 425, 429, 5xx and answers that are no chat completion. What
is not: every other refusal (a wrong key, an unknown model, a malformed request).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from src.errors import UserError
from src.generation.shards import read_json, write_durably

TRY_AGAIN_LATER = 75
"""Exit code of a program that kept what it has and can go on: EX_TEMPFAIL."""

TRANSIENT = (408, 409, 425, 429)
SHOWN = 200
"""Characters of an endpoint's answer that a message quotes."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ChatEndpoint:
    """Where requests go. The key is read from the environment variable ``key_variable`` and stands nowhere else.

    Raises ``UserError`` for an address that is none, or that holds a password.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"base_url={self.base_url} is no address; give the part before /chat/completions, such as "
                "http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"base_url of {parts.hostname} holds a user, password or query, which would be written into files; "
                f"put the key into the environment variable {self.key_variable} and give the plain address"
            )

    @property
    def url(self) -> str:
        """Where chat completions are asked for."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def headers(self) -> dict[str, str]:
        """With the key when there is one (endpoints of one's own often want none)."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"the environment variable {self.key_variable} holds no key: it has characters no key has")
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Retries:
    """When to give up. Waiting doubles from ``first_wait`` to ``longest_wait`` seconds, times 0.5 to 1 at random.

    ``attempts``: of one request, the first included. ``timeout``: seconds that one attempt may take as a whole. A
    Retry-After of the endpoint is waited for instead, unless it is longer than ``longest_retry_after`` seconds: then
    there is no further attempt.
    """

    attempts: int = 6
    timeout: float = 120.0
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_retry_after: float = 120.0

    def wait(self, attempt: int, retry_after: float | None, jitter: float) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1); ``jitter`` in [0, 1)."""
        backoff = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * jitter)
        # a little after the time asked for, and not all at once
        return backoff if retry_after is None else retry_after + self.first_wait * 0.5 * jitter


@dataclass(frozen=True)
class Completion:
    """An answer. ``finish_reason`` as the endpoint says it (stop, length, …).

    ``tokens`` and ``prompt_tokens``: of the answer and of what was asked, if told. ``logprobs``: for each token of the
    answer ``{"token", "logprob", "top_logprobs": [{"token", "logprob"}, …]}``, natural logarithms as the endpoint
    gives them, ``None`` where it gives none. ``date``: when it was received, UTC, ISO 8601 in seconds.
    """

    text: str
    finish_reason: str
    tokens: int | None = None
    prompt_tokens: int | None = None
    logprobs: list[dict[str, Any]] | None = None
    date: str = field(default="", compare=False)


@dataclass(frozen=True)
class ChatRequest:
    """Messages and settings (temperature, max_tokens, seed, …, as the endpoint calls them)."""

    messages: Messages
    settings: Mapping[str, Any] = field(default_factory=dict)


class EndpointError(UserError):
    """The endpoint gave no usable answer, and asking again will not help now."""


class TransientError(Exception):
    """One attempt failed in a way that may pass; ``retry_after`` seconds if the endpoint said so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ChatClient:
    """Asks one endpoint; may be used by several threads. With ``cache`` an equal request is asked only once.

    ``asked`` and ``retried`` count the attempts, and those of them that were repetitions.
    """

    def __init__(self, endpoint: ChatEndpoint, retries: Retries | None = None, cache: str | Path | None = None) -> None:
        self.endpoint, self.retries = endpoint, retries or Retries()
        self.cache = None if cache is None else Path(cache)
        self.asked = self.retried = 0
        headers = {"Content-Type": "application/json", **endpoint.headers()}
        self._http = httpx.Client(headers=headers, timeout=self.retries.timeout)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._not_before = 0.0
        self._random = random.Random()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def complete(self, messages: Messages, **settings: Any) -> Completion:
        """The answer to ``messages``; raises ``EndpointError`` when there is none after all attempts."""
        payload = self._payload(messages, settings)
        place = self._place(payload)
        if place is not None and place.exists():
            return Completion(**read_json(place))
        answer = self._with_retries(payload)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_durably(place, json.dumps(asdict(answer)).encode())
        return answer

    def cached(self, request: ChatRequest) -> Completion | None:
        """The answer to ``request`` that the cache holds."""
        place = self._place(self._payload(request.messages, request.settings))
        return Completion(**read_json(place)) if place is not None and place.exists() else None

    def forget(self, request: ChatRequest) -> None:
        """Let ``request`` be asked again: what the cache holds turned out to be of no use."""
        place = self._place(self._payload(request.messages, request.settings))
        if place is not None:
            place.unlink(missing_ok=True)

    def each(self, requests: Sequence[ChatRequest], concurrency: int) -> Iterator[tuple[int, Completion]]:
        """(index, answer) of every request as it comes, at most ``concurrency`` under way.

        When one ends without an answer, no other is begun, those under way are still waited for and yielded, and
        then its ``EndpointError`` is raised: keep what was yielded.
        """
        failure: EndpointError | None = None
        waiting = iter(enumerate(requests))
        running: dict[Future[Completion], int] = {}
        with self._pool(concurrency) as pool:
            while True:
                while failure is None and len(running) < concurrency and (job := next(waiting, None)):
                    index, request = job
                    running[pool.submit(self.complete, request.messages, **request.settings)] = index
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        answer = future.result()
                    except EndpointError as error:
                        failure = failure or error
                        self._stop.set()  # the others under way finish their attempt, and try no further
                    else:
                        yield index, answer
        if failure is not None:
            raise failure

    @contextmanager
    def _pool(self, concurrency: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that stop waiting and trying again when the block is left, however it is left."""
        try:
            with ThreadPoolExecutor(max_workers=concurrency) as pool:
                try:
                    yield pool
                finally:
                    self._stop.set()
        finally:
            self._stop.clear()

    def _payload(self, messages: Messages, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request."""
        return {"model": self.endpoint.model, "messages": [dict(message) for message in messages], **settings}

    def _place(self, payload: Mapping[str, Any]) -> Path | None:
        """Where the answer to ``payload`` is kept."""
        if self.cache is None:
            return None
        text = json.dumps([self.endpoint.url, payload], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    def _with_retries(self, payload: Mapping[str, Any]) -> Completion:
        for attempt in range(1, self.retries.attempts + 1):
            self._wait_for_turn()
            with self._lock:
                self.asked += 1
                self.retried += attempt > 1
            try:
                return self._attempt(payload)
            except TransientError as error:
                last = error
            late = (last.retry_after or 0.0) > self.retries.longest_retry_after
            if late or attempt == self.retries.attempts or self._stop.is_set():
                raise self._given_up(attempt, last) from last
            pause = self.retries.wait(attempt, last.retry_after, self._random.random())
            if last.retry_after is not None:
                with self._lock:  # a busy endpoint is left alone by the other threads too
                    self._not_before = max(self._not_before, time.monotonic() + last.retry_after)
            self._stop.wait(pause)
        raise AssertionError("the loop above returns or raises")

    def _wait_for_turn(self) -> None:
        with self._lock:
            pause = self._not_before - time.monotonic()
        if pause > 0:
            self._stop.wait(pause)

    def _attempt(self, payload: Mapping[str, Any]) -> Completion:
        """One attempt; raises ``TransientError`` or ``EndpointError``."""
        try:
            status, headers, body = self._post(payload)
        except httpx.TimeoutException as error:
            raise TransientError(f"no answer within {self.retries.timeout:g} s") from error
        except httpx.InvalidURL as error:
            raise EndpointError(f"base_url={self.endpoint.base_url} is no address: {error}") from error
        except httpx.HTTPError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error
        if status in TRANSIENT or status >= 500:
            raise TransientError(f"status {status}: {quoted(body)}", retry_after_of(headers))
        if status != 200:
            raise EndpointError(self._refused(status, body))
        return completion_of(body)

    def _post(self, payload: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body. A body that trickles in is cut off at the time-out, which httpx has per read."""
        end = time.monotonic() + self.retries.timeout
        chunks = []
        content = json.dumps(payload).encode("ascii")  # escapes what is no valid Unicode
        with self._http.stream("POST", self.endpoint.url, content=content) as response:
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer came too slowly")
        return response.status_code, response.headers, b"".join(chunks)

    def _refused(self, status: int, body: bytes) -> str:
        remedies = {
            401: f"put a valid key into the environment variable {self.endpoint.key_variable}",
            403: f"put a key with access into the environment variable {self.endpoint.key_variable}",
            404: "check base_url (the part before /chat/completions) and the model's name",
        }
        remedy = remedies.get(status, "change the request as the endpoint says")
        return f"{self.endpoint.url} refused model={self.endpoint.model} with status {status}: {quoted(body)}; {remedy}"

    def _given_up(self, attempt: int, error: TransientError) -> EndpointError:
        late = error.retry_after if (error.retry_after or 0.0) > self.retries.longest_retry_after else None
        waited = f", and asks to wait {late:g} s" if late is not None else ""
        noun = "attempt" if attempt == 1 else "attempts"
        return EndpointError(
            f"{self.endpoint.url} gave no usable answer in {attempt} {noun} (last: {error}{waited}); "
            "everything finished is kept, run the same command again once it answers",
            exit_code=TRY_AGAIN_LATER,
        )


def completion_of(body: bytes) -> Completion:
    """The completion in an answer of status 200; raises ``TransientError`` for anything else."""
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason") or "stop"
        text = message.get("content") or ""  # null where a filter left nothing
        usage = value.get("usage") or {}
        counted = [usage.get(name) for name in ("completion_tokens", "prompt_tokens")]
        logprobs = logprobs_of(choice)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise TransientError(f"an answer that is no chat completion: {quoted(body)}") from error
    if not isinstance(text, str):
        raise TransientError(f"an answer whose content is no text: {quoted(body)}")
    tokens, prompt_tokens = (count if isinstance(count, int) else None for count in counted)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Completion(text, str(reason), tokens, prompt_tokens, logprobs, now)


def logprobs_of(choice: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The log-probs of a choice, each token's name and number and those of its alternatives; ``None`` without any.

    Raises one of the errors of reading what is not there for a list that has another shape.
    """
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    return [
        {**token_of(entry), "top_logprobs": [token_of(other) for other in entry.get("top_logprobs") or []]}
        for entry in content
    ]


def token_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A token and its log-prob; minus infinity, which files cannot hold, as the -9999 that some endpoints write."""
    logprob = float(entry["logprob"])
    if math.isnan(logprob):
        raise ValueError("a log-prob that is no number")
    return {"token": str(entry["token"]), "logprob": max(logprob, -9999.0)}


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; ``None`` without a readable one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None


def quoted(body: bytes) -> str:
    """The beginning of an answer, on one line."""
    text = " ".join(body[: 4 * SHOWN].decode("utf-8", "replace").split())
    return text[:SHOWN] + ("…" if len(text) > SHOWN else "") if text else "an empty answer"
