"""Stored judgments as a judge: each answers the very request that it was an answer to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from src.data.sources.files import located, read_json_lines
from src.errors import UserError
from src.evaluation.judges.base import JudgeRequest
from src.generation.client import Completion

ANSWER = tuple(spec.name for spec in fields(Completion))
SHOWN = 5


def record_of(request: JudgeRequest, number: int, answer: Completion, judge: Mapping[str, Any]) -> dict[str, Any]:
    """One answer of a judge as a line of a file. ``number``: 0 for the first answer to this request's id; ``shown`` in
    the line: the answers it is about, in the order in which the judge saw them."""
    return {
        "id": request.id,
        "round": number,
        "request": request.hash,
        "messages": [dict(message) for message in request.messages],
        "settings": dict(request.settings),
        "shown": list(request.answers),
        **asdict(answer),
        "judge": dict(judge),
    }


def answer_of(record: Mapping[str, Any]) -> Completion:
    """The answer in such a line; raises ``UserError`` for one that lacks a field."""
    try:
        return Completion(**{name: record[name] for name in ANSWER})
    except KeyError as error:
        raise UserError(
            f"field {error} is missing; a stored judgment is a line of an evaluation's judgments directory"
        ) from error


class ReplayJudge:
    """``Judge`` that asks nobody. It goes by the name of the judge whose answers it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: dict[tuple[str, str], Completion] = {}
        self.known: set[str] = set()
        judges: list[dict[str, Any]] = []
        for file, line, record in lines_of(path):
            with located(file, line):
                answer = answer_of(record)
                for name, kind in (("id", str), ("request", str), ("judge", dict)):
                    if not isinstance(record.get(name), kind):
                        raise UserError(f"field '{name}' is no {kind.__name__}, so this is no judgment that was kept")
            self.known.add(record["id"])
            self.stored.setdefault((record["id"], record["request"]), answer)
            if record["judge"] not in judges:
                judges.append(record["judge"])
        if len(judges) != 1:
            names = ", ".join(f"{one.get('name')} {one.get('model')}" for one in judges) or "none"
            raise UserError(
                f"judge.file={path} holds judgments of {len(judges)} judges ({names}), which do not compare; give "
                "those of one"
            )
        self._judge = judges[0]

    def describe(self) -> dict[str, Any]:
        return dict(self._judge)

    def answer(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Completion]]:
        self.refuse_missing(requests)
        for index, request in enumerate(requests):
            yield index, self.stored[request.id, request.hash]

    def refuse_missing(self, requests: Sequence[JudgeRequest]) -> None:
        """Raise ``UserError`` naming the requests that no stored judgment is of."""
        missing = [request for request in requests if (request.id, request.hash) not in self.stored]
        if not missing:
            return
        other = [request.id for request in missing if request.id in self.known]
        absent = [request.id for request in missing if request.id not in self.known]
        reasons = []
        if other:
            reasons.append(
                f"{len(other)} of {len(requests)} requests were judged about something else: another answer, prompt or "
                f"setting ({named(other)})"
            )
        if absent:
            reasons.append(f"{len(absent)} of {len(requests)} were not judged ({named(absent)})")
        raise UserError(
            f"judge.file={self.path} cannot serve: {'; '.join(reasons)}. Score the answers that it was made for "
            "(outputs=FILE, or the same checkpoint and decoding), or ask another judge"
        )

    def close(self) -> None:
        """Nothing is held."""


def lines_of(path: Path) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    """(file, line, record) of a JSONL file, or of the shards in a judgments directory."""
    files: Iterable[Path] = [path]
    if path.is_dir():
        files = sorted(path.glob("shards/*.jsonl"))
        if not files:
            raise UserError(f"judge.file={path} holds no shards/*.jsonl; give the judgments directory of an evaluation")
    for file in files:
        for line, record in read_json_lines(file):
            yield file, line, record


def named(ids: Sequence[str]) -> str:
    """The first few ids."""
    return ", ".join(ids[:SHOWN]) + (f", … {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
