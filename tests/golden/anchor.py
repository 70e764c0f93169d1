"""GAPO, GradNorm-Reweight and SAM on a policy of 30 numbers: a bigram model, logits(previous token) = E[previous] @ U.

The first token of a response follows the prompt's one token. Gradients are those of E row by row, then U row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.golden.common import STEP, Constants, Numbers, ell, fixed, sigma

VOCABULARY, WIDTH = 5, 3
EMBEDDING = VOCABULARY * WIDTH
"""How many of the policy's numbers are E's; the others are the output layer's."""


def random_pairs(seed: int, count: int) -> list[dict[str, Any]]:
    """Prompts of one token, responses of 1 to 5."""
    draw = np.random.default_rng(seed)

    def response() -> list[int]:
        tokens: list[int] = draw.integers(0, VOCABULARY, draw.integers(1, 6)).tolist()
        return tokens

    return [{"prompt": index % VOCABULARY, "chosen": response(), "rejected": response()} for index in range(count)]


PAIRS = random_pairs(21, 6)
THETA: Numbers = np.round(np.random.default_rng(22).normal(0, 0.7, 2 * EMBEDDING), 3)
ALL = [list(range(len(PAIRS)))]


def average(theta: Numbers, prompt: int, response: Sequence[int]) -> Any:
    """Nats per token of a response."""
    logits = theta[:EMBEDDING].reshape(VOCABULARY, WIDTH) @ theta[EMBEDDING:].reshape(WIDTH, VOCABULARY)
    log_probs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    return np.mean(np.array([log_probs[row, token] for row, token in zip([prompt, *response], response, strict=False)]))


def margins(theta: Numbers, c: Constants) -> Numbers:
    """Reward margins, length-normalized as SimPO's, [pairs]."""
    return c["beta"] * np.array(
        [average(theta, p["prompt"], p["chosen"]) - average(theta, p["prompt"], p["rejected"]) for p in PAIRS]
    )


def gradient(function: Callable[[Numbers], Any], theta: Numbers) -> Numbers:
    """The derivative of ``function`` in every number of ``theta``; of a vector, a column for each."""
    columns = []
    for index in range(len(theta)):
        moved = theta.astype(complex)
        moved[index] += 1j * STEP
        columns.append(np.imag(function(moved)) / STEP)
    return np.array(columns).T


def within(scope: str, direction: Numbers) -> Numbers:
    """``direction`` with nothing outside the scope."""
    kept = direction.copy()
    if scope == "lm_head":
        kept[..., :EMBEDDING] = 0
    if scope == "backbone":
        kept[..., EMBEDDING:] = 0
    return kept


def gapo(c: Constants) -> dict[str, Any]:
    """Gap_i = m_i(theta) - m_i(theta - rho u), u the unit gradient of the group's mean margin."""
    size = len(PAIRS)
    slopes = gradient(lambda theta: margins(theta, c), THETA)
    at_anchor, first_order = np.zeros(size), np.zeros(size)
    for group in c["groups"]:
        direction = within(c["scope"], np.mean(slopes[group], axis=0))
        unit = direction / np.linalg.norm(direction)
        at_anchor[group] = margins(THETA - c["rho"] * unit, c)[group]
        first_order[group] = c["rho"] * slopes[group] @ unit
    absolute = c["beta"] * c["gamma_ratio"]

    def loss(theta: Numbers) -> Any:
        return np.mean(ell(margins(theta, c) - at_anchor - absolute))

    gap = margins(THETA, c) - at_anchor
    return {
        **values(loss),
        "margin": margins(THETA, c).tolist(),
        "anchor_gap": gap.tolist(),
        "weight": sigma(absolute - gap).tolist(),
        "first_order_gap_batch": first_order.tolist(),
    }


def gapo_released(c: Constants) -> dict[str, Any]:
    """Gap_i = m_i(theta) - m_i(theta + rho theta^2 g / |theta g|), g the gradient of SimPO's loss on the group."""
    at_anchor, absolute = np.zeros(len(PAIRS)), c["beta"] * c["gamma_ratio"]
    for group in c["groups"]:
        chosen = np.array(group)
        slope = within(
            c["scope"], gradient(lambda theta, of=chosen: np.mean(ell(margins(theta, c)[of] - absolute)), THETA)
        )
        there = THETA + c["rho"] * THETA**2 * slope / np.linalg.norm(THETA * slope)
        at_anchor[group] = margins(there, c)[group]
    gap = margins(THETA, c) - at_anchor
    found = values(lambda theta: np.mean(ell(margins(theta, c) - at_anchor - absolute)))
    return found | {"margin": margins(THETA, c).tolist(), "anchor_gap": gap.tolist()}


def gradnorm_reweight(c: Constants) -> dict[str, Any]:
    """-mean of sigma(gamma - s_i) m_i, s_i the norm of the margin's gradient, over its mean or times rho."""
    norms = np.linalg.norm(gradient(lambda theta: margins(theta, c), THETA), axis=1)
    measure = norms / np.mean(norms) if c["norm"] == "batch_mean" else c["rho"] * norms
    weight = sigma(c["beta"] * c["gamma_ratio"] - measure)
    found = values(lambda theta: -np.mean(weight * margins(theta, c)))
    return found | {"margin": margins(THETA, c).tolist(), "weight": weight.tolist()}


def simpo(theta: Numbers, c: Constants) -> Any:
    return np.mean(ell(margins(theta, c) - c["beta"] * c["gamma_ratio"]))


def sharpness(c: Constants) -> dict[str, Any]:
    """SimPO's loss here, and its gradient at theta + rho g / |g|."""
    slope = gradient(lambda theta: simpo(theta, c), THETA)
    there = THETA + c["rho"] * slope / np.linalg.norm(slope)
    return values(lambda theta: simpo(theta, c), there) | {"batch_loss": float(fixed(simpo(THETA, c)))}


def values(loss: Callable[[Numbers], Any], theta: Numbers = THETA) -> dict[str, Any]:
    return {"batch_loss": float(loss(theta)), "grad_theta": gradient(loss, theta).tolist()}


def toy() -> dict[str, Any]:
    """The policy, its pairs, and what each method makes of them."""
    plain = {"beta": 2.5, "gamma_ratio": 0.1}
    anchored = {"beta": 2.0, "gamma_ratio": 0.5, "rho": 0.05, "scope": "full", "groups": ALL}
    each = [[index] for index in range(len(PAIRS))]
    cases: list[tuple[str, Callable[[Constants], dict[str, Any]], dict[str, Any]]] = [
        ("gapo_batch_full", gapo, anchored),
        ("gapo_batch_lmhead", gapo, anchored | {"scope": "lm_head"}),
        ("gapo_groups", gapo, anchored | {"groups": [[0, 1], [2, 3], [4, 5]]}),
        ("gapo_shorter_last_group", gapo, anchored | {"groups": [[0, 1, 2, 3], [4, 5]]}),
        ("gapo_instance", gapo, anchored | {"groups": each}),
        ("gapo_large_radius", gapo, anchored | {"beta": 10.0, "rho": 0.5}),
        ("gapo_released", gapo_released, anchored | {"fidelity": "released", "scope": "backbone"}),
        (
            "gapo_released_groups",
            gapo_released,
            anchored | {"fidelity": "released", "scope": "backbone", "groups": [[0, 1, 2], [3, 4, 5]]},
        ),
        ("gradnorm_reweight_meannorm", gradnorm_reweight, plain | {"norm": "batch_mean"}),
        ("gradnorm_reweight_rho", gradnorm_reweight, plain | {"norm": "rho", "rho": 0.05}),
        ("simpo_plain_toy", lambda c: values(lambda theta: simpo(theta, c)), plain),
        ("simpo_sam_toy", sharpness, plain | {"rho": 0.05}),
    ]
    return {
        "E": THETA[:EMBEDDING].reshape(VOCABULARY, WIDTH).tolist(),
        "U": THETA[EMBEDDING:].reshape(WIDTH, VOCABULARY).tolist(),
        "pairs": PAIRS,
        "vectors": [{"config": {"tag": tag, **c}, **formula(c)} for tag, formula, c in cases],
    }
