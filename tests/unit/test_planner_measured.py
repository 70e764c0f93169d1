"""Predicted memory against what operations allocate, on two small shapes (benchmarks/memory_plan.py has them all)."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.memory_plan import COMMON, FAMILIES, Case, compared

SMALL = COMMON | {"num_hidden_layers": 2, "vocab_size": 512}
TOLERANCE = {"activations": 0.05, "peak": 0.08}


@pytest.mark.parametrize(
    ("kind", "precision", "checkpointing"),
    [
        ("llama", "float32", False),
        ("llama", "autocast", True),
        ("gemma2", "autocast", False),
        ("gemma2", "float32", True),
    ],
)
def test_predictions(kind: str, precision: str, checkpointing: bool) -> None:
    """States to the byte; what a forward keeps, and the peak of forward and backward, within the tolerance."""
    found: dict[str, Any] = compared(Case(kind, SMALL | FAMILIES[kind], precision, checkpointing), "cpu")
    assert found["states"]["predicted"] == found["states"]["measured"]
    for what, tolerance in TOLERANCE.items():
        assert found[what]["predicted"] == pytest.approx(found[what]["measured"], rel=tolerance), what
