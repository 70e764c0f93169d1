"""Every method of conf/method as an objective; inputs for any of them without a model, and pairs of tokens for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.config import CONF, composed_train, finished
from src.data.pairset import TokenizedPair
from src.objective.objective import Objective, ObjectiveState
from src.objective.types import PairInputs, PairLogProbs, PairTerms, ResponseLogProbs, WindowTotals
from src.training.assemble import build_objective

METHODS = tuple(sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
"""Names of all methods."""


@cache
def unresolved(method: str) -> DictConfig:
    """A run of the method on the toy world, without a recipe, as Hydra composes it."""
    return composed_train(["model=tiny", "dataset=toy", "~recipe", f"method={method}"])


@cache
def composed(method: str, *constants: str) -> Objective:
    """The method with other values of its constants (``beta=2``), checked as a run's configuration is."""
    others = OmegaConf.from_dotlist([f"method.{constant}" for constant in constants])
    return build_objective(finished(cast(DictConfig, OmegaConf.merge(unresolved(method), others))))


@cache
def random_pairs(count: int, vocabulary: int) -> tuple[TokenizedPair, ...]:
    """Pairs of random tokens, of unequal lengths and unequal score gaps, the better response sometimes behind."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, span: int, number: int) -> list[int]:
        return torch.randint(5, vocabulary, (low + number * 7 % span,), generator=generator).tolist()

    return tuple(
        TokenizedPair(n, f"p{n}", ids(2, 4, n), ids(2, 5, n), ids(1, 6, n), 7.0 + n % 3, 1.0 + n % 4, False)
        for n in range(count)
    )


@dataclass(frozen=True)
class Pairs:
    """Leaves behind the inputs of a group of pairs, [n] each: what a test writes down."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    chosen_tokens: Sequence[float]
    rejected_tokens: Sequence[float]
    chosen_reference: Sequence[float]
    rejected_reference: Sequence[float]
    chosen_scores: Sequence[float]
    rejected_scores: Sequence[float]
    anchor_gaps: Sequence[float]
    gradient_norms: Sequence[float]

    def __len__(self) -> int:
        return len(self.chosen)


def plausible(count: int, seed: int = 0) -> Pairs:
    """``count`` pairs as a trained model might see them: 2 to 9 tokens, about two nats per token, chosen ahead."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    tokens = [torch.randint(2, 10, (count,), generator=generator).double() for _ in range(2)]
    averages = [-uniform(1.0, 2.6), -uniform(1.4, 3.0)]
    chosen, rejected = (average * length for average, length in zip(averages, tokens, strict=True))
    values = (
        chosen,
        rejected,
        *tokens,
        chosen + uniform(-1.5, 1.0),
        rejected + uniform(-1.0, 1.5),
        uniform(5.0, 10.0),
        uniform(1.0, 4.5),
        uniform(-0.5, 1.5),
        uniform(0.2, 3.0),
    )
    return Pairs(*(tensor.tolist() for tensor in values))


def response(summed: Tensor, tokens: Tensor) -> ResponseLogProbs:
    """With per-token terms that sum to ``summed``, later tokens carrying more of it."""
    time = torch.arange(1, max(int(tokens.max()), 1) + 1, dtype=torch.float64)
    shares = torch.where(time <= tokens.double()[:, None], time, torch.zeros_like(time))
    shares = (shares / shares.sum(1, keepdim=True).clamp(min=1)).to(summed.dtype)
    return ResponseLogProbs(summed, tokens, summed[:, None] * shares)


def inputs_of(objective: Objective, pairs: Pairs, dtype: torch.dtype = torch.float64) -> PairInputs:
    """What ``objective`` needs of ``pairs``, and no more; the policy's sums are leaves that want gradients."""

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    tokens = [tensor(values) for values in (pairs.chosen_tokens, pairs.rejected_tokens)]
    sums = [tensor(values).requires_grad_() for values in (pairs.chosen, pairs.rejected)]
    references = [tensor(values) for values in (pairs.chosen_reference, pairs.rejected_reference)]
    prompt = response(torch.full_like(sums[0], -6.0).detach().requires_grad_(), torch.full_like(tokens[0], 3.0))

    def sides(summed: Sequence[Tensor], prompt: ResponseLogProbs | None = None) -> PairLogProbs:
        responses = [response(*one) for one in zip(summed, tokens, strict=True)]
        if not objective.needs.per_token:
            responses = [replace(one, per_token=None) for one in responses]
            prompt = None if prompt is None else replace(prompt, per_token=None)
        return PairLogProbs(*responses, prompt)

    needs = objective.needs
    elsewhere = [one.detach().roll(1) - 1 for one in sums]
    return PairInputs(
        sides(sums, prompt if needs.prompt else None),
        reference=sides(references) if needs.reference else None,
        chosen_scores=tensor(pairs.chosen_scores) if needs.scores else None,
        rejected_scores=tensor(pairs.rejected_scores) if needs.scores else None,
        mismatched=sides(elsewhere) if needs.mismatched else None,
        mismatched_reference=sides([one - 0.7 for one in elsewhere]) if needs.mismatched else None,
        anchor_gaps=tensor(pairs.anchor_gaps) if needs.anchor_gaps else None,
        gradient_norms=tensor(pairs.gradient_norms) if needs.gradient_norms else None,
    )


def totals_of(inputs: PairInputs) -> WindowTotals:
    prompt = inputs.policy.prompt
    tokens = 0 if prompt is None else int(prompt.tokens.sum())
    return WindowTotals(len(inputs), int(inputs.policy.chosen.tokens.sum()), tokens)


def terms_of(
    objective: Objective, inputs: PairInputs, state: ObjectiveState | None = None
) -> tuple[PairTerms, ObjectiveState]:
    """Terms of a window that is one forward, group of statistics by group."""
    scope = objective.needs.statistics
    size = scope if isinstance(scope, int) else len(inputs)
    state, parts = objective.initial_state() if state is None else state, []
    for start in range(0, len(inputs), size):
        terms, state = objective.terms(inputs[start : start + size], state)
        parts.append(terms)
    return PairTerms.concatenate(parts), state


def leaves(inputs: PairInputs) -> dict[str, Tensor]:
    """The log-probs that a loss is differentiated by."""
    policy = inputs.policy
    found = {"chosen": policy.chosen.summed, "rejected": policy.rejected.summed}
    return found if policy.prompt is None else found | {"prompt": policy.prompt.summed}


def loss_and_gradient(
    objective: Objective, inputs: PairInputs, state: ObjectiveState | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one window that is one forward, and its gradient by the sums of log-probs."""
    terms, _ = terms_of(objective, inputs, state)
    loss = objective.loss(inputs, terms, totals_of(inputs))
    by = leaves(inputs)
    gradients = torch.autograd.grad(loss, list(by.values()), allow_unused=True)
    return loss.detach(), {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(by.items(), gradients, strict=True)
    }


def values_of(objective: Objective, pairs: Pairs, **more: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    """``loss_and_gradient`` in float64."""
    return loss_and_gradient(objective, inputs_of(objective, pairs), **more)
