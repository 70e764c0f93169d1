"""Running jobs: the interface that every launcher has, and the one for processes on this machine.

A launcher is chosen by ``launcher=NAME`` (conf/launcher/NAME.yaml). Its ``_target_`` is a frozen dataclass of settings
with ``at_a_time`` (jobs that run side by side) and ``open(folder, done)``, which returns a ``Launcher``. ``folder`` is
where it keeps what it knows of each job, ``done`` says from the job's own files whether it has its result. Nothing else
is asked of one: the entry point plans, looks ahead and prints the table, and jobs are commands that can be run by hand.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from src.config import ROOT, STOPPED
from src.experiments.jobs import Job, State, read

Done = Callable[[Job], bool]
POLL = 0.2
"""Seconds between looks at running processes."""


class Watch(Protocol):
    """Who is told how a launcher gets on, and who tells it to stop."""

    @property
    def stopping(self) -> bool:
        """Whether jobs are to be stopped now; the launcher then asks each to write what it has, and returns."""

    def say(self, text: str) -> None:
        """Something happened: a line for people."""

    def look(self) -> None:
        """Called a few times a second while jobs run."""


class Launcher(Protocol):
    """Where jobs run."""

    def state(self, job: Job) -> State:
        """How far a job is, also where another process runs it."""

    def note(self, job: Job) -> Mapping[str, Any]:
        """What is known of a job's last start: ``started`` (seconds since 1970), ``seconds`` it took, ``code``, …;
        {} before the first."""

    def tail(self, job: Job, lines: int) -> list[str]:
        """The last lines of what a job said."""

    def run(self, jobs: Sequence[Job], watch: Watch) -> bool:
        """Bring ``jobs`` to their end, each after those it needs; whether all of them are done then.

        One that fails holds up those that need it alone. Another process that runs the same jobs is respected: no job
        runs twice at a time, and what one process finished or saw failing is not run again by the other.
        """

    def submit(self, jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
        """Have ``jobs`` run without us, then the table rendered; returns at once with what is to be said of it.

        ``command``: arguments of src.reproduce for the table. Raises ``UserError``.
        """


@dataclass(frozen=True)
class Local:
    """Settings of processes on this machine. ``workers``: at a time, ``None`` for one a core; ``threads``: of each."""

    workers: int | None = None
    threads: int = 1

    @property
    def at_a_time(self) -> int:
        """Processes at a time."""
        return self.workers or max(1, len(os.sched_getaffinity(0)) // self.threads)

    def open(self, folder: Path, done: Done) -> LocalLauncher:
        """The launcher."""
        return LocalLauncher(folder, done, self.at_a_time, self.threads)


@dataclass
class Running:
    """A process of ours, the locks that say so to others (of the job and of its place among the workers), its log."""

    job: Job
    process: subprocess.Popen[bytes]
    locks: tuple[int, int]
    log: IO[bytes]
    started: float


@dataclass
class LocalLauncher:
    """Processes on this machine, ``workers`` at a time with ``threads`` threads each.

    Each job and each worker's place has a lock, which the process inherits: it is held until the process ends, even
    if we are killed. So several launchers over one folder run every job once, and share the places of one machine.
    """

    folder: Path
    done: Done
    workers: int
    threads: int = 1
    _running: dict[str, Running] = field(default_factory=dict)

    def state(self, job: Job) -> State:
        if self.done(job):
            return "done"
        if is_locked(self.place(job)):
            return "running"
        return "failed" if self.note(job).get("state") == "failed" else "missing"

    def note(self, job: Job) -> Mapping[str, Any]:
        return read(self.place(job) / "status.json")

    def tail(self, job: Job, lines: int) -> list[str]:
        with suppress(OSError):
            text = (self.place(job) / "log.txt").read_text(encoding="utf-8", errors="replace")
            return [line for line in text.splitlines() if line.strip()][-lines:]
        return []

    def run(self, jobs: Sequence[Job], watch: Watch) -> bool:
        began = time.time()
        waiting = {job.id: job for job in jobs}
        broken: set[str] = set()
        total = len(waiting)
        try:
            while (waiting or self._running) and not watch.stopping:
                for job in ready(waiting, {*self._running, *broken}):
                    outcome = self.begin(job, began, watch)
                    if outcome == "full":
                        break
                    if outcome != "later":
                        del waiting[job.id]
                    if outcome == "failed":
                        broken.add(job.id)
                for running in self.ended():
                    state = self.close(running)
                    if state != "done":
                        broken.add(running.job.id)
                    left = len(waiting) + len(self._running)
                    self.tell(watch, running, state, f"[{total - left}/{total}]")
                while blocked := [job.id for job in waiting.values() if broken & set(job.needs)]:
                    broken.update(blocked)
                    for name in blocked:
                        del waiting[name]
                watch.look()
                time.sleep(POLL)
        finally:
            if self._running:
                watch.say(f"stopping {len(self._running)} jobs; trainings write a checkpoint first")
            self.stop()
        return not broken and not waiting

    def submit(self, jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"reproduce-{time.strftime('%Y%m%d-%H%M%S')}.log"
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "src.reproduce", *command],
                env=os.environ | {"PYTHONPATH": search},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return [f"process {process.pid} is at it; its words: {log}"]

    def begin(self, job: Job, began: float, watch: Watch) -> str:
        """Start a job: "started"; "done" or "failed" when another process saw to it, "later" while it is at it;
        "full" when all workers have work."""
        if len(self._running) >= self.workers:
            return "full"
        place = self.place(job)
        place.mkdir(parents=True, exist_ok=True)
        if (lock := locked(place / ".lock")) is None:
            return "later"
        note = self.note(job)
        outcome = "full"
        if self.done(job):
            outcome = "done"
        elif note.get("state") == "failed" and float(note.get("ended") or 0) > began:
            watch.say(f"FAILED in another process: {job.command}")
            outcome = "failed"
        elif (worker := self.worker()) is not None:
            self.start(job, (lock, worker))
            watch.say(f"started  {job.command}")
            return "started"
        os.close(lock)
        return outcome

    def worker(self) -> int | None:
        """The lock of a free worker's place on this machine, or ``None``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.workers):
            if (lock := locked(self.folder / f".worker-{socket.gethostname()}-{number}")) is not None:
                return lock
        return None

    def start(self, job: Job, locks: tuple[int, int]) -> None:
        """Start the process of a job."""
        place = self.place(job)
        log = (place / "log.txt").open("wb")
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1", "PYTHONPATH": search}
        process = subprocess.Popen(
            [sys.executable, "-m", job.module, *job.arguments],
            env=os.environ | environment | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt from the keyboard reaches it through us alone
            pass_fds=locks,  # it keeps them if we are killed
        )
        self._running[job.id] = Running(job, process, locks, log, time.monotonic())
        write_note(
            self.place(job), {"state": "running", "command": job.command, "pid": process.pid, "started": time.time()}
        )

    def ended(self) -> list[Running]:
        """Processes that have ended since the last look."""
        return [running for running in self._running.values() if running.process.poll() is not None]

    def close(self, running: Running) -> State:
        """Write down how a process ended, and give its locks back; the state of its job."""
        del self._running[running.job.id]
        running.log.close()
        code = running.process.returncode
        state: State = "failed"
        if code == 0 and self.done(running.job):
            state = "done"
        elif code in (STOPPED, -signal.SIGTERM, -signal.SIGINT):
            state = "missing"
        seconds = round(time.monotonic() - running.started, 1)
        found = {"state": state, "code": code, "seconds": seconds, "ended": time.time()}
        write_note(self.place(running.job), {**found, "command": running.job.command})
        for lock in running.locks:
            os.close(lock)
        return state

    def tell(self, watch: Watch, running: Running, state: State, count: str) -> None:
        """Say how a job ended; of a failed one why."""
        taken = time.monotonic() - running.started
        words = {"done": "done    ", "missing": "stopped ", "failed": "FAILED  "}
        watch.say(f"{words[state]} {count} {running.job.name} in {taken:.0f} s")
        if state == "failed":
            watch.say(f"    {running.job.command}")
            lines = self.tail(running.job, 5) or [f"it said nothing (exit code {running.process.returncode})"]
            for line in lines:
                watch.say(f"    {line}")

    def stop(self) -> None:
        """Ask the processes still under way to stop, and wait for them."""
        for running in self._running.values():
            running.process.terminate()
        for running in list(self._running.values()):
            running.process.wait()
            self.close(running)

    def place(self, job: Job) -> Path:
        """The folder of what is known of a job."""
        return self.folder / job.id


def ready(waiting: Mapping[str, Job], unmet: set[str]) -> list[Job]:
    """Jobs that need none of those that wait or that are ``unmet``: run now, or ended without a result."""
    return [job for job in waiting.values() if not any(need in waiting or need in unmet for need in job.needs)]


def is_locked(place: Path) -> bool:
    """Whether some process of this machine works on the job of that folder now."""
    if not place.exists():
        return False
    if (lock := locked(place / ".lock")) is None:
        return True
    os.close(lock)
    return False


def write_note(place: Path, value: Mapping[str, Any]) -> None:
    """Write what is known of a job into its folder: aside, then renamed."""
    place.mkdir(parents=True, exist_ok=True)
    aside = place / f".status.{os.getpid()}"
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    aside.replace(place / "status.json")


def locked(path: Path) -> int | None:
    """The lock at ``path``, held as long as a process has this descriptor open; ``None`` when another has it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
