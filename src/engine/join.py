"""Joining the group of all ranks, and leaving it: what is said when one is missing, or lost on the way."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from src.config import STOPPED
from src.engine.ranks import MEETING, Ranks, launched, ranks
from src.engine.watchdog import MISSED, Watchdog
from src.errors import UserError

GRACE_S = 30.0
"""Seconds by which torch's own patience with a collective is longer than the watchdog's, which names the rank."""


WATCH: list[Watchdog] = []
"""The watchdog of the group that this process has joined, if any."""


class MissingRankError(UserError):
    """Not every process of the run has come, or one was lost."""


def join(device: torch.device, timeout_s: float) -> Ranks:
    """Join the group of all ranks (gloo on the CPU, NCCL on CUDA), once a process.

    Raises ``MissingRankError`` that names the ranks that have not come within ``timeout_s`` seconds, and ``UserError``
    when the launcher did not say where to meet.
    """
    me = ranks()
    if WATCH or not launched():
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
        timeout=timedelta(seconds=timeout_s + GRACE_S),
    )
    MEETING.append(store)
    WATCH.append(Watchdog(meeting_place(me, timeout_s, hold=False), me.rank, me.size, timeout_s))
    return me


def watchdog() -> Watchdog:
    """The watchdog of the group that this process has joined."""
    assert WATCH, "the group was not joined"
    return WATCH[0]


def meeting_place(me: Ranks, timeout_s: float, *, hold: bool = True) -> Store:
    """A connection to the key-value store at MASTER_ADDR:MASTER_PORT, which torchrun's agent holds, or else rank 0
    (``hold``)."""
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
            is_master=hold and me.is_main and not held_by_agent,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingRankError(
            f"rank {me.rank} of {me.size} found nobody at {host}:{port} within {timeout_s:g} s (rank 0 meets others "
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
    except (RuntimeError, dist.DistError) as error:
        raise lost(error) from error
    finally:
        for watching in WATCH:
            watching.rest()
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if code == STOPPED and launched() else code


def lost(error: Exception) -> Exception:
    """The failure of a collective in words that name the rank behind it; any other error as it is."""
    watching = WATCH[0] if WATCH else None
    if watching is None or watching.place is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return error
    place, reason = watching.place, str(error).splitlines()[0]
    time.sleep(1.2 * MISSED * watching.every_s)  # a rank that has died is known by its silence
    try:
        told = watching.behind(watching.places(), time.time())
    except RuntimeError:
        told = "rank 0, at which the ranks meet, is gone. The same command goes on from the last checkpoint"
    return MissingRankError(
        f"rank {watching.rank}: the ranks lost each other after step {place.step} ({place.doing}): {reason}; {told}",
        exit_code=1,
    )
