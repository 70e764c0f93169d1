"""β-DPO: a temperature that follows the batch's reward margins, and a loss that leaves out its outliers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.adaptive import require_spread
from src.objective.rewards import require_positive
from src.objective.state import (
    KEPT,
    generator,
    on_cpu,
    require_choice,
    require_decay,
    require_seed,
    running_statistics,
)
from src.objective.types import MarginGroup, Needs, Scope, State

Fidelity = Literal["official", "gamma_po"]

SMALLEST_BETA = 1e-3
"""Floor of β_b in the authors' code: below 0 a batch would be unlearned."""

SMALLEST_WEIGHT = 1e-12
"""Chance of the farthest outliers, relative to a pair at the mean's; at 0 there may be fewer pairs to draw than are
asked for."""


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """What β-DPO's temperature and weight share: which pairs of a group are kept, and the statistics behind it.

    With M_i a pair's gap, M₀ and s the running mean and unbiased standard deviation (``decay``), floor((1 − drop)·n) of
    n pairs are drawn without replacement, with weights exp(−(M_i − M₀)²/(2s²)), at least 1e-12.

    * ``official``: M_i = margin/β, in nats; M₀ and s start at 0 and are updated before use, so the group is in them,
      and s is a tenth of the first group's.
    * ``gamma_po``: M_i = margin, as in γ-PO's code; M₀ starts at 0 and s at 1, and they are updated after use.

    Below 5 pairs a fifth cannot be dropped: of 4 are kept 3, of 3 are kept 2, of 2 and of 1 is kept 1. A group of one
    has no standard deviation and leaves both averages alone. The state is ``mean``, ``std`` and ``draws``; a draw
    follows from ``seed`` and ``draws``, so ranks agree, and so do parts with the same constants.
    """

    beta: float
    drop: float = 0.2
    decay: float = 0.9
    fidelity: Fidelity = "official"
    statistics: Scope = "forward"
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "it is the temperature that adapts")
        if not 0 <= self.drop < 1:
            raise UserError(
                f"drop={self.drop}: it is the share of pairs left out of a group, and some must stay; "
                "give a value from 0 to below 1 (the authors take 0.2)"
            )
        require_decay(self.decay)
        require_choice("fidelity", self.fidelity, ("official", "gamma_po"))
        require_seed(self.seed)
        require_spread(self.statistics)

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics, spread=True, state=True)

    def initial_state(self) -> State:
        return {"mean": 0.0, "std": 0.0 if self.fidelity == "official" else 1.0, "draws": 0}

    def choose(
        self, group: MarginGroup, state: State, sample_index: Sequence[int] | None
    ) -> tuple[Tensor, float, State]:
        """Positions of the pairs kept, by how much their mean gap exceeds M₀, and the state after the group.

        ``sample_index`` gives the positions; ``None`` draws them.
        """
        gaps = on_cpu(group.margins) / (self.beta if self.fidelity == "official" else 1.0)
        mean, std = running_statistics(gaps, state["mean"], state["std"], self.decay)
        after = {"mean": mean, "std": std, "draws": state["draws"] + 1}
        used = after if self.fidelity == "official" else state
        if sample_index is None:
            sample_index = self.drawn(gaps, used["mean"], used["std"], state["draws"])
        kept = torch.tensor(list(sample_index), dtype=torch.long)
        return kept, gaps[kept].mean().item() - used["mean"], after

    def drawn(self, gaps: Tensor, mean: float, std: float, draws: int) -> list[int]:
        """Positions of the pairs kept, ascending.

        Every pair waits exponentially long at a rate of its weight, and the first to come are kept: the same as
        drawing one after another by weight without replacement.
        """
        count = max(int((1 - self.drop) * len(gaps) + 1e-9), 1)  # 1e-9: (1 − 0.8)·5 is a little less than 1 in binary
        z = (gaps - mean) / max(std, torch.finfo(torch.float64).tiny)
        weights = torch.exp(-z.square() / 2).clamp(min=SMALLEST_WEIGHT)
        waits = generator(self.seed, KEPT, draws).exponential(size=len(gaps)) / weights.numpy()
        return sorted(waits.argsort(kind="stable")[:count].tolist())

    def __call__(self, group: MarginGroup) -> Tensor:
        """Values at the start of a run."""
        return self.advance(group, self.initial_state())[0]

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]:
        return self.advance_with(group, state, None)

    def advance_with(
        self, group: MarginGroup, state: State, sample_index: Sequence[int] | None
    ) -> tuple[Tensor, State]:
        """``advance`` with the pairs kept given by position; ``None`` draws them."""
        kept, excess, after = self.choose(group, state, sample_index)
        return self.values(group, kept, excess), after

    @abstractmethod
    def values(self, group: MarginGroup, kept: Tensor, excess: float) -> Tensor:
        """[n], of the positions of the pairs kept and by how much their mean gap exceeds M₀."""


@dataclass(frozen=True, kw_only=True)
class BatchAdaptive(Selection):
    """temperature = β_b/β, with β_b = max(β·(1 + α·(mean of the kept M − M₀)), 1e-3) (β-DPO, Wu et al. 2024).

    The same for all pairs of the group, so the loss is that of β_b wherever the reward is proportional to β; a target
    margin is scaled too: β_b·(d − γ/β-ratio) in β-SimPO. ``Selection`` says what M and M₀ are, which pairs are kept,
    and what ``fidelity`` changes. α counts per unit of M, so its values for ``official`` (nats) and ``gamma_po``
    (nats × β) do not compare; nothing bounds β_b from above. ``statistics``: see ``Scope``.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise UserError(
                f"alpha={self.alpha}: β-DPO raises beta where a batch's margins are above the running mean, "
                "and this would lower it; give 0 (a fixed beta) or more"
            )

    def values(self, group: MarginGroup, kept: Tensor, excess: float) -> Tensor:
        beta = max(self.beta * (1 + self.alpha * excess), SMALLEST_BETA)
        return torch.full_like(group.margins, beta / self.beta)

    def observations(self, values: Tensor) -> Mapping[str, Tensor]:
        """``temperature/mean``: β_b/β."""
        return {"temperature/mean": values}


@dataclass(frozen=True, kw_only=True)
class Kept(Selection):
    """weight = n/kept for the pairs kept and 0 for the others: the mean over the kept ones (β-DPO, Wu et al. 2024).

    ``Selection`` says which pairs are kept; with the constants of ``BatchAdaptive`` they are the pairs behind its
    temperature. Under ``gamma_po`` all weights are 1: that code makes the mask and never uses it. ``statistics``: see
    ``Scope``.
    """

    def values(self, group: MarginGroup, kept: Tensor, excess: float) -> Tensor:
        if self.fidelity == "gamma_po":
            return torch.ones_like(group.margins)
        weights = torch.zeros_like(group.margins)
        weights[kept.to(weights.device)] = len(weights) / len(kept)
        return weights

    def observations(self, values: Tensor) -> Mapping[str, Tensor]:
        """``weight/kept``: whether the pair counts."""
        return {"weight/kept": (values > 0).to(values.dtype)}
