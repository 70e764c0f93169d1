"""Perturbations: what a step does to the parameters besides the update.

Constants only: ``training/probe.py`` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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


Probe = Literal["perturb", "sketch", "stream", "first_order"]
"""How ``AnchorProbe`` finds gaps."""


@dataclass(frozen=True)
class AnchorProbe:
    """Reward margins at the anchor θ − ρ·∇M/‖∇M‖, M the mean reward margin of a batch of pairs (GAPO Eq. 5).

    The anchor is the first-order minimiser of M in the ball of radius ρ. ``anchor_pairs``: how many pairs share one
    direction, taken in order from the window (GAPO's multiplier K × pairs per forward over all devices); 1 gives every
    pair its own (instance-wise); ``window`` the whole global batch. With g = ∇M, ``probe`` is one of:

    * ``perturb``: the model runs at the anchor; the exact, finite gap m_i(θ) − m_i(θ − ρ·g/‖g‖). 5/3 of a SimPO step
      where the group's activations can be kept (``training.kept_forwards``), else 7/3.
    * ``sketch``: ρ·⟨∇m_i, g⟩/‖g‖, estimated from projections of each ∇m_i to ``sketch_size`` dimensions on either side
      of every weight: Γ_i = ρ·⟨S_i, S̄⟩/‖S̄‖, with S̄ the mean over the group. Unbiased products, no weight moves, the
      update is exact for its weights. A SimPO step and a few percent where activations are kept, else 5/3.
    * ``stream``: one pair a forward, one pass, works with gradient checkpointing. Of the pairs to come, of which no
      gradient is known yet, it takes the mean product of those that were (see ``src/training/stream.py``). The first
      pairs of a group have little but their own norm, the later ones nearly the slope. One SimPO step, of single pairs.
    * ``first_order``: the same slope exactly, by forward-mode differentiation, at several steps' cost.

    All but ``perturb`` leave curvature out, and move no weight, so bfloat16 cannot round the perturbation away.
    ``benchmarks/gapo_cost.py`` measures their cost and how far they rank and update as ``perturb`` does. A direction of
    earlier steps is not offered: at these batch sizes ⟨∇m_i, g⟩ is mostly ‖∇m_i‖²/n, which it lacks.

    ``fidelity``: the above is ``paper``. ``released`` is what the authors' code does: g is the gradient of SimPO's loss
    on these pairs (with ``beta`` and ``gamma_beta_ratio``, which nothing else here reads) in place of −∇M, and the move
    is adaptive as ASAM's, θ + ρ·θ²∘g/‖θ∘g‖, so large weights move further and ρ has no unit of a distance in θ.
    """

    rho: float
    anchor_pairs: int | Literal["window"]
    scope: PerturbedScope = "full"
    probe: Probe = "perturb"
    fidelity: Literal["paper", "released"] = "paper"
    beta: float = 1.0
    gamma_beta_ratio: float = 0.0
    sketch_size: int = 128
    needs = Needs(rejected=True)
    gives = Needs(anchor_gaps=True)

    def __post_init__(self) -> None:
        require_positive("rho", self.rho, VANISHED)
        if self.anchor_pairs != "window" and self.anchor_pairs < 1:
            raise UserError(
                f"anchor_pairs={self.anchor_pairs}: a direction needs pairs; "
                "give 1 (one direction per pair) or more, or 'window'"
            )
        if self.probe not in get_args(Probe):
            raise UserError(f"probe={self.probe} is not known; choose one of: {', '.join(get_args(Probe))}")
        if self.sketch_size < 1:
            raise UserError(
                f"sketch_size={self.sketch_size}: a projection needs dimensions; give 1 or more, such as 128"
            )
        if self.probe in ("sketch", "stream") and self.fidelity == "released":
            raise UserError(
                f"probe={self.probe} with fidelity=released: its move scales every weight by itself, of which "
                "products of gradients know nothing; use probe=perturb, or probe=first_order"
            )

    @property
    def adaptive(self) -> bool:
        """Whether a parameter moves in proportion to its square."""
        return self.fidelity == "released"

    @property
    def along_mean(self) -> bool:
        """Whether weights move along the gradient of the mean margin, to which all pairs add alike."""
        return self.probe == "perturb" and self.fidelity == "paper"

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
