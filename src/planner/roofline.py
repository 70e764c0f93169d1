"""How long a step takes at best: arithmetic, memory and links, each at a stated share of its peak.

Work is counted in units, one forward of all pairs: a backward is one unit for the gradients of activations and one for
those of trained weights, checkpointing one more. The reference costs none: its log-probs are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.planner.engines import precision_of, sent
from src.planner.gpus import Gpu
from src.planner.sizes import MethodWork, ModelShape, Rows, Setting

UTILISATION = 0.40
"""Share of peak FLOP/s that training reaches on tokens that count (assumed: 40-50 % is usual at 8B and 2k tokens)."""

LINK_SHARE = 0.70
"""Share of a link's bandwidth that collectives reach (assumed)."""

SLOPE_UNITS = 3.6
"""Units of a forward-mode pass: measured, results/benchmarks/anchor_probes.json (2.21 steps of 3 units, less 3)."""

SKETCH_UNITS = 0.2
"""Units of the sketches of a pass: measured, benchmarks/gapo_cost.py (1.05 to 1.07 steps of 3 units, less 3)."""

UPDATE_BYTES = 28
"""Bytes that an AdamW update of one parameter reads and writes: weight, moments (both ways) and gradient, float32."""

HOST_LINK = 20.0
"""GB/s between a GPU and the host's memory, PCIe 4.0 x16 as far as it is reached (assumed)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. Gathers and reductions run beside the arithmetic, so the longer of the two counts."""

    arithmetic: float
    links: float
    update: float

    @property
    def total(self) -> float:
        return max(self.arithmetic, self.links) + self.update

    @property
    def limit(self) -> str:
        """What a step waits for."""
        longest = max(self.arithmetic, self.links, self.update)
        return {self.arithmetic: "arithmetic", self.links: "communication"}.get(longest, "the update")


@dataclass(frozen=True)
class Passes:
    """Passes through the window, each of all pairs: forwards, gradients of activations, gradients of weights, passes
    along a direction, and sketches of what a pass gave."""

    forwards: int
    backwards: int = 1
    updates: int = 1
    slopes: int = 0
    sketches: int = 0


def passes_of(work: MethodWork, setting: Setting) -> Passes:
    """What a method does with each pair in a step: SimPO one pass; GAPO also the margin's gradient and a forward at
    the anchor; SAM a second pass; statistics over several forwards a look ahead. Where what layers were given is kept,
    GAPO needs no second forward and backward for the update, and statistics no look ahead."""
    held = keeps(work, setting)
    more = (1 if work.mismatched else 0) + (0 if held or fits_in_forwards(work.statistics, setting) else 1)
    if work.perturbation == "anchor":
        return Passes(2 + more, 1, 2) if held else Passes(3 + more, 2, 2)
    if work.perturbation == "sketch":
        return Passes(1 + more, sketches=1) if held else Passes(2 + more, 2, 1, sketches=1)
    if work.perturbation == "slopes":
        return Passes(2 + more, 2, 2, slopes=1)
    count = 1 if work.perturbation in ("none", "stream") else 2
    return Passes(count + more, count, count)


def keeps(work: MethodWork, setting: Setting) -> bool:
    """Whether what layers were given is there until the pairs are weighed, as training/deferred.py asks."""
    forwards = -(-work.together // (setting.micro_batch * setting.world))
    return setting.engine in ("single", "ddp") and not setting.checkpointing and 0 < forwards <= work.kept


def fits_in_forwards(statistics: int, setting: Setting) -> bool:
    """Whether every group of ``statistics`` pairs lies within a forward of all ranks, as training/step.py asks."""
    pairs = setting.micro_batch * setting.world
    return statistics == 0 or pairs >= setting.global_batch or pairs % statistics == 0


def units_of(shape: ModelShape, work: MethodWork, setting: Setting) -> tuple[float, float]:
    """Units of body and head in a step."""
    passes = passes_of(work, setting)
    shared = passes.forwards + passes.backwards + passes.updates * shape.share.trained / shape.share.total
    shared += SLOPE_UNITS * passes.slopes + SKETCH_UNITS * passes.sketches
    return shared + (passes.backwards if setting.checkpointing else 0), shared


def forward_flops(shape: ModelShape, rows: Rows) -> tuple[float, float]:
    """FLOPs of body and head in one forward of one pair, at the average length: two for each parameter of a matrix and
    token, and attention's two products (causal: half of them, unless every score is made)."""
    of_row = rows.forwarded / rows.per_pair
    scores = rows.per_pair * of_row**2 * (1.0 if shape.eager else 0.5)
    attention = 2 * 2 * shape.layers * shape.query_width * scores
    head = 2.0 * shape.head * rows.supervised
    return 2.0 * (shape.linear - shape.head) * rows.forwarded + attention, head


def step_flops(shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting) -> float:
    """FLOPs of a step, over all GPUs."""
    units, flops = units_of(shape, work, setting), forward_flops(shape, rows)
    return setting.global_batch * sum(unit * flop for unit, flop in zip(units, flops, strict=True))


def step_time(gpu: Gpu, shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting) -> StepTime:
    """Time of a step on ``setting.world`` such GPUs."""
    peak = (gpu.fp32 if precision_of(setting) == "float32" else gpu.bf16) * 1e12
    passes = passes_of(work, setting)
    forwards = setting.micro_steps * (passes.forwards + passes.slopes)
    data = sent(setting, shape, forwards, setting.micro_steps * passes.updates, passes.updates)
    # a ring is as fast as its slowest edge: between servers all their adapters carry it together
    link = gpu.nvlink if setting.nodes == 1 else min(gpu.nvlink, gpu.network)
    sharded = setting.world if setting.engine not in ("single", "ddp") else 1
    update = UPDATE_BYTES * shape.share.trained / sharded / (gpu.hbm * 1e9)
    if setting.offload:
        update += 2 * 4 * shape.share.trained / setting.world / (HOST_LINK * 1e9)
    return StepTime(
        arithmetic=step_flops(shape, rows, work, setting) / setting.world / (peak * UTILISATION),
        links=data / (link * LINK_SHARE * 1e9),
        update=update,
    )
