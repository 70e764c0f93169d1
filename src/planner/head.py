"""Memory of the output layer: the one place that knows how logits become log-probs (src/model/logps.py)."""

from __future__ import annotations

from src.planner.sizes import ModelShape, Precision


def head_forward(shape: ModelShape, precision: Precision, supervised: int) -> int:
    """Peak bytes while the logits of ``supervised`` tokens are made, in the computing type and then in float32."""
    made = 0 if precision == "float32" else 2
    if not shape.capped_logits:
        return (4 + made) * supervised * shape.vocabulary
    # quotient, tanh and product lie side by side where nothing has to be converted
    return (12 if precision == "float32" else 8) * supervised * shape.vocabulary


def head_backward(shape: ModelShape, precision: Precision, supervised: int, weight_gradient: int) -> int:
    """Peak bytes in the backward pass: float32 logits, their exponentials, and the gradients of the gathered logit and
    of the log-sum; or, when those are gone, the gradient of the logits in both types and ``weight_gradient``, the bytes
    of that of the head. A soft-cap keeps its tanh."""
    made = 0 if precision == "float32" else 2
    kept = (made or 4) if shape.capped_logits else 0
    entries = supervised * shape.vocabulary
    return max((16 + kept) * entries, (4 + made) * entries + weight_gradient)
