"""The loop over windows: step, validate, keep the best, stop cleanly, resume exactly."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any, Protocol

from src.config import STOPPED
from src.engine.base import Engine
from src.engine.ranks import Ranks
from src.objective.objective import Objective
from src.training.ahead import Ahead, Loader
from src.training.checkpoint import Checkpoints, Progress
from src.training.metrics import MetricsFile, Mirror, summarize
from src.training.step import training_step, validate

ALONE = Ranks()


class Display(Protocol):
    """What the person at the terminal sees, within ``showing``."""

    def showing(self, first_step: int) -> AbstractContextManager[None]: ...

    def step(self, step: int, record: dict[str, Any], speed: dict[str, Any]) -> None: ...

    def validation(self, step: int, record: dict[str, Any], best: bool) -> None: ...


class StopFlag:
    """Turned on by SIGTERM and SIGUSR1, or by one of ``files`` appearing; the loop looks at it between steps.

    Until ``deferring`` is set there is no step whose end is worth waiting for: a signal then ends the process at once;
    one that comes while an object is finalized, which would swallow that, a moment later.
    A file that is there at the start is of an earlier run: it is removed, on rank 0.
    """

    def __init__(self, files: Sequence[Path] = (), ranks: Ranks = ALONE) -> None:
        self.signal: str | None = None
        self.deferring = False
        self.files = files
        self.stale = ranks.from_main(lambda: [path for path in files if removed_at_start(path)])

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was told to stop; then all know."""
        if self.signal is None and ranks.is_main and any(path.exists() for path in self.files):
            self.signal = "STOP file"
        if ranks.anywhere(self.signal is not None):
            self.signal = self.signal or "a signal to another rank"
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Handle the signals within the block, and give them back after it."""
        reported, again = sys.unraisablehook, Timer(0, lambda: None)

        def handle(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number).name
            if not self.deferring:
                raise SystemExit(STOPPED)

        def swallowed(found: sys.UnraisableHookArgs) -> None:
            nonlocal again
            if self.signal is None or not isinstance(found.exc_value, SystemExit):
                reported(found)
                return
            again = Timer(0.1, os.kill, (os.getpid(), signal.Signals[self.signal]))
            again.daemon = True
            again.start()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
        sys.unraisablehook = swallowed
        try:
            yield self
        finally:
            sys.unraisablehook = reported
            again.cancel()  # it would end what comes after the block
            for number, handler in before.items():
                signal.signal(number, handler)


@cache
def removed_at_start(path: Path) -> bool:
    """Whether there was a file to remove, when first asked: one that comes later is meant for this process."""
    with suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


@dataclass(frozen=True)
class Schedule:
    """When things happen, in optimizer steps (0 = only at the end), and which validation metric is the best."""

    total_steps: int
    validate_every: int
    checkpoint_every: int
    best_metric: str
    best_mode: str
    max_grad_norm: float
    steps_per_epoch: float

    def validates(self, step: int) -> bool:
        """Before the first step, at the end, and every ``validate_every`` steps."""
        return step in (0, self.total_steps) or bool(self.validate_every and step % self.validate_every == 0)

    def keeps(self, step: int) -> bool:
        """At the end, and every ``checkpoint_every`` steps."""
        return step == self.total_steps or bool(step and self.checkpoint_every and step % self.checkpoint_every == 0)

    def better(self, value: float | None, best: float | None) -> bool:
        """Whether ``value`` beats the best so far; the earlier one wins a tie."""
        if value is None or best is None:
            return value is not None
        return value > best if self.best_mode == "max" else value < best


@dataclass(frozen=True)
class Loop:
    """The fixed parts of a run; ``run`` carries the changing ones through as ``Progress``."""

    engine: Engine
    objective: Objective
    loader: Loader
    schedule: Schedule
    checkpoints: Checkpoints
    metrics: MetricsFile
    timings: MetricsFile
    mirror: Mirror
    display: Display
    noisy: bool
    windows_ahead: int

    def start(self) -> Progress:
        """Progress of the last checkpoint, loaded, or that of a fresh run; later metrics are forgotten."""
        progress = self.checkpoints.resume(self.engine)
        progress = progress or Progress(objective_state=self.objective.initial_state())
        self.metrics.cut(progress.metrics_length)
        return progress

    def run(self, progress: Progress, stop: StopFlag) -> Progress:
        """Go on until the last step, or until ``stop``: then a checkpoint is written and the progress returned."""
        if not self.windows_ahead:
            return self.to_the_end(progress, stop)
        with Ahead(self.loader, self.windows_ahead, self.schedule.total_steps, self.engine.device) as loader:
            return replace(self, loader=loader).to_the_end(progress, stop)

    def to_the_end(self, progress: Progress, stop: StopFlag) -> Progress:
        """The same, with windows as ``loader`` gives them."""
        while True:
            improved = False
            due = self.schedule.validates(progress.step) and progress.validated_step < progress.step
            self.engine.at(progress.step, "validation" if due else "a step")
            stopping = stop.agreed(self.engine.ranks)
            if due and not stopping:
                progress, improved = self.validated(progress)
                stopping = stop.agreed(self.engine.ranks)
            if stopping or improved or self.schedule.keeps(progress.step):
                self.engine.at(progress.step, "a checkpoint")
                progress = replace(progress, metrics_length=self.metrics.length)
                self.checkpoints.save(self.engine, progress, best=improved)
            ending = stopping or progress.step == self.schedule.total_steps
            self.checkpoints.settle(self.engine, wait=ending)
            if ending:
                return progress
            self.engine.at(progress.step, "a step")
            progress = self.stepped(progress)

    def stepped(self, progress: Progress) -> Progress:
        """One optimizer step, logged."""
        began = time.perf_counter()
        window, rate = self.loader.window(progress.step), self.engine.learning_rate()
        output = training_step(
            self.engine, self.objective, progress.objective_state, window, self.schedule.max_grad_norm
        )
        step = progress.step + 1
        record = {"step": step, "split": "train", "epoch": step / self.schedule.steps_per_epoch, "lr": rate}
        record |= summarize(output, self.noisy)
        seconds = time.perf_counter() - began
        speed = {
            "step": step,
            "seconds": seconds,
            "pairs_per_second": sum(map(len, window)) / seconds,
            "tokens_per_second": sum(batch.tokens for batch in window) / seconds,
        }
        self.log(record, step)
        self.timings.write(speed)
        self.mirror.log(speed, step)
        self.display.step(step, record, speed)
        return replace(progress, step=step, objective_state=output.state)

    def validated(self, progress: Progress) -> tuple[Progress, bool]:
        """One validation, logged, and whether it is the best so far (the untrained start never is)."""
        output = validate(self.engine, self.objective, progress.objective_state, self.loader.validation())
        numbers = summarize(output, noisy=False)
        record = {"step": progress.step, "split": "validation", **numbers}
        value = numbers[self.schedule.best_metric]
        improved = progress.step > 0 and self.schedule.better(value, progress.best_value)
        self.log(record, progress.step)
        self.mirror.pairs(progress.step, output.pair_metrics)
        self.metrics.keep_pairs(progress.step, output.pair_metrics)
        self.display.validation(progress.step, record, improved)
        progress = replace(progress, validated_step=progress.step)
        return (replace(progress, best_step=progress.step, best_value=value) if improved else progress), improved

    def log(self, record: dict[str, Any], step: int) -> None:
        """To the file first, then to its mirror."""
        self.metrics.write(record)
        self.mirror.log(record, step)
