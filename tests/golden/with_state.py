"""Losses that carry something from batch to batch: γ-PO's queue, α-DPO's and β-DPO's running averages."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, Numbers, State, ell, fixed, sigma, stateful_vectors, vector

QUEUE = [0.3, -1.2, 0.8, 2.1, -0.4, 0.05]


def descended(margins: Numbers, gamma0: float, tau: float, updates: int) -> Numbers:
    """γ-PO Eq. 23 and 24 on probabilities, with the p_j that Eq. 24 lacks and the code's guard of the logarithm."""
    count = len(margins)
    p = np.full(count, 1 / count)
    for _ in range(updates):
        gradient = gamma0 * sigma(count * p * gamma0 - margins) + tau * (1 + np.log(count * (p + 1e-10)))
        p = p * np.exp(-min(0.5 / tau, 1) * gradient)
        p = p / np.sum(p)
    return count * p * gamma0


def gamma_po(b: Batch, c: Constants, state: State) -> tuple[Any, State]:
    margin = c["beta"] * (b.h if "subtract_gamma0" in c else b.d)
    now, queue = fixed(margin), list(state["queue"])
    history = [queue[index] for index in c.get("sample_index", range(len(queue)))]
    gamma = descended(np.concatenate([now, history]), c["gamma0"], c["tau"], c["updates"])[: len(now)]
    if c.get("subtract_gamma0"):
        gamma = gamma - c["gamma0"]
    return np.mean(ell(margin - gamma)), {"queue": (queue + now.tolist())[-c["queue_maxlen"] :]}


def alpha_dpo(b: Batch, c: Constants, state: State) -> tuple[Any, State]:
    gap = fixed(b.h_average)
    mean = 0.9 * state["mean"] + 0.1 * float(np.mean(gap))
    std = 0.9 * state["std"] + 0.1 * float(np.std(gap, ddof=1))
    target = c["beta"] * (c["gamma_ratio"] + c["alpha"] * (gap - mean) / std)
    return np.mean(ell(c["beta"] * b.d - target)), {"mean": mean, "std": std}


def alpha_dpo_of_amapo(b: Batch, c: Constants) -> Any:
    gap = fixed(b.h_average)
    z = (gap - np.mean(gap)) / np.std(gap, ddof=1)
    return np.mean(ell(c["beta"] * (b.d - c["gamma_ratio"]) - c["alpha"] * z))


def averaged(gap: Numbers, state: State) -> State:
    return {
        "mean": 0.9 * state["mean"] + 0.1 * float(np.mean(gap)),
        "std": 0.9 * state["std"] + 0.1 * float(np.std(gap, ddof=1)),
    }


def beta_dpo(b: Batch, c: Constants, state: State) -> tuple[Any, State]:
    kept, official = np.array(c["sample_index"]), c["flavour"] == "official"
    gap = fixed(b.h) * (1 if official else c["beta"])
    after = averaged(gap, state)
    mean = (after if official else state)["mean"]
    beta = max(c["beta"] * (1 + c["alpha"] * (float(np.mean(gap[kept])) - mean)), 1e-3)
    losses = ell(beta * b.h)
    return np.mean(losses[kept] if official else losses), after


def beta_simpo(b: Batch, c: Constants, state: State) -> tuple[Any, State]:
    gap = fixed(c["beta"] * b.d)
    excess = float(np.mean(gap[np.array(c["sample_index"])])) - state["mean"]
    beta = max(c["beta"] * (1 + c["alpha"] * excess), 1e-3)
    return np.mean(ell(beta * (b.d - c["gamma_ratio"]))), averaged(gap, state)


def drawn_vectors(tag: str, formula: Any, constants: Constants, initial: State, draws: dict[str, list[int]]) -> Any:
    """Entries whose draw is given batch by batch."""
    entries: list[dict[str, Any]] = []
    for batch, index in draws.items():
        given = {**constants, "sample_index": index}
        entries += stateful_vectors(tag, formula, given, initial, (batch,))
        initial = entries[-1]["state_out"]
    return entries


def vectors() -> list[dict[str, Any]]:
    wide = {"opt_size": 256, "queue_maxlen": 2048}
    tight = {"opt_size": 10, "queue_maxlen": 9, "beta": 10.0, "gamma0": 3.0, "tau": 3.0, "updates": 19}
    llama = {**wide, "beta": 10.0, "gamma0": 4.0, "tau": 10.0}
    mistral = {**wide, "beta": 2.5, "gamma0": 0.375, "tau": 10.0, "updates": 19}
    dpo = {**wide, "beta": 0.1, "gamma0": 1.0, "tau": 10.0}
    queue, kept = {"queue": QUEUE}, {"A": [0, 2, 3, 4, 5, 7], "B": [0, 1, 3, 4]}
    zero, one = {"mean": 0.0, "std": 0.0}, {"mean": 0.0, "std": 1.0}
    alpha = {"beta": 2.5, "alpha": 0.05, "gamma_ratio": 0.15}
    ema, printed = {"stats": "ema", "alpha_scale": "beta"}, {"stats": "batch", "alpha_scale": "one"}
    beta = {"beta": 0.1, "drop": 0.2}
    return [
        *stateful_vectors("gamma_simpo_code", gamma_po, {**llama, "updates": 19}, queue),
        *stateful_vectors("gamma_simpo_paper", gamma_po, {**llama, "updates": 20}, {"queue": []}),
        *stateful_vectors("gamma_simpo_mistral", gamma_po, mistral, queue),
        *drawn_vectors("gamma_simpo_fifo_eviction", gamma_po, tight, queue, {"A": [4, 1], "B": [8, 2, 3, 0, 5]}),
        *stateful_vectors("gamma_dpo_code", gamma_po, {**dpo, "updates": 19, "subtract_gamma0": True}, queue),
        *stateful_vectors("gamma_dpo_paper", gamma_po, {**dpo, "updates": 20, "subtract_gamma0": False}, queue),
        *stateful_vectors("alpha_dpo_code", alpha_dpo, {**alpha, **ema}, zero),
        vector("alpha_dpo_amapo_paper", "A", alpha_dpo_of_amapo, {**alpha, **printed}),
        vector("alpha_dpo_amapo_paper", "B", alpha_dpo_of_amapo, {**alpha, "beta": 10.0, "alpha": 0.2, **printed}),
        *drawn_vectors("beta_dpo_official", beta_dpo, {**beta, "alpha": 0.6, "flavour": "official"}, zero, kept),
        *drawn_vectors("beta_dpo_gammapo_repo", beta_dpo, {**beta, "alpha": 0.1, "flavour": "gammapo"}, one, kept),
        *drawn_vectors("beta_simpo", beta_simpo, {"beta": 10.0, "alpha": 0.05, "gamma_ratio": 0.3}, one, kept),
    ]
