"""Perturbations: what a step does to the parameters besides the update.

Constants only: ``training/probe.py`` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import Needs

PerturbedScope = Literal["full", "lm_head", "backbone"]
"""Which parameters move: all that are trained, the output layer alone, or all but the output layer.

A norm is taken over these alone. With tied embeddings the output layer is the input embedding: ``lm_head`` moves both,
and so does ``backbone``.
"""

VANISHED = "a perturbation of radius 0 or below shows nothing"


@dataclass(frozen=True)
class NoPerturbation:
    """The parameters are only updated."""

    needs = Needs()
    gives = Needs()


@dataclass(frozen=True)
class AnchorProbe:
    """Reward margins at the anchor θ − ρ·∇M/‖∇M‖, M the mean reward margin of a batch of pairs (GAPO Eq. 5).

    The anchor is the first-order minimiser of M in the ball of radius ρ. ``anchor_pairs``: how many pairs share one
    direction, taken in order from the window (GAPO's multiplier K × pairs per forward over all devices); 1 gives every
    pair its own (instance-wise); ``window`` the whole global batch. ``probe``: ``perturb`` runs the model at the anchor
    and gives the exact finite gap; ``first_order`` gives ρ·⟨∇m_i, ∇M/‖∇M‖⟩ by forward-mode differentiation: no weight
    moves, so bfloat16 cannot round the perturbation away, but curvature is left out.

    ``fidelity``: the above is ``paper``. ``released`` is what the authors' code does: g is the gradient of SimPO's loss
    on these pairs (with ``beta`` and ``gamma_beta_ratio``, which nothing else here reads) in place of −∇M, and the move
    is adaptive as ASAM's, θ + ρ·θ²∘g/‖θ∘g‖, so large weights move further and ρ has no unit of a distance in θ.
    """

    rho: float
    anchor_pairs: int | Literal["window"]
    scope: PerturbedScope = "full"
    probe: Literal["perturb", "first_order"] = "perturb"
    fidelity: Literal["paper", "released"] = "paper"
    beta: float = 1.0
    gamma_beta_ratio: float = 0.0
    needs = Needs(rejected=True)
    gives = Needs(anchor_gaps=True)

    def __post_init__(self) -> None:
        require_positive("rho", self.rho, VANISHED)
        if self.anchor_pairs != "window" and self.anchor_pairs < 1:
            raise UserError(
                f"anchor_pairs={self.anchor_pairs}: a direction needs pairs; "
                "give 1 (one direction per pair) or more, or 'window'"
            )

    @property
    def adaptive(self) -> bool:
        """Whether a parameter moves in proportion to its square."""
        return self.fidelity == "released"

    def pulls(self, margins: Tensor) -> Tensor:
        """How much each pair's ∇m_i counts in the direction, [n]: alike, or as it does in SimPO's gradient."""
        if self.fidelity == "paper":
            return torch.ones_like(margins)
        return torch.sigmoid(self.beta * self.gamma_beta_ratio - margins.detach())


@dataclass(frozen=True)
class GradientNorms:
    """‖∇m_i‖ of every pair's reward margin m_i (GradNorm-Reweight, GAPO Appendix G.4): one backward per pair."""

    scope: PerturbedScope = "full"
    needs = Needs(rejected=True)
    gives = Needs(gradient_norms=True)


@dataclass(frozen=True)
class Sharpness:
    """The update's gradient is taken at θ + ρ·g/‖g‖, g the gradient of the window (SAM; GAPO Appendix G.5)."""

    rho: float
    scope: PerturbedScope = "full"
    needs = Needs()
    gives = Needs()

    def __post_init__(self) -> None:
        require_positive("rho", self.rho, VANISHED)
