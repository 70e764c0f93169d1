"""Killed anywhere and started again: the same numbers, and no judgment that is asked for twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.children import Child, finished
from tests.evaluation.endpoints import JUDGE, WRITER, Counted
from tests.evaluation.toy_runs import JUDGED, asked, module, result, toy
from tests.unit.chat_server import Reply, serving
from tests.unit.generation_tools import tiny_model

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLS = 3
"""In a row, of each benchmark."""


@dataclass(frozen=True)
class Undisturbed:
    """An evaluation that nobody kills."""

    result: dict[str, Any]
    requests: int
    judgments: int
    seconds: float
    records: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """Of a benchmark, measured when it is first asked for."""

    @cache
    def measured(benchmark: str) -> Undisturbed:
        folder = tmp_path_factory.mktemp(benchmark)
        with serving(script := Counted()) as server:
            settings = toy(folder, *asked(server.base_url, concurrency=1))
            finished(module(benchmark), "--help", folder=folder / "warm")
            started = time.monotonic()
            child = finished(module(benchmark), *settings, folder=folder)
            seconds = time.monotonic() - started
            models = [payload["model"] for payload in server.payloads]
        assert script.repeated() == []
        assert {WRITER, JUDGE} == set(models)
        return Undisturbed(result(child.out), len(models), models.count(JUDGE), seconds, records(folder))

    return measured


def records(folder: Path) -> dict[str, Any]:
    """What the record says that cannot depend on when it was made."""
    found = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    assert len(found) <= 1, [path.name for path in (folder / "records").iterdir()]
    return {key: found[0][key] for key in ("metrics", "counts", "notes", "settings")} if found else {}


class Killer:
    """A server's script in which request ``number`` is never answered: whoever asks it is killed."""

    def __init__(self, script: Counted) -> None:
        self.number, self.way = 0, signal.SIGKILL
        self.child: Child | None = None
        self.dead = threading.Event()
        script.fault = self.fault

    def ended(self, child: Child, number: int, way: signal.Signals) -> int:
        """The exit code of a child that ``way`` ends at request ``number``."""
        self.dead.clear()
        self.child, self.number, self.way = child, number, way
        code = child.start().join()
        self.child = None
        self.dead.set()
        return code

    def fault(self, payload: dict[str, Any], number: int) -> Reply | None:
        if self.child is None or number < self.number:
            return None
        self.child.kill(self.way)
        self.dead.wait(60)
        return Reply(dropped=True)


@pytest.mark.parametrize("benchmark", JUDGED)
def test_killed_at_any_request(benchmark: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """One request at a time: whatever came before the one at which it dies has been received, so it is kept."""
    whole = undisturbed(benchmark)
    points = sorted(random.Random(benchmark).sample(range(whole.requests), KILLS))
    script = Counted()
    killer = Killer(script)
    with serving(script) as server:
        settings = toy(tmp_path, *asked(server.base_url, concurrency=1))
        for turn, point in enumerate(points):
            child, way = Child(module(benchmark), settings, tmp_path / f"kill-{turn}"), SIGNALS[turn % len(SIGNALS)]
            # the requests at which earlier ones died have come twice
            assert killer.ended(child, point + 1 + turn, way) == -way, child.err
            assert child.out == ""
            assert sum(script.answered.values()) == point
            assert not (tmp_path / "records").exists()
        last = finished(module(benchmark), *settings, folder=tmp_path / "last")
    assert result(last.out) == whole.result
    assert records(tmp_path) == whole.records
    assert script.repeated() == []
    assert len(script.answered) == whole.requests


@pytest.mark.parametrize("benchmark", JUDGED)
def test_killed_at_any_time(benchmark: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """Several requests at a time: those on their way when it dies may come again, and no others."""
    whole = undisturbed(benchmark)
    rng = random.Random(f"times {benchmark}")
    with serving(script := Counted()) as server:
        settings = toy(tmp_path, *asked(server.base_url, concurrency=2))
        for turn in range(KILLS):
            child = Child(module(benchmark), settings, tmp_path / f"kill-{turn}").start()
            time.sleep(whole.seconds * rng.uniform(0.3, 1.0))
            child.kill(SIGNALS[turn % len(SIGNALS)])
            child.join()
            if child.out:  # it had finished
                assert result(child.out) == whole.result
        last = finished(module(benchmark), *settings, folder=tmp_path / "last")
    assert result(last.out) == whole.result
    assert records(tmp_path) == whole.records
    assert sum(script.answered.values()) - whole.requests <= 2 * KILLS
    assert len(script.answered) == whole.requests


@pytest.mark.parametrize("benchmark", JUDGED)
def test_killed_while_it_scores(benchmark: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """Scoring what is there asks nobody, and leaves a whole record or none."""
    whole = undisturbed(benchmark)
    with serving(script := Counted()) as server:
        settings = toy(tmp_path, *asked(server.base_url))
        finished(module(benchmark), *settings, "stage=generate", folder=tmp_path / "generate")
        finished(module(benchmark), *settings, "stage=judge", folder=tmp_path / "judge")
        assert len(script.answered) == whole.requests
        assert records(tmp_path) == {}
    started = time.monotonic()
    scored = finished(module(benchmark), *settings, "stage=score", folder=tmp_path / "score")
    seconds = time.monotonic() - started
    assert result(scored.out) == whole.result
    rng = random.Random(f"score {benchmark}")
    for turn in range(KILLS):
        shutil.rmtree(tmp_path / "records", ignore_errors=True)
        child = Child(module(benchmark), (*settings, "stage=score"), tmp_path / f"kill-{turn}").start()
        time.sleep(seconds * rng.uniform(0.5, 1.0))
        child.kill(SIGNALS[turn % len(SIGNALS)])
        child.join()
        assert records(tmp_path) in ({}, whole.records)
    again = finished(module(benchmark), *settings, "stage=score", folder=tmp_path / "again")
    assert result(again.out) == whole.result
    assert records(tmp_path) == whole.records


def test_a_local_model_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """Answers that were written before the kill are kept as they are."""
    model = tiny_model(4096)
    settings = (
        f"checkpoint={model}",
        "judge=oracle",
        "decoding.max_new_tokens=40",
        "generator.batch_size=1",
        "generator.device=cpu",
    )
    whole = finished(module("mt_bench"), *toy(tmp_path / "whole", *settings), folder=tmp_path / "a")
    child = Child(module("mt_bench"), toy(tmp_path / "killed", *settings), tmp_path / "b").start()
    deadline = time.monotonic() + 60
    while not (lines := journal_lines(tmp_path / "killed")):
        assert child.process.is_alive(), child.err
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    assert child.join() == -signal.SIGKILL
    kept = journal_lines(tmp_path / "killed")
    assert len(kept) >= len(lines)
    last = finished(module("mt_bench"), *toy(tmp_path / "killed", *settings), folder=tmp_path / "c")
    assert result(last.out) == result(whole.out)
    final = {line for path in (tmp_path / "killed").rglob("*.jsonl") for line in path.read_text().split("\n")}
    assert set(kept) <= final


def journal_lines(folder: Path) -> list[str]:
    """Whole lines of all journals."""
    return [line for path in folder.rglob("partial/*.jsonl") for line in path.read_text().split("\n")[:-1]]
