"""Losses and gradients of the composed methods against numbers that our code did not compute.

Two files hold such numbers, in one format: those of ``tests/golden/`` (made by ``python -m tests.golden.make``, which
knows nothing of ``src``), and the vectors of the development folder, where it is there. A tag of theirs is one row of
``ROWS``: the method, and which of the vector's constants each of its constants takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from src.config import ROOT
from src.objective.objective import Objective, ObjectiveState
from src.objective.state import Injected
from src.objective.types import PairInputs, PairLogProbs, ResponseLogProbs, WindowTotals
from src.schema import TrainConfig
from src.training.assemble import build_objective
from tests.config.test_compose import composed
from tests.golden import make

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.json"))
DEVELOPMENT = ROOT.parent / "shared" / "vectors.json"

Constants = Mapping[str, Any]
Vector = Mapping[str, Any]

PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-5)]

WORDS = {
    "grad": "gradient",
    "stopgrad": "stop_gradient",
    "seq_mean": "sequence_mean",
    "seq_sum": "sequence_sum",
    "code": "released",
    "gammapo": "gamma_po",
}
"""What the files call the choices of our constants."""


COUNTS = ("draws", "groups")
"""Entries of our states that say how many groups there were."""


@dataclass(frozen=True)
class Row:
    """The method of a tag. ``constants``: ours from the vector's, by its name there or by a function of all of them.

    ``prepare`` changes the objective or its inputs before the loss is taken (mismatched log-probs, an injected
    sample); ``state`` is our state of a state of the file, by which the file's ``state_in`` and ``state_out`` are read.
    """

    method: str
    constants: Mapping[str, str | Callable[[Constants], Any]]
    prepare: Callable[[Objective, PairInputs, Vector], tuple[Objective, PairInputs]] | None = None
    state: Callable[[Constants, Mapping[str, Any]], ObjectiveState] | None = None


def same(*names: str, **others: str | Callable[[Constants], Any]) -> dict[str, str | Callable[[Constants], Any]]:
    """Constants that the file calls by our name, and the others."""
    return {name: name for name in names} | others


SIMPO = same("beta", gamma_beta_ratio="gamma_ratio")

SLIC = same("delta", nll_coefficient="lambda", nll_normalization="nll")
CPO = same("beta", nll_coefficient="lambda", nll_normalization="nll")
GAPPO = same("beta", gamma_beta_ratio="gamma", weighting="weight")


def with_drift(objective: Objective, pairs: PairInputs, vector: Vector) -> tuple[Objective, PairInputs]:
    """The vector's log-ratios of mismatched responses, one a pair, as those of both responses of the pair."""
    ones = torch.ones_like(pairs.policy.chosen.tokens)
    drift = ResponseLogProbs(torch.tensor(vector["config"]["kl_logratios"], dtype=ones.dtype), ones)
    none = ResponseLogProbs(torch.zeros_like(ones), ones)
    return objective, replace(
        pairs, mismatched=PairLogProbs(drift, drift), mismatched_reference=PairLogProbs(none, none)
    )


def with_sample(objective: Objective, pairs: PairInputs, vector: Vector) -> tuple[Objective, PairInputs]:
    """The vector's draw, where it has one, for every part that draws."""
    given = vector["config"].get("sample_index")
    drawing = {name: part for name, part in objective.parts.items() if hasattr(part, "advance_with")}
    if given is None:
        return objective, pairs
    return replace(objective, **{name: Injected(part, tuple(given)) for name, part in drawing.items()}), pairs


def queued(constants: Constants, state: Mapping[str, Any]) -> ObjectiveState:
    """γ-PO's queue."""
    return {"target": {"queue": torch.tensor(state["queue"], dtype=torch.float64), "draws": 0}}


def averaged(*slots: str) -> Callable[[Constants, Mapping[str, Any]], ObjectiveState]:
    """Running averages, in every slot that keeps them."""
    return lambda constants, state: {slot: {**state, "draws": 0, "groups": 0} for slot in slots}


GAMMA_PO = same(
    "beta",
    "tau",
    "updates",
    gamma_beta_ratio=lambda c: c["gamma0"] / c["beta"],
    solver_pairs="opt_size",
    queue_capacity="queue_maxlen",
)
ALPHA_DPO = same("beta", "alpha", gamma_beta_ratio="gamma_ratio")
BETA_DPO = same("beta", "alpha", "drop")

ROWS: dict[str, Row] = {
    # reference-based
    "dpo": Row("dpo", same("beta")),
    "cdpo": Row("cdpo", same("beta", label_smoothing="eps")),
    "rdpo_unbiased": Row("rdpo_unbiased", same("beta", label_smoothing="eps")),
    "ipo_sum": Row("ipo", same("tau")),
    "ipo_avg": Row("ipo_avg", same("tau")),
    "ipo_cpo_framework": Row("ipo_cpo", same(tau="beta")),
    "r_dpo": Row("r_dpo", same("beta", "alpha", "sign")),
    "r_dpo_gamma_po_table6_sign": Row("r_dpo", same("beta", "alpha", "sign")),
    "slic_sft_seq_sum": Row("slic", SLIC),
    "slic_sft_seq_mean": Row("slic", SLIC),
    "slic_hinge_ref": Row("slic_hinge", same("tau")),
    "odpo": Row("odpo", same("beta", "alpha", "offset")),
    "odpo_identity": Row("odpo", same("beta", "alpha", "offset")),
    "focalpo_grad": Row("focalpo", same("beta", "factor", focal_exponent="gamma")),
    "focalpo_stopgrad": Row("focalpo_stop_gradient", same("beta", "factor", focal_exponent="gamma")),
    # reference-free
    "simpo": Row("simpo", SIMPO),
    "simpo_zero_length": Row("simpo", SIMPO),
    "simpo_ls": Row("simpo_smoothed", SIMPO | {"label_smoothing": "eps"}),
    "rsimpo_eq13": Row("rsimpo", SIMPO | {"label_smoothing": "eps"}),
    "rsimpo_unbiased": Row("rsimpo_unbiased", SIMPO | {"label_smoothing": "eps"}),
    "amapo_code": Row("amapo", same("beta", fidelity="variant")),
    "amapo_paper": Row("amapo", same("beta", fidelity="variant")),
    "amapo_zero_length": Row("amapo", same("beta", fidelity="variant")),
    "amapo_code_wo_zero": Row("amapo_without_zero", same("beta")),
    "amapo_code_wo_exp": Row("amapo_without_exp", same("beta", fidelity=lambda c: "released")),
    "amapo_paper_wo_exp": Row("amapo_without_exp", same("beta", fidelity=lambda c: "paper")),
    "amapo_code_wo_znorm": Row("amapo_without_z_norm", same("beta")),
    "amapo_wo_adaptive_linear": Row("amapo_without_adaptive", same("beta")),
    "amapo_wo_adaptive_eq8": Row("amapo_without_adaptive_eq8", same("beta")),
    "cpo_token_mean": Row("cpo", CPO),
    "cpo_seq_mean": Row("cpo", CPO),
    "cpo_seq_sum": Row("cpo", CPO),
    "cpo_avg_gammapo": Row("cpo_avg", same("beta", nll_coefficient="lambda")),
    "cpo_gappo_eq3": Row("cpo_gappo_eq3", same("beta")),
    "orpo": Row("orpo", same(odds_ratio_weight="lambda")),
    "alphapo": Row("alphapo", same("beta", "alpha", gamma_beta_ratio=lambda c: c["gamma_abs"] / c["beta"])),
    # pairs that count differently
    "gappo": Row("gappo", GAPPO),
    "gappo_zero_length": Row("gappo", GAPPO),
    "gappo_normalized": Row("gappo_normalized", GAPPO | {"normalized": "normalize"}),
    "gappo_quadratic": Row("gappo_quadratic", GAPPO),
    "gappo_exponential": Row("gappo_exponential", GAPPO),
    "dr_dpo": Row("dr_dpo", same("beta", "beta_prime")),
    # with state
    "gamma_simpo_code": Row("gamma_simpo", GAMMA_PO, with_sample, queued),
    "gamma_simpo_paper": Row("gamma_simpo", GAMMA_PO, with_sample, queued),
    "gamma_simpo_mistral": Row("gamma_simpo", GAMMA_PO, with_sample, queued),
    "gamma_simpo_fifo_eviction": Row("gamma_simpo", GAMMA_PO, with_sample, queued),
    "gamma_dpo_code": Row("gamma_dpo", GAMMA_PO | {"centered": "subtract_gamma0"}, with_sample, queued),
    "gamma_dpo_paper": Row("gamma_dpo", GAMMA_PO | {"centered": "subtract_gamma0"}, with_sample, queued),
    "alpha_dpo_code": Row("alpha_dpo", ALPHA_DPO | {"fidelity": lambda c: "released"}, None, averaged("target")),
    "alpha_dpo_amapo_paper": Row("alpha_dpo", ALPHA_DPO | {"fidelity": lambda c: "paper"}),
    "beta_dpo_official": Row(
        "beta_dpo", BETA_DPO | {"fidelity": "flavour"}, with_sample, averaged("temperature", "weight")
    ),
    "beta_dpo_gammapo_repo": Row(
        "beta_dpo", BETA_DPO | {"fidelity": "flavour"}, with_sample, averaged("temperature", "weight")
    ),
    "beta_simpo": Row(
        "beta_simpo", same("beta", "alpha", gamma_beta_ratio="gamma_ratio"), with_sample, averaged("temperature")
    ),
    # of other inputs
    "kto_paired": Row("kto", same("beta", lambda_chosen="lambda_w", lambda_rejected="lambda_l"), with_drift),
    "kto_pair_swapped": Row("kto_swapped", same("beta")),
}


@cache
def method_of(name: str) -> DictConfig:
    """conf/method/``name``.yaml, composed with everything else (a seed may be interpolated)."""
    return composed(f"method={name}")


def objective_of(row: Row, constants: Constants) -> Objective:
    """The composed method with the vector's constants; one that the method does not have is a mistake of the row."""
    config = method_of(row.method).copy()
    for ours, theirs in row.constants.items():
        assert ours in config.method, f"{row.method} has no constant {ours}"
        value = theirs(constants) if callable(theirs) else constants[theirs]
        OmegaConf.update(config, f"method.{ours}", WORDS.get(value, value) if isinstance(value, str) else value)
    return build_objective(TrainConfig(method=OmegaConf.to_container(config.method, resolve=True)))


def inputs_of(batch: Mapping[str, list[float]], dtype: torch.dtype) -> PairInputs:
    """The pairs of a batch of the file: summed log-probs s and q, tokens n, scores c."""

    def response(sums: str, tokens: str) -> ResponseLogProbs:
        return ResponseLogProbs(torch.tensor(batch[sums], dtype=dtype), torch.tensor(batch[tokens], dtype=dtype))

    policy = PairLogProbs(response("s_w", "n_w"), response("s_l", "n_l"))
    policy.chosen.summed.requires_grad_()
    policy.rejected.summed.requires_grad_()
    scores = [torch.tensor(batch[name], dtype=dtype) for name in ("c_w", "c_l")]
    return PairInputs(policy, PairLogProbs(response("q_w", "n_w"), response("q_l", "n_l")), *scores)


def check(vector: Vector, batch: Mapping[str, list[float]], dtype: torch.dtype, tolerance: float) -> None:
    """Loss, dL/ds of both responses, and the state after, all relative to the largest of their kind."""
    row, constants = ROWS[vector["tag"]], vector["config"]
    objective, pairs = objective_of(row, constants), inputs_of(batch, dtype)
    if row.prepare is not None:
        objective, pairs = row.prepare(objective, pairs, vector)
    before = objective.initial_state() if row.state is None else row.state(constants, vector["state_in"])
    terms, after = objective.terms(pairs, before)
    totals = WindowTotals(len(pairs), int(pairs.policy.chosen.tokens.sum()))
    loss = objective.loss(pairs, terms, totals)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(vector["batch_loss"], rel=tolerance, abs=1e-30)
    largest = max(map(abs, vector["dL_ds_w"] + vector["dL_ds_l"]))
    for side, name in ((pairs.policy.chosen, "dL_ds_w"), (pairs.policy.rejected, "dL_ds_l")):
        assert side.summed.grad is not None
        assert side.summed.grad.tolist() == pytest.approx(vector[name], rel=tolerance, abs=tolerance * largest), name
    if row.state is not None:
        expected = numbers(row.state(constants, vector["state_out"]))
        assert numbers(after) == pytest.approx(expected, rel=tolerance, abs=tolerance * max(map(abs, expected)))


def numbers(state: Any) -> list[float]:
    """Every number of a state, in order, but for counts of groups, which the files do not keep."""
    if isinstance(state, Mapping):
        return [number for name in sorted(state) if name not in COUNTS for number in numbers(state[name])]
    if isinstance(state, torch.Tensor):
        return [float(value) for value in state.flatten().tolist()]
    if isinstance(state, (list, tuple)):
        return [number for item in state for number in numbers(item)]
    return [float(state)] if isinstance(state, (int, float)) else []


def cases() -> Iterator[Any]:
    """A case per file and tag; those of a file that is not here are one that is skipped."""
    for path in [*GOLDEN, DEVELOPMENT]:
        if not path.exists():
            why = "the vectors of the development folder are not here; those of tests/golden stand in"
            yield pytest.param(path, "every tag", marks=pytest.mark.skip(reason=why), id=path.name)
            continue
        for tag in sorted({vector["tag"] for vector in read(path)["vectors"]} & ROWS.keys()):
            yield pytest.param(path, tag, id=f"{path.stem}-{tag}")


@cache
def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(("path", "tag"), cases())
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["double", "single"]
)
def test_loss_and_gradient_are_those_of_the_vectors(path: Path, tag: str, dtype: torch.dtype, tolerance: float) -> None:
    content = read(path)
    for vector in content["vectors"]:
        if vector["tag"] == tag:
            check(vector, content["batches"][vector["batch"]], dtype, tolerance)


def test_every_row_has_numbers_that_do_not_come_from_elsewhere() -> None:
    """The development folder is not there for everyone: each row must stand on tests/golden alone."""
    tags = {vector["tag"] for path in GOLDEN for vector in read(path)["vectors"]}
    assert sorted(ROWS.keys() - tags) == []
    assert sorted(tags - ROWS.keys()) == []


def test_golden_files_are_what_their_formulas_give() -> None:
    """To the last digits, which may differ between builds of numpy; ``python -m tests.golden.make`` writes them."""
    assert [path.stem for path in GOLDEN] == make.FAMILIES
    for path in GOLDEN:
        expected, found = make.content(path.stem), read(path)
        assert found["batches"] == expected["batches"]
        assert [entry["tag"] for entry in found["vectors"]] == [entry["tag"] for entry in expected["vectors"]]
        for one, other in zip(found["vectors"], expected["vectors"], strict=True):
            assert one["config"] == other["config"]
            for name in ("batch_loss", "dL_ds_w", "dL_ds_l"):
                assert one[name] == pytest.approx(other[name], rel=1e-12, abs=1e-15)


def test_golden_formulas_know_nothing_of_ours() -> None:
    files = [*(ROOT / "tests" / "golden").glob("*.py")]
    assert len(files) > len(make.FAMILIES)
    assert [path.name for path in files if re.search(r"^\s*(from|import) (src|torch)\b", path.read_text(), re.M)] == []
