"""Who hangs: every rank says where it is, and one that waits too long names those that have not come as far."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from torch._C._distributed_c10d import Store

EXIT_CODE = 1
MISSED = 3.0
"""Times that a rank's watchdog must have failed to speak before the rank counts as gone."""


@dataclass(frozen=True)
class Place:
    """Where a rank is: its last finished step, what it does since, and when it last did something (seconds since 1970).

    ``said``: when its watchdog last spoke; a process that is stopped or dead speaks no more.
    """

    host: str
    step: int
    doing: str
    active: float
    said: float


class Watchdog:
    """A thread of this rank that tells the others through ``store`` where it is.

    It ends the process when nothing has moved here for ``timeout_s`` seconds after the first ``at``: a rank that hangs
    in a collective cannot do so itself.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float) -> None:
        self.store, self.rank, self.size, self.timeout_s = store, rank, size, timeout_s
        self.place: Place | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def at(self, step: int, doing: str) -> None:
        """This rank has finished ``step`` and begins with ``doing``; the first call starts the watch."""
        now = time.time()
        starts = self.place is None
        self.place = Place(socket.gethostname(), step, doing, now, now)
        if starts:
            self.store.set(self.key(self.rank), json.dumps(asdict(self.place)))
            self.thread.start()

    def moved(self) -> None:
        """Something was done since."""
        if self.place is not None:
            self.place = replace(self.place, active=time.time())

    def rest(self) -> None:
        """Watch no more."""
        self.stopped.set()
        if self.place is not None:
            self.thread.join()

    def watch(self) -> None:
        while not self.stopped.wait(self.every_s):
            place = self.place
            assert place is not None
            now = time.time()
            try:
                self.store.set(self.key(self.rank), json.dumps(asdict(replace(place, said=now))))
                if now - place.active > self.timeout_s:
                    self.end(self.places(), now)
            except RuntimeError:
                # the store went with rank 0 or with torchrun's agent, so this rank will not go on either
                if not self.stopped.wait(self.timeout_s):
                    say(f"rank {self.rank}: the place where the ranks meet is gone since step {place.step}")
                    os._exit(EXIT_CODE)

    def end(self, places: Mapping[int, Place], now: float) -> None:
        """Say who is behind, and end this process: its main thread hangs and would not hear."""
        say(f"rank {self.rank}: nothing moved for {self.timeout_s:g} s; {self.behind(places, now)}")
        os._exit(EXIT_CODE)

    @property
    def every_s(self) -> float:
        """Seconds between two words of a watchdog."""
        return min(self.timeout_s / 10, 5.0)

    def behind(self, places: Mapping[int, Place], now: float) -> str:
        """In words, which ranks are not heard of any more, or are not as far as the others."""
        return behind(places, self.size, self.rank, now, MISSED * self.every_s)

    def places(self) -> dict[int, Place]:
        """Where each rank said that it is."""
        found = {}
        for rank in range(self.size):
            if self.store.check([self.key(rank)]):
                found[rank] = Place(**json.loads(self.store.get(self.key(rank))))
        return found

    def key(self, rank: int) -> str:
        """Where a rank says its place."""
        return f"place/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def behind(places: Mapping[int, Place], size: int, me: int, now: float, silence_s: float) -> str:
    """In words, which ranks were not heard of for ``silence_s`` seconds, or are not as far as the others."""
    silent = {rank: place for rank, place in places.items() if rank != me and now - place.said > silence_s}
    furthest = max((place.step for place in places.values()), default=0)
    slow = {rank: place for rank, place in places.items() if place.step < furthest and rank not in silent}
    absent = [rank for rank in range(size) if rank not in places]
    parts = [f"rank {rank} never began" for rank in absent]
    parts += [
        f"rank {rank} on {place.host} is not heard of since {now - place.said:.0f} s (stopped, or dead), last finished "
        f"step {place.step}, then {place.doing}"
        for rank, place in silent.items()
    ]
    parts += [
        f"rank {rank} on {place.host} hangs after step {place.step} ({place.doing}), where others finished {furthest}"
        for rank, place in slow.items()
    ]
    if not parts:
        where = ", ".join(f"rank {rank}: step {place.step}, {place.doing}" for rank, place in sorted(places.items()))
        parts = [f"all ranks hang at the same place ({where}), as when a network link fails"]
    return "; ".join(parts) + ". The same command goes on from the last checkpoint; engine.timeout_s sets the patience"


def say(text: str) -> None:
    """A line on standard error, at once."""
    print(f"error: {text}", file=sys.stderr, flush=True)
