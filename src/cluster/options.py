"""What one asks a cluster for: conf/cluster, then this machine's conf/local/cluster.yaml, then the command line."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from src.errors import Problems

MEMORY = re.compile(r"\d+[KMGT]?$")
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}$")
SLACK = 60
"""Seconds by which SLURM may be early with ``--signal``: it looks at time limits now and then."""


@dataclass(frozen=True)
class Options:
    """What a job asks for, and what is set up before it starts; ``None`` leaves a choice to the cluster.

    ``gpus_per_node`` 0 asks for none; ``ranks_per_node`` ``None``: one a GPU; ``signal_seconds``: so long before the
    time limit a checkpoint is asked for; ``restarts``: so many in a row may bring no step; ``throttle``: tasks of an
    array at a time; ``timeout``: seconds after which a command of SLURM is given up. Raises ``Problems``.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    gpu_type: str | None = None
    ranks_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    partition: str | None = None
    cpu_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None
    signal_seconds: int = 300
    restarts: int = 5
    throttle: int | None = None
    modules: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    container_runtime: str = "apptainer"
    hf_home: str | None = None
    torch_extensions: str | None = None
    cache_root: str | None = None
    extra: tuple[str, ...] = ()
    timeout: int = 60

    def __post_init__(self) -> None:
        if problems := problems_of_options(self):
            raise Problems(problems)

    @property
    def ranks(self) -> int:
        """Processes of a training on one node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def one_gpu(self) -> Options:
        """For a job of one process that takes a GPU where trainings take any, such as an evaluation."""
        return replace(self, nodes=1, gpus_per_node=min(1, self.gpus_per_node), ranks_per_node=1)

    @property
    def no_gpu(self) -> Options:
        """For a job of one process that needs none: data, judges of an API, reports."""
        partition = self.cpu_partition or self.partition
        return replace(self, nodes=1, gpus_per_node=0, ranks_per_node=1, partition=partition)

    @property
    def interpreter(self) -> str:
        """Python on the nodes: this one, or that of the container."""
        return self.python or ("python" if self.container else sys.executable)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the scripts of slurm/ read; paths are made absolute."""
        given = {
            "MARGINALIA_PYTHON": self.interpreter,
            "MARGINALIA_RANKS": str(self.ranks),
            "MARGINALIA_RESTARTS": str(self.restarts),
            "MARGINALIA_MODULES": " ".join(self.modules),
            "MARGINALIA_CONTAINER": self.container or "",
            "MARGINALIA_CONTAINER_RUNTIME": self.container_runtime,
        }
        caches = {
            "HF_HOME": self.hf_home,
            "TORCH_EXTENSIONS_DIR": self.torch_extensions,
            "MARGINALIA_CACHE": self.cache_root,
        }
        return given | {name: str(Path(path).expanduser().absolute()) for name, path in caches.items() if path}

    @property
    def arguments(self) -> list[str]:
        """Options of sbatch."""
        gpus = f"gpu:{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else f"gpu:{self.gpus_per_node}"
        chosen = {
            "--nodes": str(self.nodes),
            "--ntasks-per-node": "1",
            "--gres": gpus if self.gpus_per_node else None,
            "--cpus-per-task": str(self.cpus_per_node) if self.cpus_per_node else None,
            "--mem": self.memory,
            "--partition": self.partition,
            "--account": self.account,
            "--qos": self.qos,
            "--time": self.time,
            "--signal": f"B:USR1@{self.signal_seconds}",
        }
        return [f"{name}={value}" for name, value in chosen.items() if value is not None] + list(self.extra)


LEAST = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_node": 1, "throttle": 1, "timeout": 1}
LEAST |= {"signal_seconds": 1, "restarts": 0}


def problems_of_options(options: Options) -> list[str]:
    """What cannot work, whatever the cluster, as sentences."""
    problems = [
        f"cluster.{name}={value} is too small; give at least {least}"
        for name, least in LEAST.items()
        if (value := getattr(options, name)) is not None and value < least
    ]
    if options.memory is not None and not MEMORY.match(options.memory):
        problems.append(f"cluster.memory={options.memory} is no amount of memory; give that of each node, such as 64G")
    limit, lead = options.time, options.signal_seconds
    if isinstance(limit, int):
        problems.append(f"cluster.time={limit} may be minutes or seconds; write hours too, as text: '24:00:00'")
    elif limit is not None and not TIME.match(limit):
        problems.append(f"cluster.time={limit} is no time limit; give H:MM:SS or D-HH:MM:SS, such as 24:00:00")
    elif limit is not None and seconds_of(limit) <= lead + SLACK:
        problems.append(
            f"cluster.time={limit} ends before work begins: a checkpoint is asked for cluster.signal_seconds={lead} s "
            f"before the end, and SLURM may be {SLACK} s early; give more time, or fewer cluster.signal_seconds"
        )
    if options.container_runtime not in ("apptainer", "enroot"):
        problems.append(
            f"cluster.container_runtime={options.container_runtime} is not known; choose one of: apptainer, enroot"
        )
    return problems


def seconds_of(limit: str) -> int:
    """Seconds of a time limit as SLURM reads it: M, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
