"""α-DPO's margins: larger where the policy already prefers chosen by more than the reference does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.adaptive import SMALLEST_DEVIATION, require_spread
from src.objective.rewards import require_positive
from src.objective.state import on_cpu, require_choice, require_decay, running_statistics
from src.objective.types import MarginGroup, Needs, ResponseLogProbs, Scope, State


@dataclass(frozen=True)
class ReferenceNormalized:
    """target_i = β·γ/β-ratio + k·z_i, z_i the standardized log-ratio gap M_i (α-DPO, Wu et al. 2024; AMaPO Table 7).

    M_i = (a_w − b_w) − (a_l − b_l), in nats per token, a and b the policy's and the reference's average log-probs,
    whatever the reward is. z = (M − m)/s, where m and s differ by ``fidelity``:

    * ``released``: running mean and unbiased standard deviation of groups with ``decay``, updated before use, from 0
      without correction, and k = β·α, as the authors' code computes. So s is too small at first (a tenth of the first
      group's, z ten times too large), and 0 at the first step, where policy and reference agree: there the code
      divides 0 by 0, and we take z = 0.
    * ``ours``: the same with both averages divided by 1 − decay^groups, and z = 0 while s is below 1e-6 nats per
      token, which is rounding noise.
    * ``paper``: γ + α·M* as AMaPO prints it: k = α (smaller by the factor β), M standardized within the group, which
      stands in for the data set. No state.

    A group of one has no standard deviation: it leaves the running averages alone, and has z = 0 in ``paper``. The
    state is ``mean`` and ``std``, uncorrected, and ``groups``, how many they hold. ``statistics``: see ``Scope``.
    """

    beta: float
    gamma_beta_ratio: float
    alpha: float
    fidelity: Literal["ours", "released", "paper"] = "ours"
    decay: float = 0.9
    statistics: Scope = "forward"

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the margin would vanish or change sign")
        if self.alpha < 0:
            raise UserError(
                f"alpha={self.alpha}: pairs that the policy has already moved apart would be asked for less; "
                "give 0 (a constant margin, SimPO) or more"
            )
        require_choice("fidelity", self.fidelity, ("ours", "released", "paper"))
        require_decay(self.decay)
        require_spread(self.statistics)

    @property
    def needs(self) -> Needs:
        state = self.fidelity != "paper"
        return Needs(rejected=True, reference=True, statistics=self.statistics, spread=True, state=state)

    def initial_state(self) -> State:
        return {} if self.fidelity == "paper" else {"mean": 0.0, "std": 0.0, "groups": 0}

    def __call__(self, group: MarginGroup) -> Tensor:
        """Targets at the start of a run."""
        return self.advance(group, self.initial_state())[0]

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]:
        gaps = on_cpu(log_ratio_gaps(group))
        after = dict(state) if self.fidelity == "paper" else self.updated(gaps, state)
        mean, std = self.moments(gaps, after)
        known = std > 0 if self.fidelity == "released" else std >= SMALLEST_DEVIATION
        z = (gaps - mean) / std if known else torch.zeros_like(gaps)
        scale = self.alpha if self.fidelity == "paper" else self.beta * self.alpha
        return (self.beta * self.gamma_beta_ratio + scale * z).to(group.margins), after

    def updated(self, gaps: Tensor, state: State) -> State:
        """The state with the group's ``gaps`` [n] in its averages."""
        mean, std = running_statistics(gaps, state["mean"], state["std"], self.decay)
        return {"mean": mean, "std": std, "groups": state["groups"] + (gaps.shape[0] > 1)}

    def moments(self, gaps: Tensor, state: State) -> tuple[float, float]:
        """m and s, nats per token; s is 0 while none is known."""
        if self.fidelity == "paper":
            return (gaps.mean().item(), gaps.std().item()) if gaps.shape[0] > 1 else (0.0, 0.0)
        if self.fidelity == "released" or state["groups"] == 0:
            return state["mean"], state["std"]
        correction = 1 - self.decay ** state["groups"]
        return state["mean"] / correction, state["std"] / correction

    def observations(self, values: Tensor) -> Mapping[str, Tensor]:
        """``target/deviation``: by how much each margin differs from the constant one, in the unit of the reward."""
        return {"target/deviation": (values - self.beta * self.gamma_beta_ratio).abs()}


def log_ratio_gaps(group: MarginGroup) -> Tensor:
    """[n], nats per token: by how much more the policy prefers chosen than the reference does, in float64."""
    policy, reference = group.inputs.policy, group.inputs.reference
    if reference is None:
        raise ValueError("a log-ratio gap needs reference log-probs")
    chosen = average(policy.chosen) - average(reference.chosen)
    return chosen - (average(policy.rejected) - average(reference.rejected))


def average(response: ResponseLogProbs) -> Tensor:
    """Nats per token in float64: the gap is a small difference of large numbers."""
    return replace(response, summed=response.summed.double()).average
