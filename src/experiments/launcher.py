"""Running jobs: the interface, and processes on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from src.config import ROOT, STOPPED
from src.experiments.jobs import JOBS, Job, State, read

Done = Callable[[Job], bool]
Say = Callable[[str], None]
POLL = 0.2
"""Seconds between looks at running processes."""


class Launcher(Protocol):
    """Where jobs run."""

    def state(self, job: Job) -> State:
        """How far a job is."""

    def place(self, job: Job) -> Path:
        """The folder of what is known of a job."""

    def tail(self, job: Job, lines: int) -> list[str]:
        """The last lines of what a job said."""

    def run(self, jobs: Sequence[Job], say: Say) -> bool:
        """Bring all ``jobs`` to their end, each after those it needs; whether all of them are done then."""


@dataclass
class Running:
    """A process of ours, the lock that says so to others, and its log."""

    job: Job
    process: subprocess.Popen[bytes]
    lock: int
    log: IO[bytes]
    started: float


@dataclass
class LocalLauncher:
    """Processes on this machine, ``workers`` at a time with ``threads`` threads each.

    ``done`` says from the job's own files whether it is finished. Another process that launches the same jobs is
    respected by a lock per job: who comes second waits for the first one's result. An interrupt reaches the
    processes as SIGTERM, so that trainings write a checkpoint; the same call goes on later.
    """

    folder: Path
    done: Done
    workers: int
    threads: int = 1
    _running: dict[str, Running] = field(default_factory=dict)

    @classmethod
    def below(cls, output_root: str, done: Done, workers: int, threads: int = 1) -> LocalLauncher:
        """With its notes below ``output_root``."""
        return cls(Path(output_root) / JOBS, done, workers, threads)

    def state(self, job: Job) -> State:
        if self.done(job):
            return "done"
        if self.is_locked(job):
            return "running"
        return "failed" if read(self.place(job) / "status.json").get("state") == "failed" else "missing"

    def tail(self, job: Job, lines: int) -> list[str]:
        with suppress(OSError):
            text = (self.place(job) / "log.txt").read_text(encoding="utf-8", errors="replace")
            return [line for line in text.splitlines() if line.strip()][-lines:]
        return []

    def run(self, jobs: Sequence[Job], say: Say) -> bool:
        waiting = {job.id: job for job in jobs if not self.done(job)}
        broken: set[str] = set()
        total, finished = len(waiting), 0
        try:
            while waiting or self._running:
                for job in self.ready(waiting.values(), broken):
                    if len(self._running) >= self.workers:
                        break
                    if self.done(job):  # another process did it meanwhile
                        del waiting[job.id]
                        finished += 1
                    elif self.start(job):
                        del waiting[job.id]
                        say(f"started  {job.command}")
                for running in self.ended():
                    ok = self.close(running)
                    finished += ok
                    if not ok:
                        broken.add(running.job.id)
                    taken = time.monotonic() - running.started
                    say(f"{'done' if ok else 'FAILED'}  [{finished}/{total}] {running.job.id} in {taken:.0f} s")
                    for line in [] if ok else self.tail(running.job, 5):
                        say(f"    {line}")
                blocked = [job for job in waiting.values() if broken & set(job.needs)]
                for job in blocked:
                    broken.add(job.id)
                    del waiting[job.id]
                time.sleep(POLL)
        finally:
            self.stop()
        return not broken

    def ready(self, waiting: Iterable[Job], broken: set[str]) -> list[Job]:
        """Jobs whose needs are met."""
        pending = {job.id for job in waiting} | set(self._running) | broken
        return [job for job in waiting if not pending & set(job.needs)]

    def place(self, job: Job) -> Path:
        """The folder of what is known of a job."""
        return self.folder / job.id

    def is_locked(self, job: Job) -> bool:
        """Whether some process works on the job now."""
        if not self.place(job).exists():
            return False
        if (lock := locked(self.place(job))) is None:
            return True
        os.close(lock)
        return False

    def start(self, job: Job) -> bool:
        """Start a job unless another process works on it; whether it was started."""
        place = self.place(job)
        place.mkdir(parents=True, exist_ok=True)
        if (lock := locked(place)) is None:
            return False
        if self.done(job):
            os.close(lock)
            return True
        log = (place / "log.txt").open("wb")
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", job.module, *job.arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt from the keyboard reaches it through us alone
            pass_fds=(lock,),  # it keeps the lock if we are killed
        )
        note(place, {"state": "running", "command": job.command, "pid": process.pid, "started": time.time()})
        self._running[job.id] = Running(job, process, lock, log, time.monotonic())
        return True

    def ended(self) -> list[Running]:
        """Processes that have ended since the last look."""
        return [running for running in self._running.values() if running.process.poll() is not None]

    def close(self, running: Running) -> bool:
        """Write down how a process ended; whether its job is done."""
        del self._running[running.job.id]
        running.log.close()
        code = running.process.returncode
        ok = code == 0 and self.done(running.job)
        state = "done" if ok else "missing" if code in (STOPPED, -signal.SIGTERM, -signal.SIGINT) else "failed"
        seconds = round(time.monotonic() - running.started, 1)
        note(
            self.place(running.job), {"state": state, "code": code, "seconds": seconds, "command": running.job.command}
        )
        os.close(running.lock)
        return ok

    def stop(self) -> None:
        """Ask the processes still under way to stop, and wait for them."""
        for running in self._running.values():
            running.process.terminate()
        for running in list(self._running.values()):
            running.process.wait()
            self.close(running)


def locked(place: Path) -> int | None:
    """The lock of a job's folder, held as long as a process has this descriptor open; ``None`` when another has it."""
    descriptor = os.open(place / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def note(place: Path, value: Mapping[str, Any]) -> None:
    """Write status.json aside, then rename."""
    aside = place / f".status.{os.getpid()}"
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    aside.replace(place / "status.json")
