"""``python -m tests.engines.world DIRECTORY [parity]``: all ranks of the tests of engines, forked from one process.

Importing torch, transformers and DeepSpeed takes longer than all that the ranks do, so it is done once. Rank r of n
leaves what it found in DIRECTORY/n-r.pt.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.engines import jobs

SIZES = (1, 2, 3)


def main(directory: Path) -> int:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
    import peft  # noqa: F401

    prepare()
    failed = []
    for size in SIZES:
        began = time.time()
        failed += forked(size, directory)
        print(f"{size} ranks: {time.time() - began:.1f} s", flush=True)
    print(f"{sum(os.times()[:4]):.1f} s of CPU", flush=True)
    return 1 if failed else 0


def prepare() -> None:
    """What every rank needs, made once before they part: configurations and batches."""
    for method in jobs.METHODS:
        jobs.objective_of(method)
    for engine in ("single", *jobs.ENGINES, "fsdp2_offload", "zero2_offload", "zero3_offload"):
        jobs.settings(engine)
    for tied in (False, True):
        jobs.initial(0, tied)
    for step in range(jobs.STEPS):
        for cut in ([12], [3, 3, 3, 3], [6, 6], [3, 3, 6]):
            jobs.window_of(cut, step)


def forked(size: int, directory: Path) -> list[int]:
    """Run the ranks of a group; those that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank, size, port, directory)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [child for child in children if os.waitpid(child, 0)[1] != 0]


def work(rank: int, size: int, port: int, directory: Path) -> None:
    """All jobs of one rank."""
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    found: dict[str, Any] = {}
    clock = [time.process_time()]

    def report(name: str, value: Any) -> None:
        found[name] = value
        clock.append(time.process_time())
        if os.environ.get("SAY") and rank == 0:
            print(f"{size} {name}: {clock[-1] - clock[-2]:.2f} s", flush=True)

    try:
        jobs.parity(size, report)
        if size < 3 and "parity" not in sys.argv:
            jobs.facts(size, report)
    finally:
        torch.save(found, directory / f"{size}-{rank}.pt")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
