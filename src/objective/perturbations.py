"""Perturbations: what a step does to the parameters besides the update.

Constants only: ``training/probe.py`` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.types import Needs

PerturbedScope = Literal["full", "lm_head"]
"""Which parameters move: all that are trained, or the output layer alone.

A norm is taken over these alone. With tied embeddings ``lm_head`` moves the input embedding too: it is the same tensor.
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
    """

    rho: float
    anchor_pairs: int | Literal["window"]
    scope: PerturbedScope = "full"
    probe: Literal["perturb", "first_order"] = "perturb"
    needs = Needs(rejected=True)
    gives = Needs(anchor_gaps=True)

    def __post_init__(self) -> None:
        require_positive("rho", self.rho, VANISHED)
        if self.anchor_pairs != "window" and self.anchor_pairs < 1:
            raise UserError(
                f"anchor_pairs={self.anchor_pairs}: a direction needs pairs; "
                "give 1 (one direction per pair) or more, or 'window'"
            )


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
