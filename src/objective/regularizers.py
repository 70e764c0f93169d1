"""Regularizers: an extra term on the chosen response; ``vanishes`` marks those that add nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from src.errors import UserError
from src.objective.types import Needs, PairLogProbs, WindowTotals


@dataclass(frozen=True)
class NoRegularizer:
    """0."""

    needs = Needs()
    vanishes = True

    def __call__(self, policy: PairLogProbs, totals: WindowTotals) -> Tensor:
        return policy.chosen.summed.new_zeros(())


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """λ · NLL of the chosen response (SFT, CPO, SLiC), in nats; λ = ``coefficient``, and 0 leaves the term out.

    ``token_mean``: Σ −log π / tokens of the whole window (cross-entropy as trainers report it);
    ``sequence_mean``: mean over pairs of −log π / |y|; ``sequence_sum``: mean over pairs of −log π;
    ``prompt_and_chosen``: the token mean over prompts (but their first token) and chosen responses of the window, each
    prompt once per pair: cross-entropy over the whole row, as ORPO's code takes it.
    """

    coefficient: float = 1.0
    normalization: Literal["token_mean", "sequence_mean", "sequence_sum", "prompt_and_chosen"] = "token_mean"

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise UserError(
                f"coefficient={self.coefficient}: the term would push the chosen response down; "
                "give 0 (no such term) or above"
            )

    @property
    def vanishes(self) -> bool:
        return self.coefficient == 0

    @property
    def needs(self) -> Needs:
        return Needs(prompt=self.normalization == "prompt_and_chosen")

    def __call__(self, policy: PairLogProbs, totals: WindowTotals) -> Tensor:
        chosen = policy.chosen
        if self.normalization == "prompt_and_chosen":
            if policy.prompt is None:
                raise ValueError("an NLL over prompt and chosen needs the prompts' log-probs")
            summed = chosen.summed.sum() + policy.prompt.summed.sum()
            return -self.coefficient * summed / max(totals.chosen_tokens + totals.prompt_tokens, 1)
        if self.normalization == "token_mean":
            return -self.coefficient * chosen.summed.sum() / max(totals.chosen_tokens, 1)
        values = chosen.average if self.normalization == "sequence_mean" else chosen.summed
        return -self.coefficient * values.sum() / totals.pairs
