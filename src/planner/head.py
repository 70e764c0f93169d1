"""Memory of the output layer: the one place that knows how hidden states become log-probs (src/model/head.py)."""

from __future__ import annotations

import torch

from src.model.head import EXACT_ROWS, chunk_tokens
from src.planner.sizes import ModelShape, Precision

GPU = torch.device("cuda")


def head_forward(shape: ModelShape, precision: Precision, supervised: int) -> int:
    """Peak bytes while log-probs of ``supervised`` tokens are made: logits of one chunk in the computing type, of a few
    rows in float32 where that is another, and the slopes of a soft-cap."""
    each = 4 if precision == "float32" else 2
    chunk = min(supervised, chunk_tokens(shape.vocabulary, GPU))
    exact = chunk if each == 4 else min(EXACT_ROWS, chunk)
    # a row in float32 is there besides its chunk; the cap makes squares, and slopes from them
    copies = (0 if each == 4 else 1) + (2 if shape.capped_logits else 0)
    return each * chunk * shape.vocabulary + 4 * copies * exact * shape.vocabulary


def head_backward(shape: ModelShape, precision: Precision, supervised: int) -> int:
    """Peak bytes in the backward pass: the logits of a lone chunk as they were left by the forward, or of one chunk
    after the other made again, and the head's gradient in float32, with a chunk's share of it in the computing type."""
    each = 4 if precision == "float32" else 2
    chunk = chunk_tokens(shape.vocabulary, GPU)
    logits = each * supervised * shape.vocabulary if supervised <= chunk else head_forward(shape, precision, supervised)
    if shape.share.trained < shape.head:
        return logits
    return logits + shape.head * (4 if each == 4 else 4 + each)
