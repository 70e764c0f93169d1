"""From the jobs of a table to job arrays: few calls of the scheduler, and each task after just those that it needs.

Two kinds of dependency do it. Trainings on one SFT base are an array behind that base's task. Measurements of an
array's runs are an array of the same indices, each task behind the one of its index. So a job that fails holds up
those that need it, and no others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from src.benchmark_schema import JudgedConfig
from src.config import SCHEMAS
from src.experiments.jobs import Job, Resources

Role = Literal["train", "evaluate", "judge"]
ROLES: tuple[Role, ...] = ("train", "evaluate", "judge")
LARGEST = 1000
"""Tasks of one array: SLURM's MaxArraySize is 1001 unless somebody raised it, and indices stay below it."""


@dataclass(frozen=True)
class Task:
    """What a job does in one go. A judged benchmark has two of them: answers, which need a GPU, and judging, which
    needs none; ``arguments``: of the job's module."""

    job: Job
    role: Role
    arguments: tuple[str, ...]

    @property
    def resources(self) -> Resources:
        """Of a cluster."""
        return Resources() if self.role == "judge" else self.job.resources


@dataclass(eq=False)
class Array:
    """Tasks of one role, by index, that start after the same things.

    ``pairs``: the array whose task of the same index each task needs; ``behind``: (array, index) of tasks that all
    need; ``after``: ids of tasks submitted earlier that all need.
    """

    kind: str
    role: Role
    resources: Resources
    pairs: Array | None = None
    behind: tuple[tuple[Array, int], ...] = ()
    after: tuple[str, ...] = ()
    tasks: dict[int, Task] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the queue."""
        return self.kind if self.kind == self.role else f"{self.kind}-{self.role}"


def tasks_of(job: Job) -> tuple[Task, ...]:
    """What a job does, one after the other."""
    if job.is_training:
        return (Task(job, "train", job.arguments),)
    if not issubclass(SCHEMAS.get(job.kind, object), JudgedConfig):
        return (Task(job, "evaluate", job.arguments),)
    return (Task(job, "evaluate", (*job.arguments, "stage=generate")), Task(job, "judge", job.arguments))


def arrays_of(jobs: Sequence[Job], queued: Mapping[str, Sequence[str]]) -> list[Array]:
    """The arrays of ``jobs``, which come after those they need: trainings first, judging last, each array after those
    that it waits for.

    ``queued``: job id -> ids of its tasks that are in the queue already. What is needed and is neither is done.
    """
    arrays: dict[Hashable, Array] = {}
    last: dict[str, tuple[Array, int]] = {}
    for job in jobs:
        before = tuple(last[need] for need in job.needs if need in last)
        after = tuple(task for need in job.needs for task in queued.get(need, ())[-1:])
        for task in tasks_of(job):
            place = together(arrays, task, before, after)
            last[job.id], before, after = place, (place,), ()
    return sorted(arrays.values(), key=lambda array: ROLES.index(array.role))


def together(
    arrays: dict[Hashable, Array], task: Task, before: tuple[tuple[Array, int], ...], after: tuple[str, ...]
) -> tuple[Array, int]:
    """Put a task into the array of those that wait for the same, a new one where that is full; array and index."""
    kind, role, resources = task.job.kind, task.role, task.resources
    pairs, index = before[0] if len(before) == 1 and not after and not task.job.is_training else (None, None)
    behind = before if pairs is None else ()
    number = 0
    while True:
        key = (kind, role, resources, pairs, behind, after, number)
        array = arrays.setdefault(key, Array(kind, role, resources, pairs, behind, after))
        free = len(array.tasks) if index is None else index
        if free < LARGEST and free not in array.tasks:
            array.tasks[free] = task
            return array, free
        number += 1


def dependencies(array: Array, ids: Mapping[Array, str]) -> Iterator[tuple[Literal["afterok", "aftercorr"], str]]:
    """(kind, job) of everything that ``array`` waits for; ``ids``: what the scheduler calls the arrays before it."""
    if array.pairs is not None:
        yield "aftercorr", ids[array.pairs]
    for other, index in array.behind:
        yield "afterok", f"{ids[other]}_{index}"
    for task in array.after:
        yield "afterok", task
