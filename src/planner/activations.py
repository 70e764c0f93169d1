"""What a transformer block keeps for its backward pass, per token, as transformers' implementations do it.

Counted from the tensors that autograd saves there; ``python -m benchmarks.memory_plan`` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.planner.sizes import ModelShape, Precision


@dataclass(frozen=True)
class Family:
    """Values that a block of one family keeps per token.

    Of the model's width: ``stream`` in the type of the residual stream, ``upcast`` always in float32 (norms), and the
    inputs of the projections: two, of which autocast makes one copy for each of ``readers`` matrices. ``inner``: of the
    feed-forward width. ``queries``: of the queries' width, by an attention that keeps no probabilities;
    ``keys``: of the keys' width likewise. ``statistics``: float32 numbers of the norms. ``masks``: kinds of attention.
    """

    stream: int
    upcast: int
    readers: int
    inner: int
    queries: int
    keys: int
    statistics: int
    masks: int = 1


LLAMA = Family(stream=2, upcast=2, readers=5, inner=4, queries=2, keys=2, statistics=2)
"""Two RMS norms; queries and attention output; keys, values; gate, its activation, up, their product."""

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    # four norms, each in float32 throughout
    "gemma2": Family(stream=0, upcast=8, readers=5, inner=4, queries=2, keys=2, statistics=4, masks=2),
    # both norms read one stream; queries, keys, output and its copy, and the fused projection that values are a view of
    "gpt_neox": Family(stream=1, upcast=0, readers=2, inner=2, queries=7, keys=0, statistics=4),
}
"""By ``model_type``; any other is taken for a Llama."""


def family_of(kind: str) -> Family:
    """The family of an architecture."""
    return FAMILIES.get(kind, LLAMA)


def compute_bytes(precision: Precision) -> int:
    """Bytes of a value that matrices are multiplied in."""
    return 4 if precision == "float32" else 2


def stream_bytes(precision: Precision) -> int:
    """Bytes of a value of the residual stream: with autocast it stays in the type of the embedding, float32."""
    return 2 if precision == "bfloat16" else 4


def block_bytes(shape: ModelShape, precision: Precision, length: int) -> int:
    """Bytes that one block keeps per token of a row of ``length`` tokens."""
    family, each = family_of(shape.kind), compute_bytes(precision)
    of_stream = family.stream * stream_bytes(precision) + family.upcast * 4
    inputs = (family.readers if precision == "autocast" else 2) * each
    return (
        shape.hidden * (of_stream + inputs)
        + shape.inner * family.inner * each
        + attention_bytes(shape, family, each, length)
        + 4 * family.statistics
    )


def attention_bytes(shape: ModelShape, family: Family, each: int, length: int) -> int:
    """Bytes that attention keeps per token: its inputs and output, and eager attention the probabilities of a row in
    float32, in the computing type where that is another, and before them the capped scores."""
    if not shape.eager:
        return (shape.query_width * family.queries + shape.key_width * family.keys) * each + 4 * shape.heads
    of_score = 4 + (each if each != 4 else 0) + (each if shape.capped_scores else 0)
    return shape.query_width * 4 * each + shape.heads * length * of_score


def body_bytes(shape: ModelShape, precision: Precision, length: int, *, checkpointing: bool) -> int:
    """Bytes that all blocks keep per token: everything, or with ``checkpointing`` their inputs alone."""
    one = shape.hidden * stream_bytes(precision) if checkpointing else block_bytes(shape, precision, length)
    return shape.layers * one


def last_norm_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes that the norm after the last block keeps per token."""
    upcast = family_of(shape.kind).upcast > 0
    return shape.hidden * (stream_bytes(precision) + (4 if upcast else 0))


def mask_bytes(shape: ModelShape, precision: Precision, length: int) -> int:
    """Bytes per token of the masks of eager attention, which all blocks share."""
    return family_of(shape.kind).masks * length * stream_bytes(precision) if shape.eager else 0


def working_bytes(shape: ModelShape, precision: Precision, length: int) -> int:
    """Bytes per token of gradients on their way through one block, beyond what they replace: of the feed-forward part
    those of two of its tensors, or of eager attention's scores, whichever are more."""
    each = compute_bytes(precision)
    of_scores = shape.heads * length * (4 + each) if shape.eager else 0
    return max(2 * shape.inner * each, of_scores) + shape.hidden * stream_bytes(precision)
