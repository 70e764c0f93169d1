"""DeepSpeed as this project starts it: accelerator, process group, settings; what must not happen silently."""

from __future__ import annotations

import logging
import os
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from src.combinations import OFFLOAD
from src.engine.ranks import Ranks
from src.schema import EngineConfig

BYTES = 4
"""Gradients are reduced in float32."""


def settings_of(engine: EngineConfig, stage: int, device: torch.device, compute: torch.dtype | None) -> dict[str, Any]:
    """The DeepSpeed configuration of an engine. Clipping, schedule and accumulation stay with the training step."""
    assert engine.bucket_mb is not None
    bucket = max(2, int(engine.bucket_mb * 2**20) // BYTES // 2 * 2)
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": stage == 3 and device.type == "cuda",
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if stage == 3:
        assert engine.persistence_threshold is not None
        zero["stage3_prefetch_bucket_size"] = bucket
        zero["stage3_param_persistence_threshold"] = engine.persistence_threshold
        # else it replaces torch's linear function for the whole process
        zero["memory_efficient_linear"] = False
    if engine.name.endswith(OFFLOAD):
        cpu = {"device": "cpu", "pin_memory": device.type == "cuda"}
        zero["offload_optimizer"] = cpu
        if stage == 3:
            zero["offload_param"] = cpu
    elif stage == 2:
        zero["compute_grad_norm"] = False  # the step has it already
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "bf16": {"enabled": compute is torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's, as every engine has it
        # DeepSpeed's own for the CPU is compiled for minutes at its first use; torch's is as fast within a factor
        "zero_force_ds_cpu_optimizer": False,
    }


def joined_deepspeed(device: torch.device, me: Ranks) -> Any:
    """The package, on ``device`` and on the process group that is there already."""
    os.environ.setdefault("LOCAL_RANK", str(me.local_rank))
    os.environ["DS_ACCELERATOR"] = device.type
    quiet()
    import deepspeed

    quiet()
    found = deepspeed.get_accelerator().device_name()
    assert found == device.type, f"DeepSpeed took {found} in place of {device.type}"
    if device.type == "cpu":
        # its shared-memory collectives would be compiled for a minute at the first start; gloo serves
        vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False, verbose=False)
    return deepspeed


def quiet() -> None:
    """No lines of DeepSpeed on the terminal but errors."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)


def started(
    module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], device: torch.device, me: Ranks
) -> Any:
    """The DeepSpeed engine around ``module``, whose parameters (float32, on the CPU) it may leave without values.

    It runs the stage that ``settings`` name, on all ranks, in their precision, or not at all.
    """
    deepspeed = joined_deepspeed(device, me)
    stage = settings["zero_optimization"]["stage"]
    if stage == 3:
        for parameter in module.parameters():
            # values come later; DeepSpeed would shard float32 as it is, and memory not written to takes no room
            parameter.data = torch.empty_like(parameter.data, dtype=compute_type(settings), device="cpu")
        # parameter by parameter, so that none but the one in hand is whole on the device
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=compute_type(settings))
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    engine, used, _, _ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, dist_init_required=False
    )
    assert engine.zero_optimization_stage() == stage, f"DeepSpeed runs stage {engine.zero_optimization_stage()}"
    assert engine.dp_world_size == me.size, f"DeepSpeed sees {engine.dp_world_size} of {me.size} ranks"
    assert used.optimizer is optimizer, f"DeepSpeed took another optimizer: {type(used.optimizer).__name__}"
    types = {getattr(parameter, "ds_tensor", parameter).dtype for parameter in module.parameters()}
    assert types == {compute_type(settings)}, f"DeepSpeed computes in {types}"
    assert hasattr(used, "fp16_groups" if stage == 3 else "bit16_groups"), type(used).__name__
    return engine


def compute_type(settings: dict[str, Any]) -> torch.dtype:
    """In what parameters are gathered."""
    return torch.bfloat16 if settings["bf16"]["enabled"] else torch.float32
