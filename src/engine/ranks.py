"""The processes of a run: which one this is, what all of them agree on, and what is said when one is missing."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from src.config import STOPPED
from src.errors import UserError

T = TypeVar("T")
LAUNCHED = ("RANK", "WORLD_SIZE")
"""What a launcher of several processes puts into the environment; torchrun sets more."""


class MissingRankError(UserError):
    """Not every process of the run has come."""


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
        if self.size > 1 and not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.size > 1 and self.is_main:
                self.barrier()

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
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


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


def join(device: torch.device, timeout_s: float) -> Ranks:
    """Join the group of all ranks (gloo on the CPU, NCCL on CUDA), once a process.

    Raises ``MissingRankError`` that names the ranks that have not come within ``timeout_s`` seconds, and ``UserError``
    when the launcher did not say where to meet.
    """
    me = ranks()
    if me.size == 1 or dist.is_initialized():
        return me
    store = meeting_place(me, timeout_s)
    wait_for_all(me, store, timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=me.rank,
        world_size=me.size,
        timeout=timedelta(seconds=timeout_s),
    )
    return me


def meeting_place(me: Ranks, timeout_s: float) -> Store:
    """The key-value store at MASTER_ADDR:MASTER_PORT, which torchrun's agent holds, or else rank 0."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        raise UserError(
            f"this process is rank {me.rank} of {me.size}, but MASTER_ADDR and MASTER_PORT do not say where the ranks "
            "meet; start it with torchrun (python -m src.preflight prints the command), or set both"
        )
    held_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            host,
            int(port),
            is_master=me.is_main and not held_by_agent,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingRankError(
            f"rank {me.rank} of {me.size} found nobody at {host}:{port} within {timeout_s:g} s (rank 0 meets the others "
            f"there): {str(error).splitlines()[0]}; look whether rank 0 runs and MASTER_ADDR can be reached"
        ) from error


def wait_for_all(me: Ranks, store: Store, timeout_s: float) -> None:
    """Return when every rank is there; raises ``MissingRankError`` that names those that are not."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"here/{attempt}/{rank}" for rank in range(me.size)]
    store.set(names[me.rank], socket.gethostname())
    try:
        store.wait(names, timedelta(seconds=timeout_s))
    except (RuntimeError, dist.DistStoreError) as error:
        absent = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
        present = sorted({store.get(name).decode() for name in names if store.check([name])})
        raise MissingRankError(
            f"rank {', '.join(absent) or '?'} of {me.size} has not come within {timeout_s:g} s; here are those on "
            f"{', '.join(present)}. Look at the logs of the other machines, or raise engine.timeout_s"
        ) from error


def together(task: Callable[[], int]) -> int:
    """The exit code of ``task``, which may join the group; the group is left at its end, or processes may abort there.

    A stopped task is no failure where a launcher waits: it would end the other ranks for it. status.json says it.
    """
    try:
        code = task()
        if dist.is_initialized():
            dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if code == STOPPED and launched() else code
