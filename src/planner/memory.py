"""The most that a step holds on one GPU, by what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from src.planner.activations import (
    block_bytes,
    body_bytes,
    last_norm_bytes,
    mask_bytes,
    stream_bytes,
    working_bytes,
)
from src.planner.engines import (
    ENGINES,
    MASTER,
    States,
    backward_buffers,
    forward_buffers,
    precision_of,
    snapshot,
    states_of,
)
from src.planner.head import head_backward, head_forward
from src.planner.sizes import MethodWork, ModelShape, Rows, Setting

TEMPORARIES = 4
"""Float32 copies of the largest parameter that moving it takes: the move, the weight in both types, the difference."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the worst moment of a step, which is its ``phase``.

    ``snapshot``: parameters as they were before a perturbation, or the sums that a stream of gradients goes to.
    ``buffers``: gathered layers, casts, buckets, temporary gradients. ``host``: bytes in the memory of a node that
    offloads. The reference takes nothing: its log-probs are read from the store.
    """

    weights: int
    gradients: int
    optimizer: int
    snapshot: int = 0
    buffers: int = 0
    activations: int = 0
    logits: int = 0
    phase: str = ""
    host: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in PARTS)


PARTS = ("weights", "gradients", "optimizer", "snapshot", "buffers", "activations", "logits")


def memory_of(shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting) -> Memory:
    """The largest of a step's phases, where every row of a micro-batch is as long as the longest of the data."""
    return max(phases(shape, rows, work, setting), key=lambda memory: memory.total)


def phases(shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting) -> list[Memory]:
    """The end of the forward, the backward of head and of blocks, and the moment in which weights are moved."""
    precision = precision_of(setting)
    tokens = setting.micro_batch * rows.at_most
    supervised = setting.micro_batch * rows.per_pair * rows.response
    kept = kept_activations(shape, rows, setting)
    base = resting(states_of(setting, shape.share))
    if work.perturbation == "sharpness":
        base = replace(base, snapshot=snapshot(setting, work.moved))
    if work.perturbation == "stream":
        base = replace(base, snapshot=MASTER * (work.moved + shape.share.trained))
    forward, backward = forward_buffers(setting, shape), backward_buffers(setting, shape)
    inside = tokens * working_bytes(shape, precision, rows.longest)
    inside += tokens * body_bytes(shape, precision, rows.longest, checkpointing=setting.checkpointing)
    inside += tokens * mask_bytes(shape, precision, rows.longest)
    if setting.checkpointing:
        inside += tokens * block_bytes(shape, precision, rows.longest)
    found = [
        replace(
            base,
            phase="end of the forward",
            activations=kept,
            logits=head_forward(shape, precision, supervised),
            buffers=forward,
        ),
        replace(
            base,
            phase="backward of the head",
            activations=kept,
            logits=head_backward(shape, precision, supervised),
            buffers=backward,
        ),
        replace(
            base,
            phase="backward of a block",
            activations=inside,
            buffers=backward,
        ),
    ]
    if ENGINES[setting.engine].copies:
        # gradients are flattened into one tensor for the masters
        found.append(replace(base, phase="update", buffers=base.gradients))
    return found + moving(shape, rows, work, setting, base)


def resting(states: States) -> Memory:
    """What is there all the time."""
    return Memory(states.weights, states.gradients, states.optimizer, host=states.host)


def kept_activations(shape: ModelShape, rows: Rows, setting: Setting) -> int:
    """Bytes that the forward of one micro-batch keeps for its backward, without those of the head's logits."""
    precision = precision_of(setting)
    tokens = setting.micro_batch * rows.at_most
    supervised = setting.micro_batch * rows.per_pair * rows.response
    per_token = body_bytes(shape, precision, rows.longest, checkpointing=setting.checkpointing)
    per_token += last_norm_bytes(shape, precision) + mask_bytes(shape, precision, rows.longest)
    read_by_head = 2 if precision != "float32" else stream_bytes(precision)
    return tokens * per_token + supervised * shape.hidden * read_by_head


def moving(shape: ModelShape, rows: Rows, work: MethodWork, setting: Setting, base: Memory) -> list[Memory]:
    """The moment in which a perturbation moves the weights, or differentiates along the gradient."""
    if work.perturbation in ("anchor", "sharpness"):
        held, whole = snapshot(setting, work.moved), MASTER * work.moved
        largest = min(shape.head, work.moved)
        # one tensor after the other is moved, of a shard its share of the tensor
        temporaries = TEMPORARIES * MASTER * largest * held // max(whole, 1)
        return [replace(base, phase="perturbation", snapshot=held, buffers=temporaries)]
    if work.perturbation == "slopes":
        supervised = setting.micro_batch * rows.per_pair * rows.response
        scores = setting.micro_batch * rows.per_pair * shape.heads * rows.longest**2
        return [
            replace(
                base,
                phase="forward along the gradient",
                snapshot=MASTER * work.moved if work.adaptive else 0,
                activations=2 * 2 * MASTER * scores,
                logits=2 * head_forward(shape, precision_of(setting), supervised),
                buffers=forward_buffers(setting, shape),
            )
        ]
    return []
