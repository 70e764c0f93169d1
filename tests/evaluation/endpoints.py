"""Endpoints on this machine for whole evaluations: what a good one says, how others fail, and who was asked what."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tests.unit.chat_server import Reply, answer

Payload = Mapping[str, Any]
Script = Callable[[dict[str, Any], int], Reply]

WRITER, JUDGE = "a-writer", "a-judge"


def fraction(payload: Payload) -> float:
    """A number in [0, 1) that depends on the whole request and nothing else."""
    return int.from_bytes(hashlib.sha256(name_of(payload).encode()).digest()[:4], "big") / 2**32


def name_of(payload: Payload) -> str:
    """What makes two requests the same."""
    return json.dumps(payload, sort_keys=True)


def chosen(letter: float) -> Reply:
    """The answer of AlpacaEval's judge: one token, with the log-probs of "m" and "M"."""
    from math import log

    alternatives = [{"token": "m", "logprob": log(1 - letter)}, {"token": "M", "logprob": log(letter)}]
    alternatives.sort(key=lambda entry: -float(str(entry["logprob"])))
    token = {**alternatives[0], "top_logprobs": alternatives}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": token["token"]},
        "finish_reason": "length",
        "logprobs": {"content": [token]},
    }
    usage = {"completion_tokens": 1, "prompt_tokens": 500, "total_tokens": 501}
    return Reply(body=json.dumps({"choices": [choice], "usage": usage}).encode())


def good(payload: dict[str, Any], number: int = 0) -> Reply:
    """What a good endpoint answers, writer or judge of any benchmark: always the same to the same request."""
    share = fraction(payload)
    if payload["model"] == WRITER:
        return answer(f"An answer, number {int(share * 1e6)}: {'word ' * int(1 + share * 20)}", tokens=8)
    if payload.get("logprobs"):
        return chosen(0.02 + 0.96 * share)
    text = json.dumps(payload["messages"])
    if "[[A>>B]]" in text:
        verdicts = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
        return answer(f"My final verdict is: [[{verdicts[int(share * len(verdicts))]}]]", tokens=300)
    return answer(f"Fair enough. Rating: [[{1 + int(share * 10)}]]", tokens=200)


NO_LOGPROBS = Reply(
    body=json.dumps(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "m"}, "logprobs": None}]}
    ).encode()
)

FAULTS: dict[str, Reply] = {
    "busy": Reply(status=429, body=b'{"error": {"message": "rate limit"}}'),
    "busy and says how long": Reply(status=429, body=b"slow down", headers={"Retry-After": "0.05"}),
    "busy for hours": Reply(status=429, body=b"quota", headers={"Retry-After": "7200"}),
    "broken": Reply(status=500, body=b"out of memory"),
    "silent": Reply(body=b"{}", delay=2.5),
    "half a body": Reply(body=good({"model": JUDGE, "messages": []}).body[:40], missing=200),
    "half a JSON": Reply(body=good({"model": JUDGE, "messages": []}).body[:40]),
    "another JSON": Reply(body=b'["not", "a", "completion"]'),
    "no choices": Reply(body=b'{"choices": [], "usage": {}}'),
    "hangs up": Reply(dropped=True),
}
"""Ways of an endpoint to give no usable answer, each of which may pass."""


class Counted:
    """A script that remembers what it answered well: ``answered[request]`` is how often.

    ``fault(payload, number)``: the reply in the place of a good one, ``None`` for none.
    """

    def __init__(self, fault: Callable[[dict[str, Any], int], Reply | None] = lambda payload, number: None) -> None:
        self.fault = fault
        self.answered: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, payload: dict[str, Any], number: int) -> Reply:
        if (reply := self.fault(payload, number)) is not None:
            return reply
        with self.lock:
            self.answered[name_of(payload)] += 1
        return good(payload)

    def repeated(self) -> list[str]:
        """Requests that were answered more than once."""
        return [name for name, count in self.answered.items() if count > 1]
