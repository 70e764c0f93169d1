"""Stateless losses on log-probs without a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, ell, fixed, vector


def simpo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * (b.d - c["gamma_ratio"])))


def amapo(b: Batch, c: Constants) -> Any:
    beta, d = c["beta"], fixed(b.d)
    mean, deviation = np.mean(d), np.std(d, ddof=1)
    z = (mean - d) / deviation
    if c["variant"] == "code":
        margin = np.where(d < mean, beta * np.exp(z * mean), 0)
    else:
        gamma = np.maximum(z * beta * mean, 0)
        margin = np.where(gamma > 0, beta * np.exp(gamma), 0)
    return np.mean(ell(beta * b.d - margin))


def cpo(b: Batch, c: Constants) -> Any:
    likelihood = {
        "token_mean": -np.sum(b.s_w) / np.sum(b.n_w),
        "seq_mean": -np.mean(b.a_w),
        "seq_sum": -np.mean(b.s_w),
    }
    return np.mean(ell(c["beta"] * (b.s_w - b.s_l))) + c["lambda"] * likelihood[c["nll"]]


def cpo_average(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * b.d) - c["lambda"] * b.a_w)


def cpo_as_printed_by_gappo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * (b.s_w - b.s_l - c["beta"])))


def orpo(b: Batch, c: Constants) -> Any:
    odds_w = np.exp(b.a_w) / (1 - np.exp(b.a_w))
    odds_l = np.exp(b.a_l) / (1 - np.exp(b.a_l))
    return np.mean(-b.a_w + c["lambda"] * ell(np.log(odds_w / odds_l)))


def alphapo(b: Batch, c: Constants) -> Any:
    beta, alpha = c["beta"], c["alpha"]
    reward_w = (1 - np.exp(b.a_w) ** -alpha) / alpha
    reward_l = (1 - np.exp(b.a_l) ** -alpha) / alpha
    return np.mean(ell(beta * (reward_w - reward_l) - c["gamma_abs"]))


def amapo_ablated(b: Batch, c: Constants) -> Any:
    """AMaPO Table 5: margins with one component (or two) taken out."""
    beta, d = c["beta"], fixed(b.d)
    mean = np.mean(d)
    z = (mean - d) / np.std(d, ddof=1)
    below = d < mean
    margin = {
        "code_wo_zero": beta * np.exp(z * mean),
        "code_wo_exp": below * beta * 2 * z * mean,
        "paper_wo_exp": np.maximum(z * beta * mean, 0),
        "code_wo_znorm": below * beta * np.exp(mean - d),
        "wo_adaptive_linear": np.maximum(beta * (mean - d), 0),
        "wo_adaptive_eq8": below * max(beta * mean, 0),
    }[c["variant"]]
    return np.mean(ell(beta * b.d - margin))


ABLATIONS = ("code_wo_zero", "code_wo_exp", "paper_wo_exp", "code_wo_znorm", "wo_adaptive_linear", "wo_adaptive_eq8")


def baselines() -> list[dict[str, Any]]:
    return [
        *(
            vector(f"cpo_{nll}", batch, cpo, {"beta": beta, "lambda": 1.0, "nll": nll})
            for nll in ("token_mean", "seq_mean", "seq_sum")
            for batch, beta in (("A", 0.1), ("B", 0.05))
        ),
        vector("cpo_avg_gammapo", "A", cpo_average, {"beta": 0.1, "lambda": 1.0}),
        vector("cpo_avg_gammapo", "B", cpo_average, {"beta": 2.0, "lambda": 0.25}),
        vector("cpo_gappo_eq3", "A", cpo_as_printed_by_gappo, {"beta": 1.0}),
        vector("cpo_gappo_eq3", "B", cpo_as_printed_by_gappo, {"beta": 0.1}),
        vector("orpo", "A", orpo, {"lambda": 0.1}),
        vector("orpo", "B", orpo, {"lambda": 0.5}),
        vector("alphapo", "A", alphapo, {"beta": 2.5, "alpha": 0.25, "gamma_abs": 0.25}),
        vector("alphapo", "B", alphapo, {"beta": 1.0, "alpha": -0.5, "gamma_abs": 0.5}),
    ]


def ablations() -> list[dict[str, Any]]:
    entries = []
    for variant in ABLATIONS:
        for batch, beta in (("A", 3.0), ("B", 2.0)):
            entries.append(vector(f"amapo_{variant}", batch, amapo_ablated, {"beta": beta, "variant": variant}))
    return entries


def vectors() -> list[dict[str, Any]]:
    return [
        *baselines(),
        *ablations(),
        vector("simpo", "A", simpo, {"beta": 2.0, "gamma_ratio": 0.5}),
        vector("simpo", "B", simpo, {"beta": 2.5, "gamma_ratio": 0.1}),
        vector("simpo_zero_length", "Z", simpo, {"beta": 2.0, "gamma_ratio": 0.5}),
        vector("amapo_code", "A", amapo, {"beta": 3.0, "variant": "code"}),
        vector("amapo_code", "B", amapo, {"beta": 2.0, "variant": "code"}),
        vector("amapo_paper", "A", amapo, {"beta": 3.0, "variant": "paper"}),
        vector("amapo_paper", "B", amapo, {"beta": 2.0, "variant": "paper"}),
        vector("amapo_zero_length", "Z", amapo, {"beta": 2.0, "variant": "code"}),
    ]
