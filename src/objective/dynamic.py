"""γ-PO's margins: a fixed sum of margins, shared out anew in every group of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.objective.rewards import require_positive
from src.objective.state import (
    HISTORY,
    INITIAL,
    generator,
    on_cpu,
    require_choice,
    require_pairs,
    require_seed,
)
from src.objective.types import MarginGroup, Needs, Scope, State

INITIAL_MARGINS = 8
"""How many draws from N(0, 1) the released code's queue starts with."""

SMALLEST_SHARE = 1e-10
"""Added to p in its logarithm, as the released code does. It moves margins in the eighth digit, so they agree with that
code only with it."""


def dynamic_margins(margins: Tensor, gamma0: float, tau: float, updates: int, step_size: float | None) -> Tensor:
    """γ_i of all ``margins`` [n], by mirror descent (γ-PO Eq. 9 and 22-24): [n], in their unit, with mean γ₀.

    γ_i = n·p_i·γ₀, where p on the simplex minimizes −(1/n)·Σ log σ(m_i − γ_i) + τ·KL(p ‖ uniform). Its gradient is
    g_i = γ₀·σ(γ_i − m_i) + τ·(1 + log(n·p_i)), and p_i ← p_i·exp(−η·g_i) / Σ_j p_j·exp(−η·g_j), from p uniform.
    Eq. 24 prints the denominator without p_j, after which p would not sum to 1. ``step_size`` is η; ``None`` takes the
    paper's min(0.5/τ, 1). In float32 or better, and in logarithms, so that nothing underflows. At the minimum
    τ·log(n·p_i) + γ₀·σ(γ_i − m_i) is the same for all i, so max γ / min γ ≤ exp(γ₀/τ).
    """
    margins = margins.detach().to(torch.promote_types(margins.dtype, torch.float32))
    eta = min(0.5 / tau, 1.0) if step_size is None else step_size
    scaled = torch.zeros_like(margins)  # log(n·p)
    for _ in range(updates):
        guarded = torch.logaddexp(scaled, torch.full_like(scaled, math.log(SMALLEST_SHARE * len(margins))))
        gradient = gamma0 * torch.sigmoid(gamma0 * scaled.exp() - margins) + tau * (1 + guarded)
        moved = scaled - eta * gradient
        scaled = moved - torch.logsumexp(moved, 0) + math.log(len(margins))
    return gamma0 * scaled.exp()


@dataclass(frozen=True)
class Dynamic:
    """target_i = γ_i, of the group's reward margins and a queue of earlier ones (γ-PO Eq. 9-12, Algorithm 2); [n].

    γ₀ = β·γ/β-ratio is the mean of all γ_i, ``tau`` how strongly they are held together (τ → ∞: SimPO's constant).
    Works on any reward. ``centered``: γ_i − γ₀, as the released code does for DPO, where Eq. 11 has γ_i (then τ → ∞ is
    DPO). ``dynamic_margins`` says what is solved; ``updates`` is the paper's T: 20, of which the released code's result
    has seen 19. ``step_size``: its η, null = min(0.5/τ, 1).

    * Solved for are the group's pairs with min(|queue|, ``solver_pairs`` − pairs) others from the queue, drawn without
      replacement, so at most ``solver_pairs`` (the paper's m_n, 256); only a group of more pairs than that is solved
      whole, without history. Then the group's margins are pushed, and the oldest beyond ``queue_capacity`` dropped.
    * ``queue_init``: the paper starts ``empty``; the released code with 8 draws from N(0, 1) (``normal8``), which stay
      until as many real margins as fit have been pushed.
    * ``queue_scope``: ``global`` is one queue of the margins of all ranks, the same on each; ``rank`` is one queue per
      rank with that rank's own margins, as in the released code. In one process these are the same.
    * What is drawn depends on ``seed`` and on how many groups came before, so no generator need be saved. The state is
      ``queue``, oldest first, float64 in the unit of the reward, and ``draws``.

    ``statistics``: see ``Scope``; the pairs of one forward here.
    """

    beta: float
    gamma_beta_ratio: float
    tau: float
    updates: int = 20
    step_size: float | None = None
    solver_pairs: int = 256
    queue_capacity: int = 2048
    queue_init: Literal["empty", "normal8"] = "empty"
    queue_scope: Literal["global", "rank"] = "global"
    centered: bool = False
    statistics: Scope = "forward"
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, "the margin would vanish or change sign")
        require_positive(
            "gamma_beta_ratio", self.gamma_beta_ratio, "beta * gamma_beta_ratio is the margin that is shared out"
        )
        require_positive("tau", self.tau, "it holds the margins together; without it one pair would get all of it")
        require_positive("updates", self.updates, "without an update every pair keeps the same margin")
        if self.step_size is not None and not 0 < self.step_size * self.tau < 2:
            raise UserError(
                f"step_size={self.step_size}: mirror descent stands still at 0 and swings ever wider from 2/tau on; "
                f"give a value between 0 and {2 / self.tau:g}, or null for min(0.5/tau, 1)"
            )
        if self.solver_pairs < 2:
            raise UserError(
                f"solver_pairs={self.solver_pairs}: margins are shared out among pairs, and one pair alone always gets "
                "beta * gamma_beta_ratio; give 2 or more (the paper takes 256)"
            )
        if self.queue_capacity < 0:
            raise UserError(
                f"queue_capacity={self.queue_capacity}: it is how many earlier margins are kept; "
                "give 0 for none, or more (the released code keeps 2048)"
            )
        require_choice("queue_init", self.queue_init, ("empty", "normal8"))
        require_choice("queue_scope", self.queue_scope, ("global", "rank"))
        require_pairs(self.statistics)
        require_seed(self.seed)

    @property
    def needs(self) -> Needs:
        return Needs(rejected=True, statistics=self.statistics, state=True)

    @property
    def gamma0(self) -> float:
        """Mean of all γ_i, in the unit of the reward."""
        return self.beta * self.gamma_beta_ratio

    def initial_state(self) -> State:
        count = INITIAL_MARGINS if self.queue_init == "normal8" else 0
        drawn = generator(self.seed, INITIAL, 0).standard_normal(count)
        return {"queue": self.pushed(torch.zeros(0, dtype=torch.float64), torch.from_numpy(drawn)), "draws": 0}

    def __call__(self, group: MarginGroup) -> Tensor:
        """Targets at the start of a run."""
        return self.advance(group, self.initial_state())[0]

    def advance(self, group: MarginGroup, state: State) -> tuple[Tensor, State]:
        held = len(state["queue"])
        count = max(min(held, self.solver_pairs - len(group.inputs)), 0)
        if count == held:
            return self.advance_with(group, state, range(held))
        drawn = generator(self.seed, HISTORY, state["draws"]).choice(held, count, replace=False)
        return self.advance_with(group, state, drawn.tolist())

    def advance_with(self, group: MarginGroup, state: State, sample_index: Sequence[int]) -> tuple[Tensor, State]:
        """``advance`` with the history at ``sample_index``, positions in the queue as it stands before the push."""
        current, queue = on_cpu(group.margins), state["queue"]
        history = queue[torch.tensor(list(sample_index), dtype=torch.long)]
        solved = dynamic_margins(torch.cat([current, history]), self.gamma0, self.tau, self.updates, self.step_size)
        target = solved[: len(current)] - (self.gamma0 if self.centered else 0.0)
        return target.to(group.margins), {"queue": self.pushed(queue, current), "draws": state["draws"] + 1}

    def pushed(self, queue: Tensor, margins: Tensor) -> Tensor:
        """The last ``queue_capacity`` of ``queue`` and ``margins``, in order."""
        joined = torch.cat([queue, margins])
        return joined[max(len(joined) - self.queue_capacity, 0) :].clone()

    def observations(self, values: Tensor) -> Mapping[str, Tensor]:
        """``target/deviation``: by how much each margin differs from the constant one, in the unit of the reward."""
        return {"target/deviation": (values - (0.0 if self.centered else self.gamma0)).abs()}
