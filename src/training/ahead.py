"""Windows laid out beside the step before the one that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import torch

from src.data.collate import PairBatch


class Loader(Protocol):
    """Batches on the engine's device."""

    def window(self, step: int) -> Sequence[PairBatch]:
        """The micro-batches of optimizer step ``step`` (from 0): a pure function of the step."""
        ...

    def validation(self) -> Sequence[PairBatch]:
        """All batches of the validation split."""
        ...


class Ahead:
    """A context in which one thread lays out up to ``count`` windows of ``loader`` before ``window`` asks for them.

    A window follows from its step alone, so order and content are the loader's, however often a run is resumed. What
    fails in the thread is raised by ``window``, at the step that needs it. The thread makes no window of step
    ``end`` or later. At the end of the context it is done: what it has begun is finished, what waits is dropped.
    """

    def __init__(self, loader: Loader, count: int, end: int, device: torch.device) -> None:
        self.loader, self.count, self.end, self.device = loader, count, end, device
        self.begun: dict[int, Future[Sequence[PairBatch]]] = {}

    def __enter__(self) -> Ahead:
        self.thread = ThreadPoolExecutor(1, "windows-ahead", self.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown(cancel_futures=True)

    def start(self) -> None:
        """A thread begins at GPU 0, whichever one the process has chosen."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def window(self, step: int) -> Sequence[PairBatch]:
        """That of the loader; those of the next steps are begun."""
        for near in range(step, max(step + 1, min(step + 1 + self.count, self.end))):
            if near not in self.begun:
                self.begun[near] = self.thread.submit(self.loader.window, near)
        return self.begun.pop(step).result()

    def validation(self) -> Sequence[PairBatch]:
        """That of the loader."""
        return self.loader.validation()
