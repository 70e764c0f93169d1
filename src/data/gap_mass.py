"""How far apart the scores of pairs lie, and where each weighting of the gap puts the gradient (GapPO section 3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.data.sampler import permutation
from src.errors import UserError
from src.objective.types import MarginGroup, PairInputs, PairLogProbs, PairRewards, ResponseLogProbs, Weight
from src.objective.weights import ScoreGap, Uniform, score_gaps

WEIGHTINGS: dict[str, Weight] = {
    "uniform": Uniform(),
    "linear": ScoreGap("linear"),
    "quadratic": ScoreGap("quadratic"),
    "exponential": ScoreGap("exponential"),
    "normalized": ScoreGap("linear", normalized=True),
}
"""The weights of pairs that depend on scores alone; a hard filter is no weight but a choice of pairs."""
HARD = "hard_filter"
MOST_BINS = 200

Array = npt.NDArray[Any]


def scored_group(scores: Tensor) -> MarginGroup:
    """A group of pairs of which nothing but the scores, [n, 2] (chosen, rejected), is known."""
    zeros = torch.zeros(len(scores), dtype=scores.dtype)
    responses = ResponseLogProbs(zeros, zeros)
    inputs = PairInputs(PairLogProbs(responses, responses), chosen_scores=scores[:, 0], rejected_scores=scores[:, 1])
    return MarginGroup(PairRewards(zeros, zeros), inputs)


def weights_of(scores: Tensor, *, min_score_gap: float, batch: int, seed: int) -> dict[str, Array]:
    """Weight of each pair, [n], under every weighting, by name.

    ``min_score_gap``: what the hard filter keeps. ``batch``: over how many pairs ``normalized`` takes its mean, drawn
    as in the first pass of a training run with this ``seed``; the rest of that pass is a smaller batch.
    """
    everything, order = scored_group(scores), torch.tensor(permutation(len(scores), seed, 0))
    found = {}
    for name, weight in WEIGHTINGS.items():
        values = torch.empty(len(scores), dtype=scores.dtype)
        if weight.needs.statistics is None:
            values = weight(everything)
        else:
            for places in torch.split(order, batch):
                values[places] = weight(scored_group(scores[places]))
        found[name] = values.numpy()
        if name == "uniform":
            found[HARD] = (score_gaps(everything) >= min_score_gap).to(scores.dtype).numpy()
    return found


def gap_report(
    scores: Array,
    flipped: Array,
    *,
    bin_width: float | None,
    min_score_gap: float,
    batch: int,
    seed: int,
    trained: Array | None = None,
) -> dict[str, Any]:
    """Histogram of the gaps and gradient mass per bin, as plain data.

    ``scores``: [n, 2], chosen and rejected, none missing; ``flipped``: [n], whose labels noise exchanged;
    ``trained``: [n], how hard a trained model's own loss pushes each pair, whatever the sign, to show beside.
    The mass of a bin is the sum of its pairs' weights over the sum of all: the gradient that goes there while pairs are
    pushed alike by the loss itself, as they are by a model that knows nothing yet. ``counting``: (Σw)² / (n Σw²), the
    share of the pairs that would have the same spread if all counted alike. ``None`` where every weight is 0.
    """
    tensor = torch.as_tensor(scores, dtype=torch.float64)
    gaps = score_gaps(scored_group(tensor)).numpy()
    width = nice_width(float(gaps.max())) if bin_width is None else bin_width
    # a gap that rounding left just below an edge belongs above it
    count = max(1, math.ceil(gaps.max() / width - 1e-9))
    if count > MOST_BINS:
        raise UserError(
            f"bin_width={width:g} would make {count} bins of gaps up to {gaps.max():g}; give at least "
            f"{nice_width(float(gaps.max())):g}, or bin_width=null"
        )
    places = np.minimum((gaps / width + 1e-9).astype(int), count - 1)
    weights = weights_of(tensor, min_score_gap=min_score_gap, batch=batch, seed=seed)
    if trained is not None:
        weights["trained"] = np.abs(trained)
    mass = {name: shares(np.bincount(places, values, count), values.sum()) for name, values in weights.items()}
    pairs = np.bincount(places, minlength=count).tolist()
    return {
        "pairs": len(gaps),
        "gap": {"mean": float(gaps.mean()), "median": float(np.median(gaps)), "max": float(gaps.max())},
        "ties": int((gaps == 0).sum()),
        "chosen_scores_less": int((scores[:, 0] < scores[:, 1]).sum()),
        "flipped": int(flipped.sum()),
        "bins": [
            {
                "from": place * width,
                "to": (place + 1) * width,
                "pairs": pairs[place],
                "mass": {name: values[place] for name, values in mass.items()},
            }
            for place in range(count)
        ],
        "counting": {
            name: shares(values.sum() ** 2 / len(values), (values**2).sum())[0] for name, values in weights.items()
        },
        "on_flipped": {name: shares(values[flipped].sum(), values.sum())[0] for name, values in weights.items()},
    }


def shares(parts: Any, whole: float) -> list[float | None]:
    """``parts`` divided by ``whole``; ``None`` where that is 0."""
    return [float(part) / float(whole) if whole else None for part in np.atleast_1d(parts)]


def nice_width(largest: float) -> float:
    """A round width of bins, of which eight to twenty cover 0 to ``largest``."""
    if not largest:
        return 1.0
    rough = largest / 10
    unit = 10.0 ** math.floor(math.log10(rough))
    return unit * min((1, 2, 2.5, 5, 10), key=lambda factor: abs(math.log(factor * unit / rough)))
