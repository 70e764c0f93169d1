"""How the numbers of single pairs lie: histograms over the last validation, which means alone do not show."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "distributions.json"
KEPT = ("rewards/margins", "target/mean", "weight/mean", "weight/gradient")
"""Metrics of a pair whose histogram is kept."""

BINS = 32
TAIL = 0.005
"""Share of the values at either end that fall into the outermost bins."""

MOST = 1_000_000
"""``torch.quantile`` takes no more values; the first so many pairs stand for all."""


def histogram(values: Tensor) -> dict[str, Any]:
    """``{"edges": [n + 1], "counts": {"pairs": [n]}}`` of the finite values, [m]; where all are the same, that one edge
    and one count."""
    values = values.detach().double().flatten().cpu()
    values = values[torch.isfinite(values)]
    if not len(values):
        return {"edges": [], "counts": {"pairs": []}}
    low, high = (float(bound) for bound in torch.quantile(values[:MOST], torch.tensor([TAIL, 1 - TAIL]).double()))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        return {"edges": [low], "counts": {"pairs": [len(values)]}}
    counts = torch.histc(values.clamp(low, high), BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return {"edges": edges.tolist(), "counts": {"pairs": [int(count) for count in counts]}}


def keep_distributions(run_dir: Path, step: int, pair_metrics: Mapping[str, Tensor]) -> None:
    """Write ``distributions.json``, whole: histograms over the pairs validated after ``step``."""
    found = {name: histogram(pair_metrics[name]) for name in KEPT if name in pair_metrics}
    aside = run_dir / f".{FILE}.{os.getpid()}"
    aside.write_text(json.dumps({"step": step, "split": "validation", "metrics": found}) + "\n", encoding="utf-8")
    aside.replace(run_dir / FILE)
