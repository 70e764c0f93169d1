"""Whether a run fits a GPU, and the least change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from src.planner.gpus import Gpu, usable
from src.planner.memory import Memory, memory_of
from src.planner.roofline import StepTime, step_time
from src.planner.sizes import FLOAT_MOMENTS, INT8_MOMENTS, MethodWork, ModelShape, Rows, Setting

SHARDING = {"single": 0, "ddp": 0, "zero2": 1, "fsdp2": 2, "zero3": 2}
"""How much of a model an engine shards: nothing, all but the weights, everything."""

MOST_GPUS = 128
"""No more than so many GPUs are proposed."""

WHOLE = ("slopes", "sketch", "stream")
"""Perturbations that look at whole parameters (src/combinations.py)."""

PER_NODE = 8
"""GPUs of a server; more than that are proposed by the server."""


@dataclass(frozen=True)
class Fit:
    """How a run goes on one kind of GPU. ``changes``: the nearest overrides that make it fit, () where nothing does;
    ``without_more_gpus``: those that do on the GPUs there are, where the nearest need more."""

    gpu: Gpu
    memory: Memory
    time: StepTime
    fits: bool
    changes: tuple[str, ...] = ()
    without_more_gpus: tuple[str, ...] = ()


def fit_of(gpu: Gpu, shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting) -> Fit:
    """Memory, time and verdict on one kind of GPU, with the nearest change where it does not fit."""
    memory, time = memory_of(shape, rows, work, setting), step_time(gpu, shape, rows, work, setting)
    if memory.total <= usable(gpu):
        return Fit(gpu, memory, time, fits=True)
    fitting = [
        other for other in alternatives(setting, work) if memory_of(shape, rows, work, other).total <= usable(gpu)
    ]
    here = [other for other in fitting if other.world == setting.world]
    best = nearest(setting, fitting)
    return Fit(
        gpu,
        memory,
        time,
        fits=False,
        changes=best,
        without_more_gpus=() if nearest(setting, here) == best else nearest(setting, here),
    )


def nearest(setting: Setting, fitting: list[Setting]) -> tuple[str, ...]:
    """Overrides of the smallest change to one of ``fitting``; () where there is none.

    A change counts by its greatest part: checkpointing, a smaller micro-batch, another engine, leaner storage, more
    GPUs, offload.
    """
    best = min(fitting, key=lambda other: size_of_change(setting, other), default=None)
    return () if best is None else overrides(setting, best)


def alternatives(setting: Setting, work: MethodWork) -> Iterator[Setting]:
    """Every setting that may be proposed: no less sharding, no offload with a perturbation, whole micro-batches."""
    micro_batches = [size for size in divisors(setting.micro_batch) if size >= least_micro_batch(setting, work)]
    for checkpointing, micro, (nodes, gpus), (engine, offload), storage in product(
        {setting.checkpointing, True}, micro_batches, machines(setting), engines(setting, work), STORAGE
    ):
        other = replace(
            setting,
            engine=engine,
            offload=offload,
            nodes=nodes,
            gpus_per_node=gpus,
            micro_batch=micro,
            checkpointing=checkpointing,
            bucket_bytes=setting.bucket_bytes if engine == setting.engine else 0.0,
            **({} if storage == "float32" else STORAGE[storage]),
        )
        if works(setting, other, work):
            yield other


STORAGE: dict[str, dict[str, Any]] = {
    "float32": {},
    "split": {"split": True},
    "split, int8": {"split": True, "moment_bytes": INT8_MOMENTS},
    "split, int8, bfloat16": {"split": True, "moment_bytes": INT8_MOMENTS, "gradient_bytes": 2.0},
}
"""Ways to store weights, moments and gradients, from as they are on in how much they save (src/combinations.py)."""


def works(before: Setting, after: Setting, work: MethodWork) -> bool:
    """Whether a setting is one that training takes."""
    if after.global_batch % (after.micro_batch * after.world):
        return False
    if after.world > 1 and after.engine == "single":
        return False
    if after.world == 1 and after.engine not in ("single", before.engine) and not after.offload:
        return False
    if after.checkpointing and work.perturbation == "sketch":
        return False
    if after.engine != "single" and work.perturbation == "stream":
        return False
    if not after.split or before.split:
        return True
    # split weights are AdamW's on engines that keep them whole; what moves weights was not tried with them
    whole = after.engine == "single" or (after.engine == "ddp" and after.gradient_bytes == 2)
    return whole and after.bfloat16 and before.moment_bytes == FLOAT_MOMENTS and work.perturbation == "none"


def least_micro_batch(setting: Setting, work: MethodWork) -> int:
    """Pairs that a forward of a rank must have: statistics of one forward change with it, so it stays."""
    return setting.micro_batch if work.within_forward else 1


def divisors(number: int) -> list[int]:
    """Its divisors, in order."""
    return [size for size in range(1, number + 1) if number % size == 0]


def machines(setting: Setting) -> Iterator[tuple[int, int]]:
    """(nodes, GPUs of each), from those that there are up."""
    nodes, gpus = setting.nodes, setting.gpus_per_node
    yield nodes, gpus
    while nodes * gpus < MOST_GPUS:
        nodes, gpus = (nodes, 2 * gpus) if 2 * gpus <= PER_NODE else (2 * nodes, gpus)
        yield nodes, gpus


def engines(setting: Setting, work: MethodWork) -> Iterator[tuple[str, bool]]:
    """(engine, offload), the same one first. GAPO's estimates need whole parameters, which no sharding engine has."""
    for engine, sharding in SHARDING.items():
        if sharding < SHARDING[setting.engine] or (sharding and work.perturbation in WHOLE):
            continue
        yield engine, setting.offload
        if sharding and not setting.offload and work.perturbation == "none":
            yield engine, True


def size_of_change(before: Setting, after: Setting) -> tuple[Any, ...]:
    """The greatest part of a change first; among equals the larger micro-batch, the fewer GPUs, the familiar engine."""
    return (
        after.offload - before.offload,
        after.world // before.world,
        (
            after.split - before.split,
            before.moment_bytes - after.moment_bytes,
            before.gradient_bytes - after.gradient_bytes,
        ),
        SHARDING[after.engine] - SHARDING[before.engine],
        before.micro_batch // after.micro_batch,
        after.checkpointing - before.checkpointing,
        list(SHARDING).index(after.engine),
    )


def overrides(before: Setting, after: Setting) -> tuple[str, ...]:
    """What to write for the change."""
    pairs: dict[str, tuple[Any, Any]] = {
        "model.gradient_checkpointing": (before.checkpointing, after.checkpointing),
        "training.micro_batch_size": (before.micro_batch, after.micro_batch),
        "engine": (before.option, after.option),
        "training.master": (before.split, after.split and "split"),
        "training.moments": (before.moment_bytes, "int8" if after.moment_bytes == INT8_MOMENTS else after.moment_bytes),
        "training.gradients": (
            before.gradient_bytes,
            "bfloat16" if after.gradient_bytes == 2 else after.gradient_bytes,
        ),
        "nodes": (before.nodes, after.nodes),
        "gpus_per_node": (before.gpus_per_node, after.gpus_per_node),
    }
    return tuple(f"{key}={str(new).lower()}" for key, (old, new) in pairs.items() if old != new)
