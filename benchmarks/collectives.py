"""What a process sends and waits for: collectives counted call by call, and where the time of a block went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {"allgather": "all-gather", "reduce_scatter": "reduce-scatter", "allreduce": "all-reduce"}
"""Operations of torch's c10d whose names begin so, in words; others keep their names."""


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls and bytes of every collective within the block, those of DDP's and DeepSpeed's own code included.

    ``calls`` and ``whole`` by kind; ``whole`` is the size of what is gathered, summed or scattered, over all ranks.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = defaultdict(int)
        self.whole: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it is made of plain tensors, which come here again
        if func.namespace == "c10d":
            name = func.__name__.partition(".")[0].strip("_")
            kind = next((word for start, word in KINDS.items() if name.startswith(start)), name)
            self.calls[kind] += 1
            self.whole[kind] += max((bytes_of(argument) for argument in args[:2]), default=0)
        return func(*args, **(kwargs or {}))


def bytes_of(argument: Any) -> int:
    """Bytes of all tensors of an argument."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(argument) if isinstance(leaf, Tensor))


def sent(kind: str, whole: float, world: int) -> float:
    """Bytes that a rank sends for a collective of ``whole`` bytes with rings: (W-1)/W of them, twice for an all-reduce
    (a reduce-scatter and an all-gather: Patarasu and Yuan 2009); of a broadcast or reduce the average over ranks."""
    return (2 if kind == "all-reduce" else 1) * whole * (world - 1) / world


@dataclass(frozen=True)
class Moment:
    """Clocks of this process, in seconds, and ``written``: bytes that it has written, to sockets and files.

    ``cpu``: of all threads; ``main``: of this one; ``queued``: how long this thread waited for a core.
    """

    wall: float
    cpu: float
    main: float
    queued: float
    written: int

    def since(self, before: Moment) -> dict[str, float]:
        """Where the time since ``before`` went. ``waited``: this thread slept, which in a step is for other ranks."""
        wall, main, queued = self.wall - before.wall, self.main - before.main, self.queued - before.queued
        cpu = self.cpu - before.cpu
        return {
            "wall": wall,
            "cpu": cpu,
            "beside": max(cpu - main, 0.0),
            "queued": queued,
            "waited": max(wall - main - queued, 0.0),
            "written": float(self.written - before.written),
        }


def moment() -> Moment:
    """Now (Linux: /proc/PID/schedstat counts nanoseconds on a core and in the queue for one)."""
    on_core, queued, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return Moment(time.perf_counter(), time.process_time(), on_core / 1e9, queued / 1e9, int(fields["wchar"]))


def in_flight(profile: torch.profiler.profile) -> float:
    """Seconds in which at least one of this rank's collectives was under way."""
    recorded = profile.profiler.kineto_results if profile.profiler else None
    assert recorded is not None
    events = recorded.events()
    spans = [(event.start_ns(), event.end_ns()) for event in events if event.name().startswith("gloo:")]
    return covered(spans) / 1e9


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, until = 0, 0
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total
