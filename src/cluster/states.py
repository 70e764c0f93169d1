"""How far jobs are, as SLURM says: squeue for the present, sacct for the past where the cluster keeps accounts.

sacct lags by some seconds and is absent on some clusters; squeue forgets a job some minutes after its end. A job of
which neither knows is missing from the answer: what it left (status.json, records) says how it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from src.cluster.batch import client
from src.errors import UserError

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
SACCT = ("sacct", "--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,State,ExitCode,Elapsed")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")


@dataclass(frozen=True)
class JobState:
    """``id``: 12, or 12_3 for a task of an array; ``state``: SLURM's word; ``reason``: why it waits or how it ended;
    ``elapsed``: as SLURM prints it."""

    id: str
    state: str
    reason: str = ""
    elapsed: str = ""

    @property
    def waiting(self) -> bool:
        """Still to start, or to start again."""
        return self.state in WAITING

    @property
    def running(self) -> bool:
        """Holding nodes now."""
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        """Not at its end."""
        return self.waiting or self.running

    @property
    def completed(self) -> bool:
        """Ended with exit code 0."""
        return self.state == "COMPLETED"

    @property
    def failed(self) -> bool:
        """Ended otherwise, cancelled and timed out included."""
        return not self.active and not self.completed


def states(jobs: Sequence[str], timeout: int = 60) -> dict[str, JobState]:
    """The states of jobs; for an array (``12``) of each of its tasks (``12_0``, …). Raises ``UserError`` without SLURM.

    squeue wins over sacct, which may be behind.
    """
    if not jobs:
        return {}
    wanted = {job.split("_")[0] for job in jobs}
    return {
        state.id: state
        for state in (*accounted(sorted(wanted), timeout), *queued(timeout))
        if state.id in jobs or state.id.split("_")[0] in jobs
    }


def of_job(found: dict[str, JobState], job: str) -> list[JobState]:
    """The states of a job: one, or one a task, in order of index; [] when nothing is known."""
    mine = [state for state in found.values() if job in (state.id, state.id.split("_")[0])]
    return sorted(mine, key=lambda state: [int(part) for part in state.id.split("_")])


def queued(timeout: int) -> list[JobState]:
    """This user's jobs that squeue knows, arrays by task."""
    done = client(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%M"], timeout)
    if done.returncode:
        raise UserError(f"squeue does not say how far jobs are: {done.stderr.strip()}")
    return list(rows(done.stdout.splitlines()))


def accounted(jobs: Sequence[str], timeout: int) -> list[JobState]:
    """What accounting knows of ``jobs``; [] on a cluster without."""
    try:
        done = client([*SACCT, f"--jobs={','.join(jobs)}"], timeout)
    except UserError:
        return []
    return [] if done.returncode else list(rows(done.stdout.splitlines()))


def rows(lines: Iterable[str]) -> Iterable[JobState]:
    """Rows of squeue or sacct; ``CANCELLED by 1000`` is CANCELLED, tasks that wait together are told apart."""
    for line in lines:
        fields = line.split("|")
        if len(fields) != 4:
            continue
        name, state, reason, elapsed = fields
        for one in tasks(name):
            yield JobState(one, state.split()[0], "" if reason in ("None", "0:0") else reason, elapsed)


def tasks(name: str) -> list[str]:
    """``12_[0-2,5%4]`` as 12_0, 12_1, 12_2, 12_5; any other id as it is."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name)
    if not found:
        return [name]
    ranges = [part.partition("-") for part in found.group(2).split(",")]
    return [f"{found.group(1)}_{index}" for low, _, high in ranges for index in range(int(low), int(high or low) + 1)]
