"""Whether two rows differ, or only seem to: paired bootstrap over seeds and prompts, and Kendall's tau of two orders.

A cell is a mean over seeds of means over prompts. One resample draws seeds (the same for all cells, by their number)
and prompts (the same for all cells and all seeds that were asked them, by their id), so what is common to the rows
cancels in their difference. Prompts are not drawn anew for each seed: every seed was asked the same ones, and a hard
prompt is hard for all of them. Seeds deviate from their mean by sqrt(S / (S - 1)) more than they do, which makes the
variance of S drawn seeds unbiased; with two or three of them intervals are still optimistic. With one seed the
interval is over prompts alone, and says nothing of what another seed would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from src.evaluation.items import cluster_of
from src.evaluation.statistics import RESAMPLES, bootstrap_weights

Floats = npt.NDArray[np.float64]
PERCENTILES = (2.5, 97.5)
NOTHING_TO_DRAW = "one seed and no values of single prompts: no interval"
APART = 7919
"""Between the seeds by which prompts of unrelated sets are drawn."""


@dataclass(frozen=True)
class Sample:
    """A cell. ``numbers``: seed -> value as the table has it; ``items``: seed -> item id -> value, in the same unit,
    {} for a seed without."""

    numbers: Mapping[int, float]
    items: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over ``seeds`` seeds and ``prompts`` prompts (0: seeds alone). ``low`` and
    ``high`` are ``None``, with a ``reason``, where there is nothing to draw from."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    prompts: int
    reason: str = ""

    @property
    def above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high is not None and self.high < 0

    @property
    def spread(self) -> str:
        """The interval in words."""
        return "no interval" if self.low is None or self.high is None else f"[{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Draws:
    """Cells and their bootstrap. ``values`` [cells]; ``resampled`` [resamples, cells], ``None`` where there is nothing
    to draw from; ``prompts``: the fewest that any cell with items is resampled over."""

    values: Floats
    resampled: Floats | None
    seeds: int
    prompts: int

    def contrast(self, coefficients: npt.ArrayLike) -> Estimate:
        """The sum of coefficient times cell; ``coefficients`` [cells]."""
        weights = np.asarray(coefficients, dtype=np.float64)
        value = float(self.values @ weights)
        if self.resampled is None:
            return Estimate(value, None, None, self.seeds, 0, NOTHING_TO_DRAW)
        low, high = np.percentile(self.resampled @ weights, PERCENTILES)
        return Estimate(value, float(low), float(high), self.seeds, self.prompts)


def common_seeds(samples: Sequence[Sample]) -> list[int]:
    """The seeds that all cells have."""
    return sorted(set.intersection(*(set(sample.numbers) for sample in samples))) if samples else []


def draws_of(samples: Sequence[Sample], *, resamples: int = RESAMPLES, seed: int = 0) -> Draws | None:
    """The cells over the seeds that all of them have, drawn together; ``None`` when they have no seed in common.

    Deterministic: the same cells give the same draws for the same ``seed``.
    """
    seeds = common_seeds(samples)
    if not seeds:
        return None
    values = np.array([[sample.numbers[one] for one in seeds] for sample in samples], dtype=np.float64)
    groups = grouped(samples, seeds)
    if len(seeds) < 2 and not any(len(group.clusters) > 1 for group in groups):
        return Draws(values.mean(1), None, len(seeds), 0)
    chosen = drawn_seeds(len(seeds), resamples, seed)
    resampled = np.empty((resamples, len(samples)))
    for place, group in enumerate(groups):
        own_seed = seed + place * APART
        for cell, means in zip(group.cells, group.resampled(len(seeds), resamples, own_seed), strict=True):
            resampled[:, cell] = np.take_along_axis(means, chosen, axis=1).mean(1)
    for cell in set(range(len(samples))) - {cell for group in groups for cell in group.cells}:
        resampled[:, cell] = spread_out(values[[cell]])[0][chosen].mean(1)
    for group in groups:  # the mean over common items is nearly, not quite, the number in the table
        cells = list(group.cells)
        resampled[:, cells] += (values.mean(1)[cells] - group.means)[None, :]
    prompts = min((len(group.clusters) for group in groups), default=0)
    return Draws(values.mean(1), resampled, len(seeds), prompts)


def contrast(terms: Sequence[tuple[float, Sample]], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate | None:
    """The sum of coefficient times cell with its interval; ``None`` when the cells have no seed in common."""
    found = draws_of([sample for _, sample in terms], resamples=resamples, seed=seed)
    return None if found is None else found.contrast([coefficient for coefficient, _ in terms])


def drawn_seeds(count: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """Places of drawn seeds, [resamples, count]."""
    return np.random.default_rng([seed, 1]).integers(count, size=(resamples, count))


def spread_out(values: Floats) -> Floats:
    """``values`` [..., seeds] with deviations from the mean over seeds that make up for their estimated mean."""
    count = values.shape[-1]
    if count < 2:
        return values
    mean = values.mean(-1, keepdims=True)
    stretched: Floats = mean + (values - mean) * math.sqrt(count / (count - 1))
    return stretched


@dataclass(frozen=True)
class Group:
    """Cells that share prompts. ``sums`` [cells, seeds, clusters]: of the values of a cluster's items; ``sizes``
    [clusters]: how many items."""

    cells: tuple[int, ...]
    clusters: tuple[str, ...]
    sums: Floats
    sizes: Floats

    @property
    def means(self) -> Floats:
        """Mean of every cell over seeds and items, [cells]."""
        means: Floats = self.sums.sum(-1).mean(-1) / self.sizes.sum()
        return means

    def resampled(self, seeds: int, resamples: int, seed: int) -> Floats:
        """Means over drawn clusters of every cell and seed, [cells, resamples, seeds]; before seeds are drawn."""
        own = self.sums.sum(-1) / self.sizes.sum()  # [cells, seeds]
        moved = spread_out(own) - own
        flat = self.sums.reshape(-1, len(self.clusters))
        parts = [
            weights @ flat.T / (weights @ self.sizes)[:, None]
            for weights in bootstrap_weights(len(self.clusters), None, resamples, seed)
        ]
        means = np.concatenate(parts).reshape(resamples, len(self.cells), seeds).transpose(1, 0, 2)
        resampled: Floats = means + moved[:, None, :]
        return resampled


def grouped(samples: Sequence[Sample], seeds: Sequence[int]) -> list[Group]:
    """Cells with items, put together where they share any; each group over the items that all its cells and seeds
    have."""
    found: list[tuple[list[int], set[str]]] = []
    for cell, sample in enumerate(samples):
        if not all(sample.items.get(seed) for seed in seeds):
            continue
        ids = set.intersection(*(set(sample.items[seed]) for seed in seeds))
        for cells, shared in found:
            if ids & shared:
                cells.append(cell)
                shared &= ids
                break
        else:
            found.append(([cell], ids))
    return [group_of(samples, seeds, cells, sorted(ids)) for cells, ids in found if ids]


def group_of(samples: Sequence[Sample], seeds: Sequence[int], cells: Sequence[int], ids: Sequence[str]) -> Group:
    """The cells over ``ids``."""
    clusters = sorted({cluster_of(item) for item in ids})
    places = {cluster: place for place, cluster in enumerate(clusters)}
    inverse = np.array([places[cluster_of(item)] for item in ids])
    sums = np.zeros((len(cells), len(seeds), len(clusters)))
    for row, cell in enumerate(cells):
        for column, seed in enumerate(seeds):
            values = samples[cell].items[seed]
            sums[row, column] = np.bincount(inverse, [values[item] for item in ids], len(clusters))
    sizes = np.bincount(inverse, minlength=len(clusters)).astype(np.float64)
    return Group(tuple(cells), tuple(clusters), sums, sizes)


def kendall_tau_b(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Kendall's tau-b of two orders [..., n]: (concordant - discordant) / sqrt(pairs untied in one x in the other).

    NaN where either side is constant.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    rows, columns = np.triu_indices(x.shape[-1], 1)
    a, b = (np.sign(values[..., rows] - values[..., columns]) for values in (x, y))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    tau: Floats = np.full(np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), np.nan)
    np.divide((a * b).sum(-1), scale, out=tau, where=scale > 0)
    return tau


def rank_agreement(published: Sequence[float], draws: Draws, rows: Floats) -> Estimate | None:
    """Kendall's tau-b of printed numbers [rows] and of ours, ``rows`` [rows, cells] as weighted sums of drawn cells.

    Its interval is that of our numbers; the printed ones are taken as they are. ``None`` where an order is constant.
    """
    value = float(kendall_tau_b(published, rows @ draws.values))
    if math.isnan(value):
        return None
    if draws.resampled is None:
        return Estimate(value, None, None, draws.seeds, 0, NOTHING_TO_DRAW)
    taus = kendall_tau_b(np.asarray(published, dtype=np.float64)[None, :], draws.resampled @ rows.T)
    low, high = np.nanpercentile(taus, PERCENTILES)
    return Estimate(value, float(low), float(high), draws.seeds, draws.prompts)
