"""Responses by an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from src.data.pairs import Prompt
from src.errors import UserError
from src.generation.base import Decoding, Request, Response
from src.generation.client import ChatClient, ChatRequest

OURS = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "stream")


class EndpointGenerator:
    """``Generator`` over a chat endpoint. Every response is a request of its own, with a seed made from its key."""

    def __init__(
        self, client: ChatClient, decoding: Decoding, *, concurrency: int, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.client, self.decoding, self.concurrency, self.extra = client, decoding, concurrency, dict(extra or {})
        if decoding.top_k is not None:
            raise UserError(
                f"top_k={decoding.top_k} is no setting of the chat protocol; leave it null, or where the endpoint "
                f"knows it write +generator.extra.top_k={decoding.top_k}"
            )
        if taken := sorted(set(self.extra) & set(OURS)):
            raise UserError(
                f"generator.extra.{taken[0]} would take the place of a setting of our own; use n, temperatures, top_p, "
                "max_new_tokens, seeds and generator.model for those"
            )

    def describe(self) -> dict[str, Any]:
        endpoint = self.client.endpoint
        return {"generator": "openai", "base_url": endpoint.base_url, "model": endpoint.model, "extra": self.extra}

    def refusal(self, prompt: Prompt) -> str | None:
        return None

    def respond(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        chats = [ChatRequest(messages_of(request.prompt), self.settings(request)) for request in requests]
        for index, answer in self.client.each(chats, self.concurrency):
            yield index, Response(answer.text, answer.finish_reason, answer.tokens)

    def settings(self, request: Request) -> dict[str, Any]:
        """What is asked for besides the messages; the seed is a number that every endpoint takes (31 bits)."""
        return {
            "temperature": request.temperature,
            "top_p": self.decoding.top_p,
            "max_tokens": self.decoding.max_new_tokens,
            "seed": request.key & 0x7FFFFFFF,
            **self.extra,
        }

    def close(self) -> None:
        self.client.close()


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the protocol wants it."""
    return [{"role": turn.role, "content": turn.content} for turn in prompt]
