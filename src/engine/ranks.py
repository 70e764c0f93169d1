"""The processes of a run: which one this is, what all of them agree on, and what is said when one is missing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from src.errors import UserError

T = TypeVar("T")
MEETING: list[Store] = []
"""The store of the group that this process has joined, if any."""

TURNS = count()
"""Every rank comes through ``main_first`` in the same order, so each time has a number."""

LAUNCHED = ("RANK", "WORLD_SIZE")
"""What a launcher of several processes puts into the environment; torchrun sets more."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: ``size`` of them, this one is ``rank`` (from 0), on its machine ``local_rank``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and speaks."""
        return self.rank == 0

    def share(self, pairs: int) -> range:
        """Places among ``pairs`` pairs that this rank computes: ⌈pairs / size⌉ a rank, in order, fewer at the end."""
        each = -(-pairs // self.size)
        return range(min(self.rank * each, pairs), min((self.rank + 1) * each, pairs))

    def from_main(self, produce: Callable[[], T]) -> T:
        """What ``produce`` gives on rank 0, the same on every rank; an error of it is raised on every rank."""
        if self.size == 1:
            return produce()
        found: list[Any] = [None]
        if self.is_main:
            found = [outcome(produce)]
        dist.broadcast_object_list(found, src=0)
        value, error = found[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs on rank 0, then on the others at once: they find in caches what it put there."""
        # not a barrier, whose patience ends after engine.timeout_s: preparing data may take longer
        turn = None if self.size == 1 else next(TURNS)
        if turn is not None and not self.is_main:
            meeting().wait([f"main/{turn}"], timedelta(days=3))
        try:
            yield
        finally:
            if turn is not None and self.is_main:
                meeting().set(f"main/{turn}", "done")

    def anywhere(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag), device=communication_device())
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor of one shape."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows [k, ...] of every rank, one after the other: [size · k, ...]; ``k`` is the same everywhere."""
        if self.size == 1:
            return rows
        found = rows.new_empty((self.size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_single(found, rows.contiguous())
        return found

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.size > 1:
            self.anywhere(False)


def outcome(produce: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The value of a call, or the error that it raised, as it can be sent to other processes."""
    try:
        return produce(), None
    except UserError as error:
        return None, UserError(str(error), exit_code=error.exit_code)  # those with more fields do not pickle
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def meeting() -> Store:
    """The key-value store of the group."""
    assert MEETING, "the group was not joined"
    return MEETING[0]


def communication_device() -> torch.device:
    """Where tensors of the process group must be."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def launched() -> bool:
    """Whether a launcher started this process as one of several (or as one of one)."""
    return all(name in os.environ for name in LAUNCHED)


@cache
def ranks() -> Ranks:
    """This process among those of the run; alone when nothing launched it. Joins no group."""
    if not launched():
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
