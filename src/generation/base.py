"""What every generator takes and gives: requests with a random stream of their own, and responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from src.data.pairs import Prompt
from src.data.splits import digest
from src.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn.

    ``n`` responses a prompt; response i (from 0) is drawn at ``temperatures[i]`` with ``seeds[i]``, both taken from
    the start again when they end. ``temperature`` 0 is greedy. ``top_p``: only the likeliest tokens that together have
    at least this probability (Holtzman et al. 2020); ``top_k``: only so many; 1.0 and ``None`` leave all. Both come
    after the temperature, ``top_k`` first. A response ends with a stop token or after ``max_new_tokens``, or where the
    model's context ends. Raises ``UserError`` for values that cannot work.
    """

    n: int = 5
    temperatures: tuple[float, ...] = (0.8,)
    seeds: tuple[int, ...] = (13, 21, 42, 79, 100)
    top_p: float = 0.95
    top_k: int | None = None
    max_new_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("temperatures", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"{name}=[] is empty; give at least one")
            if len(values) > self.n:
                raise UserError(
                    f"{name}={list(values)} are {len(values)}, more than the n={self.n} responses that could use them; "
                    f"give n={len(values)}, or fewer {name}"
                )
        if not all(0 <= temperature < float("inf") for temperature in self.temperatures):
            raise UserError(f"temperatures={list(self.temperatures)} must be from 0 (greedy) on")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1 (1 leaves every token)")
        if sum(self.temperature(sample) == 0 for sample in range(self.n)) > 1:
            raise UserError(
                f"n={self.n} responses at temperatures={list(self.temperatures)} would be the same greedy response "
                "several times; give n=1, or temperatures above 0"
            )

    def temperature(self, sample: int) -> float:
        """That of response ``sample``."""
        return float(self.temperatures[sample % len(self.temperatures)])

    def seed(self, sample: int) -> int:
        """That of response ``sample``."""
        return int(self.seeds[sample % len(self.seeds)])

    def describe(self) -> dict[str, Any]:
        """Plain data, for manifests."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """One response to be written."""

    prompt_id: str
    prompt: Prompt
    sample: int
    seed: int
    temperature: float

    @property
    def key(self) -> int:
        """What the response's random stream depends on: seed, prompt id and sample alone; 64 bits, signed."""
        name = f"generation:{self.sample}:{self.prompt_id}"
        return int.from_bytes(digest(self.seed, name)[:8], "big", signed=True)


@dataclass(frozen=True)
class Response:
    """What was written. ``finish_reason``: stop, length, or what an endpoint says; ``tokens``: with the stop token."""

    text: str
    finish_reason: str
    tokens: int | None


class Generator(Protocol):
    """A model that responds. May be used for any number of ``respond`` calls."""

    def describe(self) -> dict[str, Any]:
        """Everything of the generator that its responses depend on, as plain data: a part of the manifest."""

    def refusal(self, prompt: Prompt) -> str | None:
        """Why this prompt can have no response, or ``None``."""

    def respond(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        """(index, response) of every request, each as soon as it is finished, in any order."""

    def close(self) -> None:
        """Give back what the generator holds (weights, connections)."""


def requests_of(prompt_id: str, prompt: Prompt, decoding: Decoding) -> list[Request]:
    """The ``n`` requests of one prompt."""
    return [
        Request(prompt_id, prompt, sample, decoding.seed(sample), decoding.temperature(sample))
        for sample in range(decoding.n)
    ]
