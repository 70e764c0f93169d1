"""From a configuration to its engine, and what is refused before one is made."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from src.combinations import OFFLOAD
from src.engine.join import join
from src.engine.local import LocalEngine, device_of, refuse_missing_device
from src.engine.ranks import Ranks, launched, ranks
from src.errors import UserError
from src.schema import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEEPSPEED = ("zero2", "zero3")
SHARDED_WEIGHTS = ("fsdp2", "zero3")
"""Engines that need the initial weights on rank 0 alone."""


def create_engine(config: TrainConfig, model: PreTrainedModel, total_steps: int) -> LocalEngine:
    """The engine of a run around ``model``; collective where there are several ranks."""
    training, dtype = config.training, config.model.dtype
    name = kind_of(config)
    if config.engine.compile_blocks:
        from src.model.compiled import compile_blocks

        compile_blocks(model)
    if name == "single":
        return LocalEngine(model, training, total_steps, config.engine.device, dtype)
    if name == "ddp":
        from src.engine.distributed import DdpEngine

        return DdpEngine(model, training, total_steps, config.engine, dtype)
    if name == "fsdp2":
        from src.engine.fsdp import Fsdp2Engine

        return Fsdp2Engine(model, training, total_steps, config.engine, dtype)
    from src.engine.zero import ZeroEngine

    return ZeroEngine(model, training, total_steps, config.engine, dtype)


def kind_of(config: TrainConfig) -> str:
    """The engine's name without its variant."""
    return config.engine.name.removesuffix(OFFLOAD)


def needs_weights(config: TrainConfig, me: Ranks) -> bool:
    """Whether this rank must have the initial weights, or gets its shard of them from rank 0."""
    return me.is_main or kind_of(config) not in SHARDED_WEIGHTS


def joined_ranks(config: TrainConfig) -> Ranks:
    """All ranks of a run, met where its engine is of several; raises ``UserError`` when they were not started for it,
    or do not meet."""
    refuse_unfit_launch(config)
    if config.engine.timeout_s is None:
        return ranks()
    return join(device_of(config.engine.device, ranks()), config.engine.timeout_s)


def refuse_unfit_launch(config: TrainConfig) -> None:
    """Raise ``UserError`` when this process was not started as the engine needs it: alone, or as one of several."""
    refuse_missing_device(config.engine.device)
    name, me = config.engine.name, ranks()
    refuse_missing_package(name)
    if not launched():
        tasks = max(int(os.environ.get(key, 1)) for key in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
        if tasks > 1:
            raise UserError(
                f"a launcher started {tasks} processes without telling them of each other (RANK and WORLD_SIZE are not "
                "set), so each would train alone; let it start one torchrun per machine (slurm/train.sbatch does)"
            )
        if name != "single":
            raise UserError(
                f"engine={name} is for several processes, and this one was started alone; write "
                f"torchrun --nproc-per-node N -m src.train ... in place of python -m src.train, or engine=single"
            )
    elif name == "single" and me.size > 1:
        raise UserError(
            f"engine=single was started by a launcher as one of {me.size} processes, each of which would train alone; "
            "start it with plain python, or write engine=ddp, fsdp2, zero2 or zero3"
        )
    refuse_uneven_batch(config, me.size)
    if me.size > 1 and config.method.get("queue_scope") == "rank":
        raise UserError(
            "method.queue_scope=rank keeps a queue of margins for each rank, but here each knows the margins of all; "
            "use method.queue_scope=global, whose result does not depend on the number of ranks"
        )


def refuse_missing_package(name: str) -> None:
    """Raise ``UserError`` when the engine of that name needs a package that is not installed."""
    if name.removesuffix(OFFLOAD) in DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"engine={name} needs the package deepspeed; pip install -r requirements/cluster.txt, or use engine=fsdp2, "
            "which shards as much without it"
        )


def refuse_uneven_batch(config: TrainConfig, size: int) -> None:
    """Raise ``UserError`` when the global batch cannot be cut into whole forwards of ``size`` ranks."""
    batch, micro = config.training.global_batch_size, config.training.micro_batch_size
    if size == 1 or batch % (micro * size) == 0:
        return
    where = (
        f"training.global_batch_size={batch} cannot be divided among {size} ranks of training.micro_batch_size={micro}"
    )
    fitting = [pairs for pairs in range(1, batch + 1) if batch % (pairs * size) == 0]
    if fitting:
        near = min(fitting, key=lambda pairs: abs(pairs - micro))
        raise UserError(f"{where} pairs a forward; use training.micro_batch_size={near}")
    possible = [count for count in range(1, batch + 1) if batch % (count * micro) == 0]
    near = min(possible, key=lambda count: abs(count - size), default=1)
    raise UserError(
        f"{where} pairs a forward, whatever the micro-batch; use a number of ranks that divides {batch}, such as {near}"
    )
