"""Asking a judge about everything, shard by shard: a killed program repeats no call that was answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from src.data.cache import json_hash
from src.errors import UserError
from src.evaluation.benchmark import Benchmark
from src.evaluation.judges.base import Judge, Judged, JudgeRequest, has_logprobs
from src.evaluation.judges.replay import answer_of, record_of
from src.evaluation.records import JudgeInfo
from src.generation.client import Completion, EndpointError
from src.generation.shards import Shard, ShardedJsonl, read_records

Say = Callable[[str], None]
SECONDS_BETWEEN_LINES = 10.0


class Prices(Protocol):
    """What of a judge's settings the cost so far is counted by."""

    @property
    def input_price(self) -> float | None:
        """USD per million tokens asked; ``None`` where unknown."""

    @property
    def output_price(self) -> float | None:
        """USD per million tokens answered, likewise."""


@dataclass
class Progress:
    """Lines about how far the judging is, one in ten seconds at most, and one when a shard is written."""

    say: Say
    total: int
    prices: Prices | None = None
    started: float = field(default_factory=time.monotonic)
    kept: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    last: float = field(default_factory=time.monotonic)

    def count(self, answer: Completion, *, new: bool) -> None:
        """One more answer; ``new``: it came now."""
        self.prompt_tokens += answer.prompt_tokens or 0
        self.tokens += answer.tokens or 0
        self.answered += new
        self.kept += not new
        if new and time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.line()

    def shard_done(self) -> None:
        """A line for the last shard, and for one that took its time."""
        if self.answered + self.kept >= self.total or time.monotonic() - self.last >= 1.0:
            self.line()

    def line(self) -> None:
        """Say how far it is."""
        self.last = time.monotonic()
        done = min(self.answered + self.kept, self.total)
        rate = self.answered / max(self.last - self.started, 1e-9)
        parts = [f"  judged {done}/{self.total}"]
        if self.answered:
            parts.append(f"{rate:.1f} a second")
            if done < self.total:
                parts.append(f"about {minutes((self.total - done) / rate)} left")
        spent = None if self.prices is None else usd_of(self.prices, self.prompt_tokens, self.tokens)
        if spent:
            parts.append(f"cost so far {spent:.2f} USD")
        self.say(", ".join(parts))


class Case:
    """A request, the answers so far, and what is asked next (``None`` when it is settled)."""

    def __init__(self, request: JudgeRequest) -> None:
        self.request, self.open = request, request
        self.settled = False
        self.asked: list[JudgeRequest] = []
        self.answers: list[Completion] = []

    def take(self, answer: Completion, benchmark: Benchmark) -> None:
        """Add the answer to what was asked, and see whether to ask on."""
        self.asked.append(self.open)
        self.answers.append(answer)
        following = benchmark.ask_again(self.request, tuple(self.answers))
        if following is None:
            self.settled = True
            return
        if following.id != self.request.id:
            raise ValueError(f"asking again about {self.request.id} must keep its id, not {following.id}")
        self.open = following


def identity_of(judge: Mapping[str, Any], requests: Sequence[JudgeRequest]) -> dict[str, Any]:
    """Everything that judgments depend on: the judge, and what it is asked."""
    return {
        "judge": dict(judge),
        "requests": {"content": json_hash([[one.id, one.hash] for one in requests]), "count": len(requests)},
    }


def judge_all(
    judge: Judge,
    benchmark: Benchmark,
    requests: Sequence[JudgeRequest],
    directory: Path,
    shard_size: int,
    say: Say,
    prices: Prices | None = None,
) -> list[Judged]:
    """The judge's answers to every request, from ``directory`` where they are there already.

    Whatever ends it, what was answered is kept, and the next call goes on there. Raises ``UserError``, also when an
    endpoint gave up (exit code 75) and when it gives no log-probs to a request that needs them.
    """
    refuse_equal_ids(requests)
    described = judge.describe()
    identity = identity_of(described, requests)
    store = ShardedJsonl(directory, shard_size)
    progress = Progress(say, len(requests), prices)
    with store.claimed(identity):
        for record in store.read():
            progress.count(answer_of(record), new=False)
        try:
            for shard in store.pending(requests):
                write_shard(judge, described, benchmark, store, shard, progress)
                progress.shard_done()
        except EndpointError as error:
            kept = f"{progress.kept + progress.answered} answers to {len(requests)} requests are kept in {directory}"
            raise EndpointError(f"{error} ({kept})", exit_code=error.exit_code) from error
        store.finish("judge", identity, counts_of(store.read()))
        return judged_of(requests, store.read(), directory)


def write_shard(
    judge: Judge,
    described: Mapping[str, Any],
    benchmark: Benchmark,
    store: ShardedJsonl,
    shard: Shard[JudgeRequest],
    progress: Progress,
) -> None:
    """Ask about one shard's requests, round by round until each is settled, and write it."""
    started = time.monotonic()
    cases = [Case(request) for request in shard.items]
    with store.journal(shard.index) as journal:
        for case in cases:
            resume(case, journal.records, benchmark, progress)
        while waiting := [case for case in cases if not case.settled]:
            for index, answer in judge.answer([case.open for case in waiting]):
                case = waiting[index]
                refuse_without_logprobs(case.open, answer, described, benchmark)
                journal.append(record_of(case.open, len(case.answers), answer, described))
                progress.count(answer, new=True)
                case.take(answer, benchmark)
    records = [
        record_of(asked, number, answer, described)
        for case in cases
        for number, (asked, answer) in enumerate(zip(case.asked, case.answers, strict=True))
    ]
    store.write(shard.index, records, time.monotonic() - started)


def resume(case: Case, records: Sequence[Mapping[str, Any]], benchmark: Benchmark, progress: Progress) -> None:
    """Take the answers of a process that was killed, as far as they are to what would be asked."""
    for record in records:
        if case.settled:
            return
        if (record["id"], record["round"]) != (case.request.id, len(case.answers)):
            continue
        if record["request"] == case.open.hash:
            answer = answer_of(record)
            progress.count(answer, new=False)
            case.take(answer, benchmark)


def judged_of(requests: Sequence[JudgeRequest], records: Iterable[Mapping[str, Any]], directory: Path) -> list[Judged]:
    """Requests with their answers; raises ``UserError`` when the records are not theirs."""
    answers: dict[str, list[Completion]] = {}
    first: dict[str, str] = {}
    for record in records:
        first.setdefault(record["id"], record["request"])
        answers.setdefault(record["id"], []).append(answer_of(record))
    wrong = [request.id for request in requests if first.get(request.id) != request.hash]
    if wrong or len(answers) != len(requests):
        raise UserError(
            f"{directory} does not hold a judgment of every request ({len(wrong)} of {len(requests)} lack theirs, "
            f"first: {(wrong or ['none'])[0]}); a file was changed or lost, so remove the directory and judge again: "
            "answers that the cache holds cost nothing"
        )
    return [Judged(request, tuple(answers[request.id])) for request in requests]


def stored_judgments(directory: Path, requests: Sequence[JudgeRequest]) -> list[Judged]:
    """Those of a finished directory; raises ``UserError`` for one that is absent, unfinished or damaged."""
    return judged_of(requests, read_records(directory), directory)


def refuse_equal_ids(requests: Sequence[JudgeRequest]) -> None:
    """A benchmark's own mistake: two requests under one id."""
    twice = [identity for identity, count in Counter(one.id for one in requests).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids name several requests, first: {twice[0]}")


def wants_logprobs(request: JudgeRequest, benchmark: Benchmark) -> bool:
    """Whether an answer without log-probs is worth nothing: the request asks for them, or the benchmark says so."""
    return request.settings.get("logprobs") is True or bool(getattr(benchmark, "requires_logprobs", False))


def refuse_without_logprobs(
    request: JudgeRequest, answer: Completion, judge: Mapping[str, Any], benchmark: Benchmark
) -> None:
    """Raise ``UserError`` for an answer without the log-probs that are the verdict (a filtered answer has none)."""
    if has_logprobs(answer) or not wants_logprobs(request, benchmark):
        return
    raise UserError(
        f"the judge {judge.get('model')} gave an answer without log-probs (request {request.id}), and {benchmark.name} "
        "reads its verdict from them; take an endpoint and model that give top_logprobs (of vLLM and transformers "
        "serve: a version that does), such as judge=gpt4_1106_preview. Judging stopped here, everything answered "
        "before is kept"
    )


def counts_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifest counts."""
    reasons: Counter[str] = Counter()
    ids: set[str] = set()
    answers = again = tokens = prompt_tokens = 0
    for record in records:
        ids.add(record["id"])
        answers += 1
        again += record["round"] > 0
        tokens += record["tokens"] or 0
        prompt_tokens += record["prompt_tokens"] or 0
        reasons[record["finish_reason"]] += 1
    return {
        "requests": len(ids),
        "answers": answers,
        "asked_again": again,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "finish_reasons": dict(sorted(reasons.items())),
    }


def judge_info(described: Mapping[str, Any], benchmark: Benchmark, judged: Sequence[Judged]) -> JudgeInfo:
    """What the record says of the judge. Its prompts' hash is what ``benchmark.describe()`` has under
    ``judge_prompts``, else of the whole of it."""
    dates = sorted(answer.date for one in judged for answer in one.answers if answer.date)
    rules = benchmark.describe()
    return JudgeInfo(
        name=str(described["name"]),
        model=str(described["model"]),
        prompts=json_hash(rules.get("judge_prompts") or rules),
        first=dates[0] if dates else "",
        last=dates[-1] if dates else "",
        settings={key: value for key, value in described.items() if key not in ("name", "model")},
    )


def usd_of(prices: Prices, prompt_tokens: float, tokens: float) -> float | None:
    """USD for so many tokens asked and answered; ``None`` where a price is unknown."""
    if prices.input_price is None or prices.output_price is None:
        return None
    return (prompt_tokens * prices.input_price + tokens * prices.output_price) / 1e6


def minutes(seconds: float) -> str:
    """A duration in a word or two."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
