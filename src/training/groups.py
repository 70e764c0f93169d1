"""The pairs of a window that share a direction."""

from __future__ import annotations

from collections.abc import Iterator

from src.data.collate import PairBatch
from src.objective.perturbations import AnchorProbe
from src.training.window import Window


def group_size(anchor: AnchorProbe, window: Window) -> int:
    """How many pairs share a direction."""
    return sum(map(len, window)) if anchor.anchor_pairs == "window" else anchor.anchor_pairs


def grouped(window: Window, size: int) -> Iterator[list[PairBatch]]:
    """The pairs of the window in order, ``size`` at a time (the last group may be smaller), cut along forwards."""
    group: list[PairBatch] = []
    room = size
    for batch in window:
        start = 0
        while start < len(batch):
            stop = min(start + room, len(batch))
            group.append(batch if (start, stop) == (0, len(batch)) else batch[start:stop])
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group
