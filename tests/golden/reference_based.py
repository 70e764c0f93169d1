"""DPO and the baselines that replace its link or its target, and SLiC and IPO without a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.common import Batch, Constants, ell, fixed, sigma, vector


def dpo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * b.h))


def ipo_sum(b: Batch, c: Constants) -> Any:
    return np.mean((b.h - 1 / (2 * c["tau"])) ** 2)


def ipo_average(b: Batch, c: Constants) -> Any:
    return np.mean((b.h_average - 1 / (2 * c["tau"])) ** 2)


def ipo_without_reference(b: Batch, c: Constants) -> Any:
    return np.mean((b.d - 1 / (2 * c["beta"])) ** 2)


def r_dpo(b: Batch, c: Constants) -> Any:
    return np.mean(ell(c["beta"] * b.h + c["sign"] * c["alpha"] * (b.n_w - b.n_l)))


def slic(b: Batch, c: Constants) -> Any:
    short = c["delta"] - (b.s_w - b.s_l)
    likelihood = {"seq_sum": -b.s_w, "seq_mean": -b.a_w}[c["nll"]]
    return np.mean(np.where(fixed(short) > 0, short, 0) + c["lambda"] * likelihood)


def slic_hinge(b: Batch, c: Constants) -> Any:
    short = 1 - c["tau"] * b.h
    return np.mean(np.where(fixed(short) > 0, short, 0))


def odpo(b: Batch, c: Constants) -> Any:
    """The logarithm leaves out the pairs whose chosen response scores no higher; the mean is over all."""
    lead = b.c_w - b.c_l
    if c["offset"] == "identity":
        return np.mean(ell(c["beta"] * b.h - c["alpha"] * lead))
    kept = lead > 0
    return np.sum(ell(c["beta"] * b.h[kept] - c["alpha"] * np.log(lead[kept]))) / b.pairs


def focalpo(b: Batch, c: Constants) -> Any:
    p = sigma(c["beta"] * b.h)
    factor = p ** c["gamma"]
    return np.mean(-(factor if c["factor"] == "grad" else fixed(factor)) * np.log(p))


def vectors() -> list[dict[str, Any]]:
    return [
        vector("dpo", "A", dpo, {"beta": 0.1}),
        vector("dpo", "B", dpo, {"beta": 0.01}),
        vector("ipo_sum", "A", ipo_sum, {"tau": 0.1}),
        vector("ipo_sum", "B", ipo_sum, {"tau": 0.02}),
        vector("ipo_avg", "A", ipo_average, {"tau": 0.1}),
        vector("ipo_avg", "Z", ipo_average, {"tau": 0.5}),
        vector("ipo_cpo_framework", "A", ipo_without_reference, {"beta": 1.0}),
        vector("ipo_cpo_framework", "Z", ipo_without_reference, {"beta": 0.4}),
        vector("r_dpo", "A", r_dpo, {"beta": 0.01, "alpha": 0.05, "sign": 1}),
        vector("r_dpo", "B", r_dpo, {"beta": 0.1, "alpha": 0.005, "sign": 1}),
        vector("r_dpo_gamma_po_table6_sign", "B", r_dpo, {"beta": 0.1, "alpha": 0.02, "sign": -1}),
        vector("slic_sft_seq_sum", "A", slic, {"delta": 1.0, "lambda": 0.1, "nll": "seq_sum"}),
        vector("slic_sft_seq_sum", "B", slic, {"delta": 60.0, "lambda": 0.5, "nll": "seq_sum"}),
        vector("slic_sft_seq_mean", "A", slic, {"delta": 0.5, "lambda": 1.0, "nll": "seq_mean"}),
        vector("slic_hinge_ref", "A", slic_hinge, {"tau": 0.1}),
        vector("slic_hinge_ref", "B", slic_hinge, {"tau": 0.5}),
        vector("odpo", "A", odpo, {"beta": 0.1, "alpha": 1.0, "offset": "log"}),
        vector("odpo", "B", odpo, {"beta": 0.01, "alpha": 0.5, "offset": "log"}),
        vector("odpo_identity", "A", odpo, {"beta": 0.1, "alpha": 0.3, "offset": "identity"}),
        vector("focalpo_grad", "A", focalpo, {"beta": 0.1, "gamma": 0.05, "factor": "grad"}),
        vector("focalpo_grad", "B", focalpo, {"beta": 0.05, "gamma": 2.5, "factor": "grad"}),
        vector("focalpo_stopgrad", "A", focalpo, {"beta": 0.1, "gamma": 0.05, "factor": "stopgrad"}),
        vector("focalpo_stopgrad", "B", focalpo, {"beta": 0.05, "gamma": 2.5, "factor": "stopgrad"}),
    ]
