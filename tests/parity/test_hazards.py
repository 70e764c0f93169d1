"""Every method on inputs that break careless formulas: loss and gradient stay finite, in float32 and in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.methods import METHODS, Pairs, composed, inputs_of, loss_and_gradient, plausible, terms_of

COUNT = 6
PLAIN = plausible(COUNT)
EQUAL = Pairs(*([value] * COUNT for value in (-8.0, -12.0, 4.0, 5.0, -9.0, -11.0, 8.0, 3.0, 0.5, 1.0)))
"""The same pair again and again: every deviation is 0."""


def leading_by(margin: float) -> Pairs:
    """Pairs of which the policy prefers one response by ``margin`` nats per token and in sum, one token each."""
    ones = [1.0] * COUNT
    chosen, rejected = (-1.0, -1.0 - margin) if margin > 0 else (-1.0 + margin, -1.0)
    return replace(
        PLAIN,
        chosen=[chosen] * COUNT,
        rejected=[rejected] * COUNT,
        chosen_tokens=ones,
        rejected_tokens=ones,
        chosen_reference=[-1.0] * COUNT,
        rejected_reference=[-1.0] * COUNT,
    )


def mixed(*margins: float) -> Pairs:
    """One pair with each of these margins, one token each."""
    parts = [leading_by(margin) for margin in margins]
    return Pairs(*([getattr(part, name)[0] for part in parts] for name in Pairs.__dataclass_fields__))


def outlier() -> Pairs:
    """63 pairs far ahead and one far behind: the z-score of a batch of 64 at its largest, times a large mean."""
    return mixed(*[300.0] * 63, -300.0)


def empty(side: str) -> Pairs:
    """The first two pairs have a response without tokens."""
    blank = {name: [0.0, 0.0, *getattr(PLAIN, name)[2:]] for name in (side, f"{side}_tokens", f"{side}_reference")}
    return replace(PLAIN, **blank)


def certain(*sides: str) -> Pairs:
    """Responses of probability 1: their odds are infinite."""
    return replace(PLAIN, **{side: [-0.0] * COUNT for side in sides})


HAZARDS: dict[str, Pairs] = {
    "one pair": plausible(1),
    "one pair, far behind": mixed(-1e3),
    "all margins equal": EQUAL,
    "margins equal but for rounding": replace(EQUAL, chosen=[-8.0 + 1e-7 * index for index in range(COUNT)]),
    "no score gap": replace(PLAIN, rejected_scores=PLAIN.chosen_scores),
    "one score gap of zero": replace(PLAIN, rejected_scores=[PLAIN.chosen_scores[0], *PLAIN.rejected_scores[1:]]),
    "scores the wrong way round": replace(
        PLAIN, chosen_scores=PLAIN.rejected_scores, rejected_scores=PLAIN.chosen_scores
    ),
    "mean margin below zero": replace(
        PLAIN,
        chosen=PLAIN.rejected,
        rejected=PLAIN.chosen,
        chosen_tokens=PLAIN.rejected_tokens,
        rejected_tokens=PLAIN.chosen_tokens,
    ),
    "far ahead": leading_by(1e3),
    "far behind": leading_by(-1e3),
    "far ahead and far behind": mixed(1e3, -1e3, 1e3, -1e3),
    "outlier": outlier(),
    "no chosen tokens": empty("chosen"),
    "no rejected tokens": empty("rejected"),
    "both without tokens": replace(
        empty("chosen"), **{name: getattr(empty("rejected"), name) for name in ("rejected", "rejected_tokens")}
    ),
    "policy is the reference": replace(PLAIN, chosen_reference=PLAIN.chosen, rejected_reference=PLAIN.rejected),
    "one pair, policy is the reference": replace(
        plausible(1), chosen_reference=plausible(1).chosen, rejected_reference=plausible(1).rejected
    ),
    "chosen certain": certain("chosen"),
    "rejected certain": certain("rejected"),
    "both certain": certain("chosen", "rejected"),
    "nearly certain": replace(PLAIN, chosen=[-1e-7] * COUNT, rejected=[-1e-6] * COUNT),
    "hopeless responses": replace(PLAIN, chosen=[-3e3] * COUNT, rejected=[-2e3] * COUNT),
    "no anchor gap": replace(PLAIN, anchor_gaps=[0.0] * COUNT, gradient_norms=[0.0] * COUNT),
    "huge anchor gaps": replace(PLAIN, anchor_gaps=[1e3, -1e3] * 3, gradient_norms=[1e3, 0.0] * 3),
}

VARIANTS = (
    ("amapo", "fidelity=paper"),
    ("amapo", "statistics=2"),
    ("alpha_dpo", "fidelity=released"),
    ("alpha_dpo", "fidelity=paper"),
    ("beta_dpo", "fidelity=gamma_po"),
    ("gamma_simpo", "queue_init=normal8"),
    ("gamma_simpo", "tau=0.1"),
    ("odpo", "offset=identity"),
    ("alphapo", "alpha=-0.5"),
    ("alphapo_token", "alpha=-0.5"),
    ("orpo", "nll_normalization=prompt_and_chosen"),
    ("orpo", "nll_normalization=token_mean"),
    ("gradnorm_reweight", "normalization=rho", "rho=0.05"),
    ("gappo_exponential", "normalized=true"),
    ("focalpo", "focal_exponent=2"),
)
"""The branches that no method's own constants take."""

CASES = [(method,) for method in METHODS] + list(VARIANTS)

STEPS = 3
"""Stateful methods meet the same pairs as often: with averages that start from nothing, and after that."""


def test_there_are_methods() -> None:
    assert len(METHODS) >= 48


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_finite(case: tuple[str, ...], dtype: torch.dtype) -> None:
    one = composed(*case)
    broken = []
    for hazard, pairs in HAZARDS.items():
        state = one.initial_state()
        for step in range(STEPS if state else 1):
            inputs = inputs_of(one, pairs, dtype)
            loss, gradient = loss_and_gradient(one, inputs, state)
            terms, state = terms_of(one, inputs, state)
            numbers = {"loss": loss} | gradient | one.metrics(inputs, terms)
            broken += [
                f"{hazard}, step {step}: {name} = {value.tolist()}"
                for name, value in numbers.items()
                if not torch.isfinite(value).all()
            ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_an_empty_response_pulls_nothing_of_its_own(dtype: torch.dtype) -> None:
    """Its average is 0 whatever its sum, which is 0: SimPO's gradient by it is that of a count of 1 (GapPO 3.6)."""
    _, gradient = loss_and_gradient(composed("simpo"), inputs_of(composed("simpo"), empty("chosen"), dtype))
    assert (gradient["chosen"][:2] < 0).all()
    assert gradient["chosen"].abs().max() <= 2.0 / COUNT
