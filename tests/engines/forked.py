"""Runs of several ranks, forked from one process that has imported everything: a rank costs its training alone.

``python -m tests.engines.forked FOLDER`` kills a rank of every engine at some step, starts the run again, and prints as
JSON what came of it. It is a process of its own because autograd does not survive a fork once it has run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.config import compose_train
from src.engine.create import refuse_unfit_launch
from src.engine.join import together
from src.errors import UserError
from src.schema import TrainConfig
from src.training.run import train
from tests.support import SMALL_DATA, SMALL_MODEL, metrics

STEPS = 8
RUN = (
    *SMALL_MODEL,
    *SMALL_DATA,
    "~recipe",
    "method=amapo",
    "method.statistics=window",  # whatever the number of ranks
    "engine.device=cpu",
    f"training.max_steps={STEPS}",
    "training.global_batch_size=12",
    "training.micro_batch_size=2",
    "training.learning_rate=1e-3",
    "training.adam_epsilon=1e-3",
    "evaluation.every_steps=4",
    "evaluation.max_pairs=6",
    "checkpoint.every_steps=2",
)


@dataclass
class Ended:
    """How the ranks of a run ended: exit codes (negative: the signal), seconds from the kill on, standard errors."""

    codes: list[int]
    seconds: float
    said: list[str]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def import_everything() -> None:
    """What ranks would otherwise import each by itself."""
    for name in (
        "src.engine.zero",
        "src.engine.fsdp",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)


def start(size: int, overrides: list[str], folder: Path) -> list[int]:
    """Process ids of the ranks of a run; each says to FOLDER/rank-N.txt what it has to say."""
    port, config = free_port(), compose_train(overrides)
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            log = os.open(folder / f"rank-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(code_of(config))
        children.append(child)
    return children


def code_of(config: TrainConfig) -> int:
    """The exit code of a rank, as its entry point gives it."""
    try:
        refuse_unfit_launch(config)
        return together(lambda: train(config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1


def wait(children: list[int], folder: Path, patience_s: float = 90.0) -> Ended:
    """The end of all ranks; raises ``AssertionError`` when some rank does not end in time."""
    began = time.monotonic()
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > patience_s:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
            raise AssertionError(f"ranks did not end within {patience_s} s: {codes}")
        time.sleep(0.02)
    said = [(folder / f"rank-{rank}.txt").read_text() for rank in range(len(children))]
    return Ended([codes[child] for child in children], time.monotonic() - began, said)


def killed(size: int, overrides: list[str], run: Path, folder: Path, rank: int, step: int) -> Ended:
    """A run one of whose ranks is killed after ``step``."""
    children = start(size, overrides, folder)
    until(lambda: steps_of(run) >= step)
    os.kill(children[rank], signal.SIGKILL)
    return wait(children, folder)


def until(true: Callable[[], bool], patience_s: float = 90.0) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < patience_s, "the run does not get on"
        time.sleep(0.005)


def steps_of(run: Path) -> int:
    """Steps that the run has logged."""
    path = run / "timings.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def weights_of(run: Path) -> str:
    """Hash of the last checkpoint's weights."""
    return hashlib.sha256((run / "checkpoints" / "last" / "model" / "model.safetensors").read_bytes()).hexdigest()


def engine_story(engine: str, size: int, rank: int, step: int, base: Path, cache: Path) -> dict[str, object]:
    """A whole run of two ranks or three, one with a killed rank and its second start, and one that goes on with three
    ranks or two."""
    folder = base / engine
    folder.mkdir(parents=True)

    def run(name: str) -> tuple[Path, list[str]]:
        place = folder / name
        return place, [*RUN, f"engine={engine}", "engine.timeout_s=20", f"run_dir={place}", f"cache_root={cache}"]

    whole, overrides = run("whole")
    first = wait(start(size, overrides, folder), folder)
    broken, overrides = run("broken")
    lost = killed(size, overrides, broken, folder, rank, step)
    other, again = run("other")
    shutil.copytree(broken, other, symlinks=True)
    second = wait(start(size, overrides, folder), folder)
    further = wait(start(5 - size, again, folder), folder)
    return {
        "whole": first.codes,
        "lost": {"codes": lost.codes, "seconds": lost.seconds, "said": lost.said},
        "second": second.codes,
        "other": {"codes": further.codes, "said": further.said},
        "same_metrics": (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes(),
        "same_weights": weights_of(whole) == weights_of(broken),
        "metrics": metrics(whole, "validation"),
        "other_metrics": metrics(other, "validation"),
    }


def main() -> None:
    import_everything()
    base = Path(sys.argv[1])
    stories = {
        engine: engine_story(engine, size, rank, step, base, base / "cache")
        for engine, size, rank, step in json.loads(sys.argv[2])
    }
    print(json.dumps(stories))


if __name__ == "__main__":
    main()
