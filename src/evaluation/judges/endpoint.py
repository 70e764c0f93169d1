"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from src.evaluation.judges.base import JudgeRequest, has_logprobs
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
        """Whether the cache holds a usable answer, so that asking costs nothing. An answer without the log-probs that
        the request wants is forgotten: the endpoint may have been started anew, and give them now."""
        chat = self.chat(request)
        answer = self.client.cached(chat)
        if answer is not None and request.settings.get("logprobs") is True and not has_logprobs(answer):
            self.client.forget(chat)
            return False
        return answer is not None

    def answer(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Completion]]:
        for request in requests:
            self.answered(request)
        yield from self.client.each([self.chat(request) for request in requests], self.settings.concurrency)

    def close(self) -> None:
        self.client.close()
