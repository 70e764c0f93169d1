"""What a plan is computed from: sizes of model, rows, method and machines, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from src.model.trainable import Share

Precision = Literal["float32", "autocast", "bfloat16"]
"""How a forward computes: in float32; in bfloat16 over float32 weights, by autocast; in bfloat16 throughout."""


Perturbation = Literal["none", "anchor", "slopes", "sketch", "stream", "norms", "sharpness"]
"""What a step does besides the update (see ``MethodWork``)."""

FLOAT_MOMENTS, INT8_MOMENTS = 8.0, 2 + 2 * 4 / 256
"""Bytes of AdamW's two moments of a parameter: in float32, and in 8 bits with a float32 scale for each 256."""


@dataclass(frozen=True)
class ModelShape:
    """An architecture in numbers. Widths in values; ``block`` (the largest one) and ``linear`` in parameters.

    ``linear``: what matrices hold, the head included, which is what a token is multiplied with. ``eager``: attention
    keeps its probabilities. ``known``: what a block keeps was measured for this kind of architecture.
    """

    kind: str
    layers: int
    hidden: int
    inner: int
    heads: int
    query_width: int
    key_width: int
    vocabulary: int
    tied: bool
    capped_scores: bool
    capped_logits: bool
    eager: bool
    share: Share
    block: int
    linear: int
    known: bool

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.hidden * self.vocabulary

    @property
    def rest(self) -> int:
        """Parameters outside the blocks: embedding, head, last norm."""
        return max(self.share.total - self.layers * self.block, 0)


@dataclass(frozen=True)
class Rows:
    """Tokens of the data. ``longest``: prompt and response; ``response``: the longest response alone; of a pair, both
    rows together, ``tokens`` and ``supervised`` on average. ``both``: whether rejected responses are computed.

    Where each prompt is computed once for both rows, ``packed``: tokens of the longest pair, and ``computed``: of an
    average one.
    """

    longest: int
    response: int
    tokens: float
    supervised: float
    both: bool
    packed: int = 0
    computed: float | None = None

    @property
    def per_pair(self) -> int:
        return 2 if self.both else 1

    @property
    def at_most(self) -> int:
        """Tokens of the pair that has most, as it is laid out."""
        return self.packed or self.per_pair * self.longest

    @property
    def forwarded(self) -> float:
        """Tokens of a pair on average that a forward computes."""
        return self.tokens if self.computed is None else self.computed


@dataclass(frozen=True)
class MethodWork:
    """What a method asks of a step besides one forward and one backward.

    ``perturbation``: none, anchor (GAPO: a backward, and a forward at moved weights), slopes (GAPO's first order: a
    backward, and a forward-mode pass), sketch and stream (the same by estimates), norms (a backward per pair) or
    sharpness (SAM: a second backward at moved weights). ``moved``: parameters that it moves. ``statistics``: pairs a
    group is taken over (0: none or one forward). ``within_forward``: over the pairs of one forward, whose number then
    matters. ``mismatched``: a further forward. ``adaptive``: the direction is a copy of its own.

    ``together``: pairs that are weighed at once, after a forward and backward; ``kept``: forwards of which what layers
    were given may wait for that, which saves a second forward (``src/training/deferred.py``); 0: none.
    """

    perturbation: Perturbation = "none"
    moved: int = 0
    adaptive: bool = False
    statistics: int = 0
    within_forward: bool = False
    mismatched: bool = False
    together: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Setting:
    """What can be changed until a run fits: engine, machines, pairs a forward of one rank, checkpointing.

    ``engine``: a name of conf/engine without ``_offload``. ``bucket_bytes``: 0 where the engine has none. ``split``:
    weights are stored as bfloat16 and their lower halves; ``gradient_bytes`` and ``moment_bytes`` of one parameter.
    """

    engine: str
    nodes: int
    gpus_per_node: int
    micro_batch: int
    global_batch: int
    checkpointing: bool
    bfloat16: bool
    gradient_bytes: float = 4.0
    moment_bytes: float = FLOAT_MOMENTS
    split: bool = False
    offload: bool = False
    reshard: bool = True
    bucket_bytes: float = 0.0

    @property
    def option(self) -> str:
        """The engine as it is chosen: ``engine=...``."""
        return f"{self.engine}_offload" if self.offload else self.engine

    @property
    def world(self) -> int:
        """Processes, one a GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def micro_steps(self) -> int:
        """Forwards of a rank in one pass over the global batch."""
        return -(-self.global_batch // (self.micro_batch * self.world))
