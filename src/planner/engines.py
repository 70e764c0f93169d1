"""What each engine holds on a GPU, and what it sends; one entry for each name of conf/engine."""

from __future__ import annotations

from dataclasses import dataclass

from src.model.trainable import Share
from src.planner.activations import compute_bytes
from src.planner.sizes import ModelShape, Precision, Setting

MASTER = 4
"""Bytes of a weight of full precision, and of its gradient, on every engine: float32."""

LIVE = 10**9
"""Parameters that DeepSpeed keeps gathered at a time (stage3_max_live_parameters, which is left as it is)."""

BUCKET = 25 * 2**20
"""Bytes of a bucket where the engine's settings name none."""


@dataclass(frozen=True)
class Facts:
    """What of a model is sharded over ranks. ``copies``: low-precision weights lie beside float32 masters, which count
    as optimizer state (DeepSpeed). ``buckets``: how many buckets of ``engine.bucket_mb`` it holds."""

    shards_weights: bool = False
    shards_states: bool = False
    copies: bool = False
    buckets: int = 0


ENGINES = {
    "single": Facts(),
    # gradients are views of the buckets, which so take nothing
    "ddp": Facts(),
    "fsdp2": Facts(shards_weights=True, shards_states=True),
    # one bucket fills while another is reduced, and a third gathers weights after the update
    "zero2": Facts(shards_states=True, copies=True, buckets=3),
    "zero3": Facts(shards_weights=True, shards_states=True, copies=True, buckets=3),
}


@dataclass(frozen=True)
class States:
    """Bytes on one GPU (and in the host's memory, of all ranks of a node) that stay from step to step."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0


def precision_of(setting: Setting) -> Precision:
    """How forwards compute: engines that gather weights gather them in the computing type, the others cast."""
    if not setting.bfloat16:
        return "float32"
    return "autocast" if setting.engine in ("single", "ddp") and not setting.split else "bfloat16"


def states_of(setting: Setting, share: Share) -> States:
    """Weights, gradients and optimizer: exact, but for the padding of shards (at most a few elements a tensor)."""
    facts, each = ENGINES[setting.engine], compute_bytes(precision_of(setting))
    by = setting.world if facts.shards_states else 1
    weights = (each if facts.copies else MASTER) * share.total // (setting.world if facts.shards_weights else 1)
    gradients = int(setting.gradient_bytes * share.trained) // by
    masters = MASTER if facts.copies else 0
    optimizer = int((masters + setting.moment_bytes) * share.trained) // by
    if not setting.offload:
        return States(weights, gradients, optimizer)
    kept = 0 if facts.shards_weights else weights
    return States(kept, 0, 0, (weights - kept + gradients + optimizer) * setting.gpus_per_node)


def forward_buffers(setting: Setting, shape: ModelShape) -> int:
    """Bytes of weights in the computing type during a forward: casts, or the parts of the model gathered at a time."""
    if precision_of(setting) == "autocast":
        return 2 * shape.linear
    return gathered(setting, shape) + buckets(setting)


def backward_buffers(setting: Setting, shape: ModelShape) -> int:
    """The same during a backward, with gradients on their way to where they are summed.

    With checkpointing a block's casts are made again for its backward alone, and the head's are kept.
    """
    precision = precision_of(setting)
    if precision == "autocast":
        return 2 * (min(shape.head + shape.block, shape.linear) if setting.checkpointing else shape.linear)
    arriving = 0
    if setting.engine == "fsdp2":
        each = compute_bytes(precision)
        # the outermost part's gradient waits whole for the end of the backward; a block's is cast and reduced
        arriving = max(each * shape.head + (each + MASTER) * shape.block, (each + MASTER) * shape.rest)
    return gathered(setting, shape) + buckets(setting) + arriving


def gathered(setting: Setting, shape: ModelShape) -> int:
    """Bytes of weights that an engine with sharded weights has whole: what lies outside the blocks, the block that
    computes and the next one; more where they are not let go of at once."""
    if not ENGINES[setting.engine].shards_weights or setting.world == 1:
        return 0
    whole = shape.rest + 2 * shape.block
    if setting.engine == "zero3":
        whole = max(whole, LIVE)
    if not setting.reshard:
        whole = shape.share.total
    return compute_bytes(precision_of(setting)) * min(whole, shape.share.total)


def buckets(setting: Setting) -> int:
    """Bytes of an engine's buckets."""
    return ENGINES[setting.engine].buckets * int(setting.bucket_bytes or BUCKET)


def snapshot(setting: Setting, moved: int) -> int:
    """Bytes of the copy from which moved parameters come back, of full precision, as far as a rank holds them."""
    return MASTER * moved // (setting.world if ENGINES[setting.engine].shards_states else 1)


def sent(setting: Setting, shape: ModelShape, forwards: int, backwards: int, passes: int) -> float:
    """Bytes that a GPU sends in a step of ``forwards`` and ``backwards`` (of a rank's micro-batches, added up over
    ``passes`` passes through the window), with rings that send (W - 1)/W of what they gather or scatter.

    Within 1 % of what engines were counted to send (``python -m benchmarks.weak_scaling``), for models beyond what
    DeepSpeed keeps gathered; log-probs and norms, some bytes a pair, are left out.
    """
    world, share, each = setting.world, shape.share, compute_bytes(precision_of(setting))
    ring = (world - 1) / world
    if setting.engine == "ddp":
        # gradients agree after the last backward of a pass: summed, and sent back
        return passes * 2 * ring * MASTER * share.trained
    if setting.engine == "zero2":
        # every backward sums gradients on all ranks; weights are gathered when masters are moved, put back, updated
        return ring * (backwards * 2 * MASTER * share.trained + (2 * passes - 1) * each * share.total)
    if setting.engine in ("fsdp2", "zero3"):
        return ring * (each * gathers(setting, shape, forwards, backwards) + backwards * MASTER * share.trained)
    return 0.0


def gathers(setting: Setting, shape: ModelShape, forwards: int, backwards: int) -> float:
    """Parameters that a step gathers where weights are sharded."""
    total = shape.share.total
    if setting.engine == "zero3":
        return forwards * total + backwards * max(total - LIVE, 0)
    ahead = forwards - backwards
    # what is not let go of after a forward serves its backward, or the next forward without one
    once = backwards + ahead / setting.micro_steps
    if not setting.reshard:
        return once * total
    return (backwards + forwards) * (total - shape.rest) + once * shape.rest
