"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from src.evaluation.judges.base import JudgeRequest
from src.evaluation.judges.settings import OpenAI
from src.generation.client import ChatClient, ChatEndpoint, ChatRequest, Completion, Retries


class EndpointJudge:
    """``Judge`` over a chat endpoint; an equal request is answered from ``cache``."""

    def __init__(self, settings: OpenAI, cache: Path) -> None:
        self.settings = settings
        endpoint = ChatEndpoint(settings.base_url, settings.model, settings.key_variable)
        self.client = ChatClient(endpoint, Retries(attempts=settings.tries, timeout=settings.timeout), cache)

    def describe(self) -> dict[str, Any]:
        own = self.settings
        return {"name": own.name, "model": own.model, "base_url": own.base_url, "extra": dict(own.extra)}

    def chat(self, request: JudgeRequest) -> ChatRequest:
        """The request as the client takes it."""
        return ChatRequest(request.messages, {**request.settings, **self.settings.extra})

    def answered(self, request: JudgeRequest) -> bool:
        """Whether the cache holds the answer, so that asking costs nothing."""
        return self.client.known(self.chat(request))

    def answer(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Completion]]:
        yield from self.client.each([self.chat(request) for request in requests], self.settings.concurrency)

    def close(self) -> None:
        self.client.close()
