"""What an evaluation will take, said before anything is paid: calls, tokens, USD, minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.evaluation.benchmark import Benchmark, Item, Outputs
from src.evaluation.judges.base import Judge, JudgeRequest, JudgeSettings
from src.evaluation.judging import minutes, usd_of
from src.generation.shards import whole_lines

CHARACTERS_PER_TOKEN = 4.0
"""About so many in English; estimates alone rest on it."""

ANSWER_CHARACTERS = 2000
"""Taken for an answer that is not written yet (the models of AlpacaEval 2's leaderboard write about so many)."""


@dataclass(frozen=True)
class Estimate:
    """``calls``: still to be asked; ``known``: answered already; ``usd`` is ``None`` where a price is unknown."""

    calls: int
    known: int
    prompt_tokens: int
    tokens: int
    usd: float | None
    seconds: float
    guessed: bool = False

    def lines(self, judge: JudgeSettings) -> list[str]:
        """In words."""
        if not self.calls:
            return [f"judge: nothing to ask, all {self.known} judgments are there"]
        known = f" ({self.known} are there already)" if self.known else ""
        if self.usd is None:
            cost = "at an unknown price (judge.input_price and judge.output_price, USD per million tokens, are not set)"
        else:
            cost = f"about {self.usd:.2f} USD" if judge.paid else "free of charge"
        lines = [
            f"judge: {self.calls} calls{known}, about {thousands(self.prompt_tokens)} tokens asked and "
            f"{thousands(self.tokens)} answered, {cost}, about {minutes(self.seconds)} with "
            f"judge.concurrency={judge.concurrency}"
        ]
        if self.guessed:
            lines.append(f"  (the answers are not written yet: taken as {ANSWER_CHARACTERS} characters each)")
        return lines


def estimate_judging(
    benchmark: Benchmark,
    settings: JudgeSettings,
    judge: Judge | None,
    requests: Sequence[JudgeRequest],
    directory: Path | None,
    *,
    guessed: bool = False,
) -> Estimate:
    """What ``requests`` still take. ``directory``: where judgments are kept, ``None`` while that is not known."""
    done = set() if directory is None else recorded(directory)
    answered = getattr(judge, "answered", None)
    left = [
        request
        for request in requests
        if (request.id, request.hash) not in done and not (answered is not None and answered(request))
    ]
    prompt_tokens = sum(round(characters(request) / CHARACTERS_PER_TOKEN) for request in left)
    tokens = len(left) * benchmark.answer_tokens()
    seconds = len(left) * settings.seconds_per_answer / max(settings.concurrency, 1)
    known = len(requests) - len(left)
    return Estimate(len(left), known, prompt_tokens, tokens, usd_of(settings, prompt_tokens, tokens), seconds, guessed)


def characters(request: JudgeRequest) -> int:
    """Of everything that is asked."""
    return sum(len(message.get("content") or "") for message in request.messages)


def recorded(directory: Path) -> set[tuple[str, str]]:
    """(id, hash) of the requests whose first answer is in a judgments directory, finished or not."""
    found: set[tuple[str, str]] = set()
    for path in [*directory.glob("shards/*.jsonl"), *directory.glob("partial/*.jsonl")]:
        found |= {(one["id"], one["request"]) for one in whole_lines(path)[0] if one.get("round") == 0}
    return found


def guessed_outputs(items: Sequence[Item]) -> Outputs:
    """Answers of a usual length, for an estimate before there are any."""
    answer = ("word " * (ANSWER_CHARACTERS // 5)).strip()
    return {item.id: (answer,) * len(item.turns) for item in items}


def thousands(count: int) -> str:
    """A number of tokens, short."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f} thousand" if count < 1e6 else f"{count / 1e6:.1f} million"
