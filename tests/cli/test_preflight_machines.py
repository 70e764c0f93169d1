"""The plan of a training on several GPUs, and what of it is refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.entry import assert_says, call, refused
from tests.support import SMALL_RUN, places

PREFLIGHT = "src.preflight"


def small(folder: Path, *more: str) -> list[str]:
    return [*SMALL_RUN, *places(folder), "method=simpo", *more]


def directory(text: str) -> str:
    found = re.search(r"directory +(\S+)", text)
    assert found
    return found[1]


def test_plan_of_several_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is that of training's own keys: the machines are no part of its name."""
    monkeypatch.setenv("COLUMNS", "400")
    overrides = small(tmp_path, "engine=fsdp2", "training.micro_batch_size=2")
    alone = call(PREFLIGHT, *overrides)
    planned = call(PREFLIGHT, *overrides, "nodes=2", "gpus_per_node=2", "gpu=h100")
    assert (alone.code, planned.code) == (0, 0), planned.err
    assert directory(planned.out) == directory(alone.out)
    assert_says(planned.out, "8 pairs = 2 a forward x 1 accumulated x 4 ranks", "H100  fits", "NODE_RANK=0, 1, ...")
    assert "A100" in alone.out
    assert "A100" not in planned.out
    launch = planned.out[planned.out.index("Launch") :].splitlines()[1].strip()
    assert launch.startswith("torchrun --nnodes 2 --nproc-per-node 2 --node-rank $NODE_RANK --rdzv-backend static ")
    assert launch.endswith("engine=fsdp2 training.micro_batch_size=2")
    assert "torchrun --standalone --nnodes 1 --nproc-per-node 1 -m src.train" in alone.out


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["engine=ddp", "gpus_per_node=4"], ["divided among 4 ranks of training.micro_batch_size=4", "size=2"]),
        (["engine=ddp", "nodes=3"], ["whatever the micro-batch; use a number of ranks that divides 8, such as 2"]),
        (["nodes=2", "gpus_per_node=2"], ["engine=single is one process, but nodes=2 gpus_per_node=2 are 4"]),
        (["method=simpo_sam", "engine=zero3_offload"], ["engine=zero3_offload keeps states in the memory of the CPU"]),
        (["gpu=b200"], ["gpu=b200 is not known; choose one of: all, a100_40, a100_80, h100, h200"]),
        (["nodes=0"], ["nodes=0 is too small; give at least 1"]),
        (["node=2"], ["unknown key node; did you mean nodes?"]),
    ],
)
def test_refused_machines(overrides: list[str], fragments: list[str], tmp_path: Path) -> None:
    assert_says(refused(PREFLIGHT, *small(tmp_path, *overrides)), *fragments)


def test_all_problems_at_once_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "deepspeed" else found(name, *a))
    message = refused(PREFLIGHT, *small(tmp_path, "engine=zero2", "gpus_per_node=3", "model.dtype=float8"))
    assert_says(
        message, "3 problems found", "model.dtype=float8", "engine=zero2 needs the package deepspeed", "3 ranks"
    )
