"""Which losses are sums over pairs: what lets a forward weigh a few pairs while their logits are there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from src.objective.objective import Objective
from src.objective.types import PairInputs, PairTerms
from tests.methods import METHODS, composed, inputs_of, leaves, plausible, terms_of, totals_of

PAIRS = 9
CUTS = ([1] * PAIRS, [4, 5], [2, 6, 1])


def slices(cut: list[int]) -> list[slice]:
    ends = [sum(cut[: number + 1]) for number in range(len(cut))]
    return [slice(end - size, end) for end, size in zip(ends, cut, strict=True)]


def case(method: str) -> tuple[Objective, PairInputs]:
    """The method, and pairs that differ in everything it looks at."""
    objective = composed(method)
    inputs = inputs_of(objective, plausible(PAIRS, seed=3))
    if inputs.mismatched is not None:  # else all mismatched rewards are one number, whatever the group
        chosen = inputs.mismatched.chosen
        chosen = replace(chosen, summed=chosen.summed * torch.linspace(0.4, 1.0, PAIRS, dtype=torch.float64))
        inputs = replace(inputs, mismatched=replace(inputs.mismatched, chosen=chosen))
    return objective, inputs


def shares(objective: Objective, inputs: PairInputs, cut: list[int], terms: PairTerms | None = None) -> list[Tensor]:
    """Loss and gradients of the sum of shares over the parts of a cut; of ``terms``, or each part's own."""
    total = torch.zeros((), dtype=torch.float64)
    for part in slices(cut):
        mine = terms_of(objective, inputs[part])[0] if terms is None else terms[part]
        total = total + objective.loss(inputs[part], mine, totals_of(inputs))
    by = list(leaves(inputs).values())
    found = torch.autograd.grad(total, by, allow_unused=True, retain_graph=True)
    return [
        total.detach(),
        *(torch.zeros_like(leaf) if one is None else one for leaf, one in zip(by, found, strict=True)),
    ]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_is_the_sum_of_its_pairs_where_it_says_so_and_not_elsewhere(method: str) -> None:
    objective, inputs = case(method)
    whole = shares(objective, inputs, [PAIRS])
    differences = [apart(shares(objective, inputs, cut), whole) for cut in CUTS]
    if objective.separable:
        assert max(differences) < 1e-12
    else:
        assert max(differences) > 1e-6, "it says that a group of pairs matters, and none of these cuts shows it"
    terms, _ = terms_of(objective, inputs)
    differences = [apart(shares(objective, inputs, cut, terms), whole) for cut in CUTS]
    assert max(differences) < 1e-12, "with terms that are given, every loss is a sum"


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_margins_alone_rescales_their_gradients_and_no_other_does(method: str) -> None:
    objective, inputs = case(method)
    if not objective.needs.rejected:
        assert not objective.rescales
        return
    terms, _ = terms_of(objective, inputs)
    by = list(leaves(inputs).values())
    wanted = torch.autograd.grad(
        objective.loss(inputs, terms, totals_of(inputs)), by, allow_unused=True, retain_graph=True
    )
    factors = objective.pulls(inputs, terms, totals_of(inputs))
    margins = objective.rewards(inputs.policy, inputs.reference).margins
    found = torch.autograd.grad((factors * margins).sum(), by, allow_unused=True)
    same = all(
        a is b is None or (a is not None and b is not None and torch.allclose(a, b, rtol=1e-10, atol=1e-13))
        for a, b in zip(found, wanted, strict=True)
    )
    assert objective.rescales == same


def test_both_kinds_are_there() -> None:
    found = [composed(method).separable for method in METHODS]
    assert len(METHODS) == len(found) >= 49
    assert sum(found) >= 25
    assert len(found) - sum(found) >= 15
