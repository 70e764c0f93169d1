"""Endpoints on this machine are reached directly, and waited for briefly."""

from __future__ import annotations

import pytest

from src.generation.client import Retries


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fiftieth of the usual pause before an attempt is repeated; what the endpoint asked for is still waited for."""
    wait = Retries.wait

    def briefly(self: Retries, attempt: int, retry_after: float | None, jitter: float) -> float:
        return wait(self, attempt, retry_after, jitter) / (50 if retry_after is None else 1)

    monkeypatch.setattr(Retries, "wait", briefly)
