"""From a configuration to what the planner computes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from src.combinations import OFFLOAD
from src.engine.create import refuse_missing_package, refuse_uneven_batch
from src.errors import UserError
from src.model.packed import KNOWN
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe, GradientNorms, Probe, Sharpness
from src.planner.gpus import GPUS, Gpu
from src.planner.sizes import FLOAT_MOMENTS, INT8_MOMENTS, MethodWork, ModelShape, Perturbation, Rows, Setting
from src.schema import TrainConfig
from src.training.deferred import keeps_at_most, pairs_together

MOMENT_BYTES = {"float32": FLOAT_MOMENTS, "int8": INT8_MOMENTS}
"""By ``training.moments``."""


PROBES: dict[Probe, Perturbation] = {
    "perturb": "anchor",
    "sketch": "sketch",
    "stream": "stream",
    "first_order": "slopes",
}
"""GAPO's probes in the planner's words."""


@dataclass(frozen=True)
class Machines:
    """What a run is planned for: ``gpu`` a name of src/planner/gpus.py, or ``None`` for all of them."""

    nodes: int = 1
    gpus_per_node: int = 1
    gpu: str | None = None

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def gpus(self) -> list[Gpu]:
        return list(GPUS.values()) if self.gpu is None else [GPUS[self.gpu]]


def launch_problems(config: TrainConfig, machines: Machines) -> list[str]:
    """Why this engine cannot run on so many processes, as sentences."""
    problems, name = [], config.engine.name
    if name == "single" and machines.ranks > 1:
        problems.append(
            f"engine=single is one process, but nodes={machines.nodes} gpus_per_node={machines.gpus_per_node} are "
            f"{machines.ranks}, each of which would train alone; write engine=ddp, fsdp2, zero2 or zero3"
        )
    try:
        refuse_missing_package(name)
    except UserError as error:
        problems.append(str(error))
    try:
        # sizes below 1 are refused for themselves
        if min(config.training.micro_batch_size, config.training.global_batch_size) >= 1:
            refuse_uneven_batch(config, machines.ranks)
    except UserError as error:
        problems.append(str(error))
    return problems


def setting_of(config: TrainConfig, machines: Machines) -> Setting:
    """What of a configuration decides memory and time, besides model and method."""
    engine, training = config.engine, config.training
    return Setting(
        engine=engine.name.removesuffix(OFFLOAD),
        offload=engine.name.endswith(OFFLOAD),
        nodes=machines.nodes,
        gpus_per_node=machines.gpus_per_node,
        micro_batch=training.micro_batch_size,
        global_batch=training.global_batch_size,
        checkpointing=config.model.gradient_checkpointing,
        bfloat16=config.model.dtype == "bfloat16",
        gradient_bytes=2.0 if training.gradients == "bfloat16" else 4.0,
        moment_bytes=4.0 if training.optimizer == "rmsprop" else MOMENT_BYTES[training.moments],
        split=training.master == "split",
        reshard=engine.reshard_after_forward is not False,
        bucket_bytes=(engine.bucket_mb or 0) * 2**20,
    )


def work_of(config: TrainConfig, objective: Objective, shape: ModelShape) -> MethodWork:
    """What the method asks of a step."""
    needs, perturbation = objective.needs, objective.perturbation
    scope = needs.statistics
    size = config.training.global_batch_size if scope == "window" else scope if isinstance(scope, int) else 0
    together = pairs_together(config, objective)
    return MethodWork(
        perturbation=kind_of(perturbation),
        moved=moved(getattr(perturbation, "scope", "full"), shape),
        adaptive=isinstance(perturbation, AnchorProbe) and perturbation.adaptive,
        statistics=size,
        within_forward=scope == "forward",
        mismatched=needs.mismatched,
        together=together,
        kept=keeps_at_most(config, objective) if together else 0,
    )


def kind_of(perturbation: Any) -> Perturbation:
    """A perturbation in the planner's words."""
    if isinstance(perturbation, AnchorProbe):
        return PROBES[perturbation.probe]
    if isinstance(perturbation, GradientNorms):
        return "norms"
    return "sharpness" if isinstance(perturbation, Sharpness) else "none"


def moved(scope: str, shape: ModelShape) -> int:
    """Parameters within the scope of a perturbation."""
    trained = shape.share.trained
    if scope == "lm_head":
        return min(shape.head, trained)
    return max(trained - shape.head, 0) if scope == "backbone" and not shape.tied else trained


def shares_prompts(config: TrainConfig) -> bool:
    """Whether a forward computes each prompt once for both responses."""
    return getattr(config.model, "layout", "padded") == "prefix" and config.model.architecture["model_type"] in KNOWN


def rows_of(lengths: np.ndarray[Any, Any], both: bool, *, packed: bool) -> Rows:
    """From the lengths of prompt, chosen and rejected response of every pair, [pairs, 3]; ``packed``: prompts are
    computed once for both."""
    prompt, chosen, rejected = lengths.T
    response = np.maximum(chosen, rejected) if both else chosen
    supervised = chosen + rejected if both else chosen
    return Rows(
        longest=int((prompt + response).max()),
        response=int(response.max()),
        tokens=float((prompt * (2 if both else 1) + supervised).mean()),
        supervised=float(supervised.mean()),
        both=both,
        packed=int((prompt + supervised).max()) if packed else 0,
        computed=float((prompt + supervised).mean()) if packed else None,
    )
