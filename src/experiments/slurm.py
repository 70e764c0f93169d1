"""Tables through SLURM: every missing job is submitted once, and found again in the queue by any later command.

A job's note (status.json in its folder) names its tasks in the queue; how far they are is SLURM's to say, whether the
job has its result its own files'. Values are resolved when a job is submitted: later edits of conf/ do not reach it.
"""

from __future__ import annotations

import fcntl
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.build import build
from src.cluster import batch, manifest
from src.cluster.batch import Batch, Dependency
from src.cluster.options import Options, seconds_of
from src.cluster.states import JobState, states
from src.errors import UserError
from src.experiments.arrays import Array, Role, arrays_of, dependencies
from src.experiments.jobs import Job, State, read
from src.experiments.launcher import Done, Watch, is_locked, write_note

SUBMISSIONS = "slurm"
"""Folder of the manifests and logs of arrays, beside those of jobs."""

KILLED = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""How tasks end that no mistake of theirs ended: they are submitted again."""

OURS = "marginalia-"
"""How names of jobs begin in the queue, but not those of their logs."""

FRAME = ("srun: ", "slurm: ", "slurmstepd")
"""How lines of a log begin that tell of the task, but not what it said."""

SCRIPTS: dict[Role, str] = {"train": "sweep.sbatch", "evaluate": "evaluate.sbatch", "judge": "judge.sbatch"}
"""Which file of slurm/ runs the tasks of a role."""


@dataclass(frozen=True)
class Slurm:
    """Settings. ``cluster``: what jobs ask for (conf/cluster); ``nodes``, ``gpus_per_node``: of trainings, ``None``:
    those of the scale; ``*_time``: limits of trainings, of answers and scores, and of judging, ``None``: the cluster's;
    ``poll``: seconds between looks at the queue. Raises ``Problems``."""

    cluster: dict[str, Any]
    nodes: int | None = None
    gpus_per_node: int | None = None
    train_time: str | None = None
    evaluate_time: str | None = None
    judge_time: str | None = None
    poll: float = 15.0

    def __post_init__(self) -> None:
        for role in ("train", "evaluate", "judge"):
            self.options(role, 1, 0)

    @property
    def cache_root(self) -> str | None:
        """That of everything that is submitted, where the cluster has one of its own."""
        return self.cluster.get("cache_root")

    @property
    def at_a_time(self) -> int:
        """Jobs that run side by side, for the time that is left; without a throttle that is anybody's guess."""
        return int(self.cluster.get("throttle") or 8)

    def options(self, role: Role, nodes: int, gpus: int) -> Options:
        """What a task of ``role`` asks for."""
        given: Options = build(self.cluster, "cluster")
        limit = {"train": self.train_time, "evaluate": self.evaluate_time, "judge": self.judge_time}[role]
        given = replace(given, time=limit or given.time)
        if role == "judge":
            return given.no_gpu
        if role == "evaluate":
            return replace(given, nodes=1, gpus_per_node=gpus, ranks_per_node=1)
        gpus = gpus if self.gpus_per_node is None else self.gpus_per_node
        return replace(given, nodes=self.nodes or nodes, gpus_per_node=gpus)

    def open(self, folder: Path, done: Done) -> SlurmLauncher:
        """The launcher."""
        return SlurmLauncher(folder, done, self)


@dataclass
class SlurmLauncher:
    """Jobs as tasks of SLURM's arrays. Two commands over one folder submit nothing twice: a lock lets one of them
    submit at a time, and what is in the queue is told by the notes."""

    folder: Path
    done: Done
    settings: Slurm
    _found: dict[str, JobState] = field(default_factory=dict)
    _looked: float | None = None
    _waits: bool = False
    _silence: str = ""

    def state(self, job: Job) -> State:
        if self.done(job):
            return "done"
        note = read(self.place(job) / "status.json")
        if not note.get("tasks"):
            if is_locked(self.place(job)):
                return "running"  # by a process of launcher=local
            return "failed" if note.get("state") == "failed" else "missing"
        fate = fate_of(job, self.tasks(note))
        return "done" if fate == "failed" and self.done(job) else fate  # ended since the first line

    def note(self, job: Job) -> Mapping[str, Any]:
        note = dict(read(self.place(job) / "status.json"))
        if tasks := [task for task in self.tasks(note) if task is not None]:
            at = next((task for task in tasks if task.active), tasks[-1])
            note["where"] = f"SLURM {at.id}"
            note["reason"] = at.reason
            if at.running and at.elapsed:
                note["started"] = time.time() - seconds_of(at.elapsed)
            elif all(task.completed and task.elapsed for task in tasks):
                note |= {"state": "done", "seconds": float(sum(seconds_of(task.elapsed) for task in tasks))}
        return note

    def tail(self, job: Job, lines: int) -> list[str]:
        note = read(self.place(job) / "status.json")
        said: list[str] = []
        for path in note.get("logs") or [str(self.place(job) / "log.txt")]:
            with suppress(OSError):
                text = Path(path).read_text(encoding="utf-8", errors="replace")
                said += [line for line in text.splitlines() if line.strip() and not line.startswith(FRAME)]
        ends = [task for task in self.tasks(note) if task is not None and task.failed and task.state != "CANCELLED"]
        verdict = [f"SLURM {end.id}: {end.state} {end.reason}".rstrip() for end in ends]
        return [*said, *verdict][-lines:]

    def run(self, jobs: Sequence[Job], watch: Watch) -> bool:
        for line in self.submit(jobs, ()):
            watch.say(line)
        self._waits = True
        before: dict[str, State] = {}
        ended: dict[str, State] = {}
        while not watch.stopping:
            for job in jobs:
                state = self.state(job)
                if state in ("queued", "running"):
                    ended.pop(job.id, None)
                elif job.id not in ended and state in ("done", before.get(job.id)):
                    # the end of a task may be seen before its files are: a failure is believed at second sight
                    ended[job.id] = state
                    self.tell(watch, job, state, f"[{len(ended)}/{len(jobs)}]")
                if state == "running" != before.get(job.id):
                    watch.say(f"started  {job.name}")
                before[job.id] = state
            if len(ended) == len(jobs):
                return set(ended.values()) <= {"done"}
            self.pause(watch)
        left = [job for job in jobs if self.state(job) in ("queued", "running")]
        watch.say(f"{len(left)} jobs stay in the queue and go on; {self.farewell(left)}")
        return False

    def pause(self, watch: Watch) -> None:
        """Wait for the next look at the queue."""
        end = time.monotonic() + self.settings.poll
        while time.monotonic() < end and not watch.stopping:
            watch.look()
            time.sleep(min(0.2, self.settings.poll))
        self.look(fresh=True)
        if self._silence:
            watch.say(f"waiting for SLURM: {self._silence}")

    def tell(self, watch: Watch, job: Job, state: State, count: str) -> None:
        """Say how a job ended; of a failed one why."""
        words = {"done": "done    ", "failed": "FAILED  "}
        watch.say(f"{words.get(state, 'left    ')} {count} {job.name}")
        for line in [job.command, *self.tail(job, 5)] if state == "failed" else ():
            watch.say(f"    {line}")

    def submit(self, jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
        """Submit those of ``jobs`` that are not in the queue, and ``command`` of src.reproduce after all of them."""
        with self.submitting():
            self.look(fresh=True)
            known = {job.id: self.state(job) for job in jobs}
            active = [job for job in jobs if known[job.id] in ("queued", "running")]
            todo = [job for job in jobs if known[job.id] in ("missing", "failed")]
            waiting = {job.id: read(self.place(job) / "status.json").get("tasks", []) for job in active}
            if not todo:
                return [f"all {len(active)} missing jobs are in the queue already; nothing is submitted"]
            arrays = arrays_of(todo, waiting)
            folder = self.folder / SUBMISSIONS / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
            batches = [self.batch(array, folder / f"{number:03d}") for number, array in enumerate(arrays)]
            final = self.table(command, folder / "table") if command else None
            ids: dict[Array, str] = {}
            conf = manifest.keep_conf(folder)
            for array, one in zip(arrays, batches, strict=True):
                after = [Dependency(kind, job) for kind, job in dependencies(array, ids)]
                ids[array] = batch.submit(replace(one.needing(*after), conf=conf))
                self.noted(array, ids[array], one)
            last: tuple[str, ...] = ()
            lines = [f"submitted {len(todo)} jobs as {len(arrays)} arrays of SLURM; {len(active)} were there already"]
            if final is not None:
                ends = [*ids.values(), *(tasks[-1] for tasks in waiting.values() if tasks)]
                final = replace(final.needing(*(Dependency("afterany", job) for job in ends)), conf=conf)
                last = (batch.submit(final),)
                log = final.log.with_name(f"{last[0]}.out")
                lines.append(f"job {last[0]} writes the table when all have ended: {log}")
            return [*lines, self.farewell(todo, last)]

    def batch(self, array: Array, folder: Path) -> Batch:
        """The call of sbatch for an array, and its manifest; raises ``Problems`` of what does not compose."""
        lines = []
        for index in range(max(array.tasks) + 1):
            if (task := array.tasks.get(index)) is None:
                lines.append(manifest.Task("", (), {}))  # never started: only keeps the numbers of those behind it
                continue
            made = manifest.task(task.job.module, task.arguments)
            lines.append(replace(made, run=made.run or str(task.job.run)))
        path = manifest.write(folder, lines)
        options = self.settings.options(array.role, array.resources.nodes, array.resources.gpus)
        log, indices = folder / "%A_%a.out", tuple(sorted(array.tasks))
        arguments = (str(path.absolute()),)
        return Batch(f"{OURS}{array.name}", SCRIPTS[array.role], arguments, folder, log, options, indices)

    def table(self, command: Sequence[str], folder: Path) -> Batch:
        """The call of sbatch for the command that renders the table."""
        path = manifest.write(folder, [manifest.task("src.reproduce", (*command, "action=table"))])
        options = self.settings.options("judge", 1, 0)
        return Batch(f"{OURS}table", "judge.sbatch", (str(path.absolute()),), folder, folder / "%j.out", options)

    def noted(self, array: Array, job: str, one: Batch) -> None:
        """Write down which tasks of the queue are whose."""
        for index, task in array.tasks.items():
            place, name = self.place(task.job), f"{job}_{index}"
            earlier = read(place / "status.json") if task.role == "judge" else {}
            # what is said before the run directory is known, and the rest (slurm/common.sh)
            early, late = one.log.with_name(f"{name}.out"), task.job.run / "slurm" / f"{array.name}-{name}.out"
            logs = [str(early.absolute()), str(late.absolute())]
            value = {"tasks": [*earlier.get("tasks", ()), name], "logs": [*earlier.get("logs", ()), *logs]}
            write_note(place, {"state": "submitted", "command": task.job.command, "submitted": time.time(), **value})

    def farewell(self, jobs: Sequence[Job], more: Sequence[str] = ()) -> str:
        """How jobs that are left alone are cancelled, and ``more`` of SLURM's."""
        notes = [read(self.place(job) / "status.json") for job in jobs]
        ids = {task.split("_")[0] for note in notes for task in note.get("tasks", ())}
        return f"cancel: {shlex.join(['scancel', *sorted({*ids, *more}, key=int)])}"

    def tasks(self, note: Mapping[str, Any]) -> list[JobState | None]:
        """What SLURM says of the tasks of a note; ``None`` of one that it has forgotten."""
        if not note.get("tasks"):
            return []
        self.look()
        return [self._found.get(task) for task in note["tasks"]]

    def look(self, *, fresh: bool = False) -> None:
        """Ask SLURM for all jobs that notes name, unless that was done a moment ago. Raises ``UserError`` where it does
        not answer, unless we wait for jobs: then also for the controller."""
        now = time.monotonic()
        if self._looked is not None and not fresh and now - self._looked < self.settings.poll:
            return
        notes = [read(path) for path in self.folder.glob("*/status.json")]
        ids = {task.split("_")[0] for note in notes for task in note.get("tasks", ())}
        self._looked, self._silence = now, ""
        try:
            self._found = states(sorted(ids, key=int))
        except UserError as error:
            if not self._waits:
                raise
            self._silence = str(error)

    def place(self, job: Job) -> Path:
        """The folder of what is known of a job."""
        return self.folder / job.id

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Keep other commands from submitting meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".submitting").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def fate_of(job: Job, tasks: Sequence[JobState | None]) -> State:
    """The state of a job without a result, of whose tasks SLURM says ``tasks`` (``None``: it has forgotten)."""
    if any(task is not None and task.running for task in tasks):
        return "running"
    if any(task is not None and task.waiting for task in tasks):
        return "queued"
    own = read(job.run / "status.json").get("state") if job.is_training else None
    if own == "stopped" or any(task is not None and task.state in KILLED for task in tasks):
        failed = any(task is not None and task.failed and task.state not in KILLED for task in tasks)
        return "failed" if failed and own != "stopped" else "missing"
    return "failed" if own == "failed" or None not in tasks else "missing"
