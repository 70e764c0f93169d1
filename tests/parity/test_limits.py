"""Where one method becomes another, and where gradients must not flow: on the methods as conf/method composes them.

Loss and gradient by every log-prob, float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from src.objective.objective import Objective
from src.objective.types import PairInputs, PairTerms
from tests.invariance.test_every_method import once, window_of
from tests.methods import (
    METHODS,
    Pairs,
    composed,
    inputs_of,
    leaves,
    loss_and_gradient,
    plausible,
    terms_of,
    totals_of,
    values_of,
)

PAIRS = plausible(8)
GAP = 2.5
EQUAL_GAPS = replace(PAIRS, chosen_scores=[7.5] * 8, rejected_scores=[7.5 - GAP] * 8)


@dataclass(frozen=True)
class Limit:
    """``method`` with ``constants`` gives ``factor`` times what ``other`` gives."""

    method: str
    constants: tuple[str, ...]
    other: str
    others: tuple[str, ...] = ()
    factor: float = 1.0
    pairs: Pairs = PAIRS
    tolerance: float = 1e-12

    def __str__(self) -> str:
        return "-".join((self.method, *self.constants, self.other))


SIMPO = ("beta=2", "gamma_beta_ratio=0.4")
DPO = ("beta=0.1",)
ONE = plausible(1)
FAR = 1e9  # stands for infinity: what is left of the other terms is 1e-9 of them

LIMITS = (
    # equal score gaps are a constant factor, or none once normalized
    Limit("gappo", SIMPO, "simpo", SIMPO, GAP, EQUAL_GAPS),
    Limit("gappo_quadratic", SIMPO, "simpo", SIMPO, GAP**2, EQUAL_GAPS),
    Limit("gappo_exponential", SIMPO, "simpo", SIMPO, float(torch.tensor(GAP).double().expm1()), EQUAL_GAPS),
    Limit("gappo_normalized", SIMPO, "simpo", SIMPO, 1.0, EQUAL_GAPS),
    Limit("gappo_hard_filter", SIMPO, "simpo", SIMPO),
    # a batch of one has no statistics
    Limit("amapo", ("beta=2",), "simpo", ("beta=2", "gamma_beta_ratio=0"), 1.0, ONE),
    Limit("amapo", ("beta=2", "fidelity=paper"), "simpo", ("beta=2", "gamma_beta_ratio=0"), 1.0, ONE),
    # the entropy term outweighs the margins: every pair gets the mean margin
    Limit("gamma_simpo", (*SIMPO, f"tau={FAR}"), "simpo", SIMPO, tolerance=1e-8),
    Limit("gamma_dpo", ("beta=0.1", "gamma_beta_ratio=10", f"tau={FAR}"), "dpo", DPO, tolerance=1e-8),
    # no adaptation
    Limit("alpha_dpo", (*SIMPO, "alpha=0"), "simpo", SIMPO),
    Limit("alpha_dpo", (*SIMPO, "alpha=0", "fidelity=paper"), "simpo", SIMPO),
    Limit("alpha_dpo", (*SIMPO, "alpha=0", "fidelity=released"), "simpo", SIMPO),
    Limit("beta_dpo", ("beta=0.1", "alpha=0", "drop=0"), "dpo", DPO),
    Limit("beta_simpo", (*SIMPO, "alpha=0"), "simpo", SIMPO),
    # worst cases weigh nothing
    Limit("dr_dpo", ("beta=0.1", f"beta_prime={FAR}"), "dpo", DPO, tolerance=1e-7),
    Limit("dr_dpo_global", ("beta=0.1", f"beta_prime={FAR}"), "dpo", DPO, tolerance=1e-7),
    # the shaped reward becomes the plain one
    Limit("alphapo", (*SIMPO, "alpha=1e-8"), "simpo", SIMPO, tolerance=1e-6),
    Limit("alphapo_token", (*SIMPO, "alpha=1e-8"), "simpo", SIMPO, tolerance=1e-6),
    # no label is taken to be wrong
    Limit("cdpo", ("beta=0.1", "label_smoothing=0"), "dpo", DPO),
    Limit("rdpo_unbiased", ("beta=0.1", "label_smoothing=0"), "dpo", DPO),
    Limit("simpo_smoothed", (*SIMPO, "label_smoothing=0"), "simpo", SIMPO),
    Limit("rsimpo", (*SIMPO, "label_smoothing=0"), "simpo", SIMPO),
    Limit("rsimpo_unbiased", (*SIMPO, "label_smoothing=0"), "simpo", SIMPO),
    # no focus, no offset, no penalty
    Limit("focalpo", ("beta=0.1", "focal_exponent=0"), "dpo", DPO),
    Limit("focalpo_stop_gradient", ("beta=0.1", "focal_exponent=0"), "dpo", DPO),
    Limit("odpo", ("beta=0.1", "alpha=0"), "dpo", DPO),
    Limit("odpo", ("beta=0.1", "alpha=0", "offset=identity"), "dpo", DPO),
    Limit("r_dpo", ("beta=0.1", "alpha=0"), "dpo", DPO),
    # the same reward under another name
    Limit("cpo", ("beta=0.1", "nll_coefficient=0"), "cpo_gappo_eq3", ("beta=0.1", "target.gamma_beta_ratio=0")),
    Limit("cpo_avg", ("beta=2", "nll_coefficient=0"), "simpo", ("beta=2", "gamma_beta_ratio=0")),
    # SAM changes where the gradient is taken, not the loss
    Limit("simpo_sam", SIMPO, "simpo", SIMPO),
)


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_limit(limit: Limit) -> None:
    loss, gradient = values_of(composed(limit.method, *limit.constants), limit.pairs)
    expected, by = values_of(composed(limit.other, *limit.others), limit.pairs)
    assert loss.item() == pytest.approx(limit.factor * expected.item(), rel=limit.tolerance)
    assert gradient.keys() == by.keys()
    for name, values in gradient.items():
        largest = limit.factor * by[name].abs().max()
        assert largest > 0
        torch.testing.assert_close(
            values, limit.factor * by[name], rtol=limit.tolerance, atol=limit.tolerance * float(largest)
        )


@pytest.mark.parametrize("method", ["gapo", "gapo_instance", "gapo_lm_head", "gapo_released"])
def test_gapo_without_a_perturbation_weighs_every_pair_alike(method: str) -> None:
    """ρ → 0: no margin falls, so every pair has the weight σ(γ) (GAPO Eq. 8 with a gap of 0)."""
    objective = composed(method, "beta=2.5", "gamma_beta_ratio=0.4")
    inputs = inputs_of(objective, replace(PAIRS, anchor_gaps=[0.0] * 8))
    terms, _ = terms_of(objective, inputs)
    expected = torch.full((8,), 1.0, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(objective.metrics(inputs, terms)["weight/gradient"], expected)
    loss, gradient = loss_and_gradient(objective, inputs)
    assert loss.item() == pytest.approx(torch.nn.functional.softplus(torch.tensor(1.0)).item(), rel=1e-6)
    tokens = inputs.policy.chosen.tokens
    torch.testing.assert_close(gradient["chosen"], -2.5 * expected / tokens / 8)


@pytest.mark.parametrize("method", ["gapo", "gapo_instance", "gapo_lm_head", "gapo_released"])
def test_a_vanishing_radius_weighs_every_pair_alike(method: str) -> None:
    """The same through a model and a step: ρ → 0 leaves gaps of 0."""
    step = once(composed(method, "gamma_beta_ratio=0.4", "rho=1e-8"), {}, window_of([8]))
    torch.testing.assert_close(
        step.metrics["weight/gradient"], torch.full((8,), 1.0, dtype=torch.float64).sigmoid(), rtol=1e-5, atol=0
    )
    assert step.metrics["anchor/skipped"].sum() == 0


def test_sharpness_of_no_radius_is_the_plain_gradient() -> None:
    """SAM with ρ → 0 updates as SimPO does; with a radius it does not."""
    plain = once(composed("simpo", *SIMPO), {}, window_of([8])).gradient
    near, far = (once(composed("simpo_sam", *SIMPO, f"rho={rho}"), {}, window_of([8])).gradient for rho in (1e-8, 0.05))
    assert float((near - plain).norm() / plain.norm()) < 1e-5
    assert float((far - plain).norm() / plain.norm()) > 1e-3


# --- stop-gradients ---------------------------------------------------------------------------------------------------

MOVED_BY_LOG_PROBS = {
    "alpha_dpo",
    "amapo",
    "amapo_without_adaptive",
    "amapo_without_adaptive_eq8",
    "amapo_without_exp",
    "amapo_without_z_norm",
    "amapo_without_zero",
    "beta_dpo",
    "beta_simpo",
    "gamma_dpo",
    "gamma_simpo",
    "gapo",
    "gapo_instance",
    "gapo_lm_head",
    "gapo_released",
    "kto_swapped",
}
"""Methods whose temperatures, targets or weights are functions of the policy's log-probs of these pairs."""

STOPPED_IN_THE_LINK = {"focalpo_stop_gradient"}
"""Methods whose link itself holds a factor still, so that even with terms held fixed the loss moves otherwise."""

FELT = {"gamma_dpo": ("beta=0.1", "gamma_beta_ratio=20", "tau=1"), "gamma_simpo": ("tau=1",)}
"""Constants with which a term follows the log-probs by more than rounding."""

STEP = 1e-6


def slope(objective: Objective, inputs: PairInputs, name: str, index: int, terms: PairTerms | None) -> float:
    """Central difference of the loss by one log-prob, with ``terms`` held fixed or, without them, through the terms."""
    values = []
    for sign in (1, -1):
        moved = shifted(inputs, name, index, sign * STEP)
        used = terms_of(objective, moved)[0] if terms is None else terms
        values.append(objective.loss(moved, used, totals_of(moved)).item())
    return (values[0] - values[1]) / (2 * STEP)


def shifted(inputs: PairInputs, name: str, index: int, by: float) -> PairInputs:
    """``inputs`` with one summed log-prob of the policy moved; its tokens move in proportion."""
    response = getattr(inputs.policy, name)
    summed = response.summed.detach().clone()
    summed[index] += by
    per_token = response.per_token
    if per_token is not None:
        per_token = per_token.detach() * (summed / response.summed.detach())[:, None]
    moved = replace(response, summed=summed, per_token=per_token)
    return replace(inputs, policy=replace(inputs.policy, **{name: moved}))


def slopes(objective: Objective, inputs: PairInputs, terms: PairTerms | None) -> dict[str, Tensor]:
    """``slope`` by every log-prob."""
    return {
        name: torch.tensor(
            [slope(objective, inputs, name, index, terms) for index in range(len(leaf))], dtype=torch.float64
        )
        for name, leaf in leaves(inputs).items()
    }


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    largest = max(float(values.abs().max()) for values in one.values())
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one) / largest


def test_the_lists_name_methods() -> None:
    assert set(METHODS) >= MOVED_BY_LOG_PROBS | STOPPED_IN_THE_LINK


@pytest.mark.parametrize("method", METHODS)
def test_stop_gradients_stop(method: str) -> None:
    """Autograd is the slope of the loss with terms held fixed; where terms follow the log-probs, it is not the slope
    through them, and everywhere else (Dr.DPO's reduction included) it is."""
    objective = composed(method, *FELT.get(method, ()))
    inputs = inputs_of(objective, PAIRS)
    _, gradient = loss_and_gradient(objective, inputs)
    fixed = slopes(objective, inputs, terms_of(objective, inputs)[0])
    through = slopes(objective, inputs, None)
    if method in STOPPED_IN_THE_LINK:
        assert apart(gradient, fixed) > 1e-3
        return
    assert apart(gradient, fixed) < 1e-7
    if method in MOVED_BY_LOG_PROBS:
        assert apart(gradient, through) > 1e-3
    else:
        assert apart(gradient, through) < 1e-7


def test_focalpo_holds_its_factor_still() -> None:
    """Weight p^γ · (1 − p) with p = σ(margin): the gradient of −p^γ · log p with p^γ held fixed (FocalPO)."""
    objective = composed("focalpo_stop_gradient", "beta=0.3", "focal_exponent=0.7")
    inputs = inputs_of(objective, PAIRS)
    _, gradient = loss_and_gradient(objective, inputs)
    p = objective.rewards(inputs.policy, inputs.reference).margins.detach().sigmoid()
    torch.testing.assert_close(gradient["chosen"], -0.3 * p**0.7 * (1 - p) / 8)
