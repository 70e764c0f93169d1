"""sbatch, with every refusal in our own words: submit, try out, show, cancel.

Clients of SLURM wait for minutes when no controller answers, so each call has a time limit.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from src.cluster.options import Options
from src.config import ROOT
from src.errors import UserError

SCRIPTS = ROOT / "slurm"
Kind = Literal["afterok", "aftercorr", "afterany"]


@dataclass(frozen=True)
class Dependency:
    """``kind``: afterok (all tasks of ``job`` succeeded), aftercorr (the task of the same index did), afterany."""

    kind: Kind
    job: str


@dataclass(frozen=True)
class Batch:
    """One call of sbatch.

    ``script``: a file of slurm/, such as train.sbatch; ``arguments``: what it is given; ``log``: what the job says goes
    there (%j: job, %A and %a: array and index); ``tasks``: indices of an array, () for a single job; ``folder``: the
    submission's, where stop flags and counts of restarts are kept; ``chdir``: to which relative paths are relative;
    ``conf``: the copy of conf/ that the job reads, ``None`` for conf/ itself.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path
    options: Options = field(default_factory=Options)
    tasks: tuple[int, ...] = ()
    after: tuple[Dependency, ...] = ()
    chdir: Path = field(default_factory=Path.cwd)
    conf: Path | None = None

    def needing(self, *after: Dependency) -> Batch:
        """The same after other jobs."""
        return replace(self, after=(*self.after, *after))

    @property
    def environment(self) -> dict[str, str]:
        """What the script reads, besides its arguments."""
        places = {"MARGINALIA_ROOT": str(ROOT), "MARGINALIA_SUBMISSION": str(self.folder.absolute())}
        if self.conf is not None:
            places["MARGINALIA_CONF"] = str(self.conf.absolute())
        return places | self.options.environment

    @property
    def command(self) -> list[str]:
        """The call of sbatch."""
        own = [
            f"--job-name={self.name}",
            "--parsable",
            "--requeue",
            "--open-mode=append",
            f"--output={self.log.absolute()}",
            f"--chdir={self.chdir}",
            "--export=ALL",
            *self.options.arguments,
        ]
        if self.tasks:
            limit = f"%{self.options.throttle}" if self.options.throttle else ""
            own.append(f"--array={spans(self.tasks)}{limit}")
        if self.after:
            own.append("--dependency=" + ",".join(f"{one.kind}:{one.job}" for one in self.after))
            own.append("--kill-on-invalid-dep=yes")
        return ["sbatch", *own, str(SCRIPTS / self.script), *self.arguments]

    @property
    def text(self) -> str:
        """The call as one types it, with the variables that it exports."""
        exports = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if value]
        return " \\\n  ".join([*exports, shlex.join(self.command)])


def spans(tasks: Sequence[int]) -> str:
    """Indices as sbatch takes them: 0-3,7."""
    parts: list[list[int]] = []
    for task in sorted(set(tasks)):
        if parts and parts[-1][-1] == task - 1:
            parts[-1].append(task)
        else:
            parts.append([task])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def submit(batch: Batch) -> str:
    """Hand a job to SLURM; its id. Makes the folders of its log and of the submission. Raises ``UserError``."""
    for folder in (batch.folder, batch.log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    done = client(batch.command, batch.options.timeout, batch.environment)
    if done.returncode:
        raise refusal(batch, done.stderr)
    return done.stdout.strip().split(";")[0]


def test_only(batch: Batch) -> str:
    """What SLURM says of a job without taking it: where and when it would start. Raises ``UserError`` as ``submit``."""
    done = client([batch.command[0], "--test-only", *batch.command[1:]], batch.options.timeout, batch.environment)
    if done.returncode:
        raise refusal(batch, done.stderr)
    return "\n".join(line.removeprefix("sbatch: ") for line in done.stderr.strip().splitlines())


def cancel(jobs: Sequence[str], timeout: int = 60) -> None:
    """End jobs; trainings write a checkpoint first where the time that SLURM gives them allows."""
    if jobs:
        client(["scancel", *jobs], timeout)


def client(
    command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM; raises ``UserError`` where there is none, or when no controller answers."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no SLURM here: the command {command[0]} is not found. Log in where jobs are submitted, load the "
            "cluster's module, or train on this machine with python -m src.train"
        )
    try:
        done = subprocess.run(
            command,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} did not answer within {timeout:g} s: the cluster's controller is down, or busy. See "
            "scontrol ping; raise cluster.timeout where it is merely slow"
        ) from error
    if done.returncode and (cause := unreachable(done.stderr)):
        raise UserError(
            f"{command[0]} finds no cluster ({cause}); see scontrol ping, and SLURM_CONF where there are several"
        )
    return done


def unreachable(complaint: str) -> str:
    """The line of a client's complaint that says that it found no controller; "" where it says something else."""
    signs = (
        "Unable to contact",
        "Connection refused",
        "configuration source",
        "fetch config",
        "SLURM_CONF",
        "timed out",
    )
    lines = [line for line in complaint.splitlines() if any(sign in line for sign in signs)]
    return lines[-1].split("error: ")[-1].split("fatal: ")[-1] if lines else ""


REFUSALS = (
    (r"[Ii]nvalid partition", "cluster.partition={partition} does not exist"),
    (
        r"[Gg]eneric resource|[Gg][Rr][Ee][Ss]",
        "the cluster has no such GPUs: cluster.gpus_per_node={gpus_per_node} cluster.gpu_type={gpu_type}",
    ),
    (r"account", "cluster.account={account} may not submit here (cluster.partition={partition}, cluster.qos={qos})"),
    (r"qos|QOS", "cluster.qos={qos} does not exist, or is not yours"),
    (r"time limit", "cluster.time={time} is more than the partition allows"),
    (r"[Mm]emory", "cluster.memory={memory} is more than a node has"),
    (
        r"[Nn]ode count|configuration is not available|CPU count|not satisf",
        "no partition can ever give this: cluster.nodes={nodes} with cluster.gpus_per_node={gpus_per_node}, "
        "cluster.gpu_type={gpu_type}, cluster.cpus_per_node={cpus_per_node}, cluster.memory={memory}",
    ),
    (r"array", "the array has too many tasks or a bad index; submit fewer at a time"),
)
"""What sbatch says (a pattern), and what of ours it means."""


def refusal(batch: Batch, complaint: str) -> UserError:
    """Why sbatch would not have a job: our keys, its words, and what the cluster has."""
    words = " ".join(line.split("error: ")[-1].removeprefix("sbatch: ") for line in complaint.strip().splitlines())
    meaning = next((text for pattern, text in REFUSALS if re.search(pattern, words)), "sbatch refuses the job")
    options = {name: "null" if value is None else value for name, value in vars(batch.options).items()}
    lines = [f"{batch.name}: {meaning.format(**options)} (SLURM: {words})"]
    if offered := offer(batch.options.timeout):
        lines += ["this cluster has:", *(f"  {line}" for line in offered)]
    return UserError("\n".join(lines))


def offer(timeout: int) -> list[str]:
    """What the cluster has, a line for each kind of node of a partition; [] when sinfo does not say."""
    try:
        done = client(["sinfo", "--noheader", "--format=%R|%D|%G|%c|%m|%l"], timeout)
    except UserError:
        return []
    lines = []
    for row in sorted(set(done.stdout.split())):
        partition, nodes, gres, cpus, memory, limit = row.split("|")
        gpus = "no GPUs" if gres == "(null)" else gres
        each = f"each {gpus}, {cpus} CPUs, {memory} MB; time limit {limit}"
        lines.append(f"cluster.partition={partition}: {nodes} nodes, {each}")
    return lines
