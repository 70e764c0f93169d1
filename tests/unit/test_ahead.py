"""Windows made ahead of the step: the same ones, in order, by a thread that ends with the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from src.config import config_hash
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.training import run as runs
from src.training.ahead import Ahead
from tests.unit.test_run import configured, weights

CPU = torch.device("cpu")


class Steps:
    """A loader whose window of a step is one pair named by it; ``made``: by which thread, in order."""

    def __init__(self, broken: int | None = None) -> None:
        self.made: list[tuple[int, str]] = []
        self.broken, self.waits_for = broken, dict[int, Callable[[], bool]]()

    def window(self, step: int) -> Sequence[PairBatch]:
        self.made.append((step, threading.current_thread().name))
        deadline = time.monotonic() + 20
        while not self.waits_for.get(step, lambda: True)():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if step == self.broken:
            raise ValueError(f"window {step}")
        return [collate([TokenizedPair(0, str(step), [1], [2], [3], None, None, False)])]

    def validation(self) -> Sequence[PairBatch]:
        return self.window(-1)


def names(window: Sequence[PairBatch]) -> list[str]:
    return [name for batch in window for name in batch.ids]


@pytest.mark.parametrize("count", [1, 3])
def test_windows_are_those_of_the_loader_in_order(count: int) -> None:
    loader = Steps()
    with Ahead(loader, count, 7, CPU) as ahead:
        assert [names(ahead.window(step)) for step in range(2, 7)] == [[str(step)] for step in range(2, 7)]
        assert names(ahead.validation()) == ["-1"]
    made, threads = zip(*loader.made, strict=True)
    assert made == (2, 3, 4, 5, 6, -1)  # none twice, none of a step that will not come
    assert [name.startswith("windows-ahead") for name in threads] == [True] * 5 + [False]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows-ahead")]


def test_the_next_window_is_made_while_a_step_runs() -> None:
    loader = Steps()
    with Ahead(loader, 2, 100, CPU) as ahead:
        ahead.window(0)
        ahead.begun[2].result(20)
        assert [step for step, _ in loader.made] == [0, 1, 2]


def test_what_fails_ahead_is_raised_by_the_step_that_needs_it() -> None:
    with Ahead(Steps(broken=2), 2, 100, CPU) as ahead:
        assert names(ahead.window(0)) == ["0"]
        assert names(ahead.window(1)) == ["1"]
        with pytest.raises(ValueError, match="window 2"):
            ahead.window(2)


def test_what_waits_is_dropped_at_the_end() -> None:
    loader = Steps()
    context = Ahead(loader, 5, 100, CPU)
    loader.waits_for[1] = lambda: 2 in context.begun and context.begun[2].cancelled()
    with context as ahead:
        ahead.window(0)
        while len(loader.made) < 2:  # until it is at work on the next
            time.sleep(0.001)
    assert [step for step, _ in loader.made] == [0, 1]


def test_a_run_does_not_depend_on_it(tmp_path: Path) -> None:
    found, hashes = [], set()
    for count in (0, 2):
        config = configured(tmp_path, "method=dpo", f"engine.windows_ahead={count}", f"run_dir={tmp_path / str(count)}")
        assert runs.train(config) == 0
        hashes.add(config_hash(config))
        found.append((weights(tmp_path / str(count)), (tmp_path / str(count) / "metrics.jsonl").read_bytes()))
    assert len(hashes) == 1
    (without, metrics), (ahead, same) = found
    assert metrics == same
    assert all(torch.equal(tensor, ahead[name]) for name, tensor in without.items())
