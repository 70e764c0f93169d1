"""Histograms over the pairs of a validation, as a run directory keeps them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from src.reporting.pages.curves import distribution_charts
from src.reporting.runs import Run
from src.training.distributions import BINS, histogram, keep_distributions


def test_every_finite_value_is_counted_once() -> None:
    found = histogram(torch.tensor([*range(1000), 1e9, math.nan, math.inf]))
    assert sum(found["counts"]["pairs"]) == 1001
    assert len(found["edges"]) == BINS + 1
    assert found["edges"] == sorted(found["edges"])
    assert found["edges"][-1] < 1000  # the outlier is in the last bin and does not stretch the others


def test_equal_values_are_one_bin_and_no_values_none() -> None:
    assert histogram(torch.ones(7)) == {"edges": [1.0], "counts": {"pairs": [7]}}
    assert histogram(torch.tensor([math.nan])) == {"edges": [], "counts": {"pairs": []}}
    assert sum(histogram(torch.tensor([0.0] * 1000 + [1.0]))["counts"]["pairs"]) == 1001


def test_the_last_validation_is_kept_and_drawn(tmp_path: Path) -> None:
    for step in (0, 5):
        margins = torch.linspace(-1.0, 1.0, 64) + step
        keep_distributions(tmp_path, step, {"rewards/margins": margins, "weight/mean": torch.ones(64), "x": margins})
    assert [path.name for path in tmp_path.iterdir()] == ["distributions.json"]
    kept = json.loads((tmp_path / "distributions.json").read_text())
    assert (kept["step"], kept["split"], set(kept["metrics"])) == (5, "validation", {"rewards/margins", "weight/mean"})
    margins, weights = distribution_charts(Run(tmp_path, distributions=kept), [])
    assert "at step 5" in margins.title
    assert margins.drawing.count('class="bars"') == 1
    assert "All 64 pairs have 1." in weights.drawing
