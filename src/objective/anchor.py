"""GAPO's target and GradNorm-Reweight's weight: what reads the perturbations of ``perturbations.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import MarginGroup, Needs, Scope


@dataclass(frozen=True)
class Anchor:
    """target_i = m_i(θ_adv) + β·γ/β-ratio, so that the link sees the anchor gap less the margin (GAPO Eq. 6-8).

    −log σ(m_i − target_i) = −log σ(Gap_i − γ), whose gradient is −σ(γ − Gap_i)·∇m_i: a pair whose margin falls further
    under the perturbation gets a smaller weight, in the direction of its own gradient.
    """

    beta: float
    gamma_beta_ratio: float
    needs = Needs(rejected=True, anchor_gaps=True)

    def __call__(self, group: MarginGroup) -> Tensor:
        gaps = group.inputs.anchor_gaps
        if gaps is None:
            raise ValueError("an anchor target needs anchor gaps")
        return group.margins - gaps + self.beta * self.gamma_beta_ratio


@dataclass(frozen=True)
class GradientNorm:
    """weight_i = σ(γ − s_i), s_i the normalised norm of ∇m_i (GradNorm-Reweight, GAPO Appendix G.4).

    ``batch_mean``: s_i = ‖∇m_i‖ / mean over the group of ``statistics`` (the paper says "normalised", not how);
    ``rho``: s_i = ρ·‖∇m_i‖, the gap of an instance-wise perturbation of radius ρ to first order.
    """

    beta: float
    gamma_beta_ratio: float
    normalization: Literal["batch_mean", "rho"] = "batch_mean"
    rho: float | None = None
    statistics: Scope = "window"

    def __post_init__(self) -> None:
        if self.normalization == "rho":
            if self.rho is None:
                raise UserError(
                    "normalization=rho multiplies the norm by rho, which is not given; give rho, such as 0.05"
                )
            require_positive("rho", self.rho, "the norm would vanish from the weight")
        elif self.rho is not None:
            raise UserError(
                f"rho={self.rho} is not read with normalization=batch_mean; leave it null, or use normalization=rho"
            )

    @property
    def needs(self) -> Needs:
        scope = self.statistics if self.normalization == "batch_mean" else None
        return Needs(rejected=True, gradient_norms=True, statistics=scope)

    def __call__(self, group: MarginGroup) -> Tensor:
        norms = group.inputs.gradient_norms
        if norms is None:
            raise ValueError("a weight by gradient norm needs gradient norms")
        if self.normalization == "batch_mean":
            statistic = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        else:
            assert self.rho is not None
            statistic = self.rho * norms
        return torch.sigmoid(self.beta * self.gamma_beta_ratio - statistic)

    def diagnostics(self, group: MarginGroup) -> Mapping[str, Tensor]:
        norms = group.inputs.gradient_norms
        return {} if norms is None else {"weight/gradient_norm": norms}
