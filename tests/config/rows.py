"""Which (method, model) rows the four papers' tables have, under the papers' own names, and the recipes they need."""

from __future__ import annotations

from dataclasses import dataclass

LLAMA3_BASE, LLAMA3_INSTRUCT = "llama3_8b_base", "llama3_8b_instruct"
MISTRAL_BASE, MISTRAL_INSTRUCT = "mistral_7b_base", "mistral_7b_instruct"

MODELS = {
    "amapo": {
        "Llama3-8B-Base": LLAMA3_BASE,
        "Llama3-8B-Instruct": LLAMA3_INSTRUCT,
        "Mistral-7B-Base": MISTRAL_BASE,
        "Mistral-7B-Instruct": MISTRAL_INSTRUCT,
    },
    "gamma_po": {
        "Llama3-Instruct-8B": LLAMA3_INSTRUCT,
        "Mistral-Instruct-7B": MISTRAL_INSTRUCT,
        "Gemma2-Instruct-9B": "gemma2_9b_instruct",
        "Qwen2.5-Instruct-7B": "qwen2_5_7b_instruct",
    },
    "gapo": {
        "Mistral-7B-Instruct-v0.2": MISTRAL_INSTRUCT,
        "Llama-3-8B-Base": LLAMA3_BASE,
        "Llama-3-8B-Instruct": LLAMA3_INSTRUCT,
        "Gemma-2-9B-Instruct": "gemma2_9b_instruct",
        "Pythia-2.8B": "pythia_2_8b",
    },
    "gappo": {
        "Qwen2.5-0.5B-Instruct": "qwen2_5_0_5b_instruct",
        "Gemma-2-2B": "gemma2_2b",
        "Gemma-2-2B-it": "gemma2_2b",
        "Mistral-7B-Instruct": MISTRAL_INSTRUCT,
    },
}
"""What each paper calls a model of conf/model."""

METHODS: dict[str, tuple[str, ...]] = {
    "DPO": ("dpo",),
    "IPO": ("ipo",),
    "CPO": ("cpo",),
    "KTO": ("kto",),
    "ORPO": ("orpo",),
    "SLiC": ("slic",),
    "R-DPO": ("r_dpo",),
    "rDPO": ("cdpo", "rdpo_unbiased"),
    "Dr.DPO": ("dr_dpo",),
    "alpha-DPO": ("alpha_dpo",),
    "beta-DPO": ("beta_dpo",),
    "gamma-DPO": ("gamma_dpo",),
    "SimPO": ("simpo",),
    "rSimPO": ("rsimpo",),
    "beta-SimPO": ("beta_simpo",),
    "gamma-SimPO": ("gamma_simpo",),
    "SimPO+SAM": ("simpo_sam",),
    "GradNorm-Reweight": ("gradnorm_reweight",),
    "AlphaPO": ("alphapo", "alphapo_token"),
    "AMaPO": ("amapo",),
    "w/o zero": ("amapo_without_zero",),
    "w/o exp": ("amapo_without_exp",),
    "w/o Z-norm": ("amapo_without_z_norm",),
    "w/o adaptive": ("amapo_without_adaptive", "amapo_without_adaptive_eq8"),
    "GAPO": ("gapo",),
    "full": ("gapo",),
    "lm_head": ("gapo_lm_head",),
    "GapPO": ("gappo",),
    "no_weight_norm": ("gappo",),
    "weight_norm": ("gappo_normalized",),
}
"""The methods of conf/method behind a row's name: several where a name has several readings."""

GAPPO_METHODS = {"CPO": ("cpo", "cpo_gappo_eq3"), "IPO": ("ipo", "ipo_cpo")}
"""Names that GapPO uses for other formulas."""

SFT_RUNS = (LLAMA3_BASE, MISTRAL_BASE)
"""Models whose row SFT is a run; for the others it is the released model itself."""

OWN = {
    ("gappo", "simpo", MISTRAL_INSTRUCT),
    ("gappo", "cpo", MISTRAL_INSTRUCT),
    ("gappo", "ipo", MISTRAL_INSTRUCT),
    ("gamma_po", "dpo", LLAMA3_INSTRUCT),
    ("gamma_po", "simpo", LLAMA3_INSTRUCT),
}
"""Rows that a paper runs with other values than <method>__<model> has: recipe=<method>__<model>__<paper>."""

ONE_GPU = {"sft__llama3_2_1b", "sft__pythia_410m", "sft__qwen2_5_0_5b"}
"""Recipes of small raw models that stand for the papers' on one GPU (experiments/scale/gpu.yaml)."""

UNPRINTED = {
    *(f"sft__{model}" for model in (LLAMA3_BASE, MISTRAL_BASE, "pythia_2_8b")),
    "simpo__pythia_2_8b",
    "gapo_instance__mistral_7b_instruct",
    "gapo_released__mistral_7b_instruct",
    *(
        f"gappo_{variant}__{model}"
        for variant in ("normalized", "quadratic", "exponential", "hard_filter")
        for model in ("qwen2_5_0_5b_instruct", "gemma2_2b", MISTRAL_INSTRUCT)
    ),
}
"""Recipes of runs that a paper needs, announces or discusses, whether or not a table prints a row for them."""


@dataclass(frozen=True)
class Block:
    """Rows of one table: each of the methods on each of the models, by the paper's names."""

    paper: str
    table: str
    models: tuple[str, ...]
    methods: tuple[str, ...]


AMAPO_MODELS, GAMMA_MODELS = tuple(MODELS["amapo"]), tuple(MODELS["gamma_po"])
GAPO_MODELS = ("Mistral-7B-Instruct-v0.2", "Llama-3-8B-Base", "Llama-3-8B-Instruct", "Gemma-2-9B-Instruct")
GAPPO_MODELS = ("Qwen2.5-0.5B-Instruct", "Gemma-2-2B", "Mistral-7B-Instruct")
RANKED = ("DPO", "SimPO", "alpha-DPO", "AMaPO")
CLASSIC = ("SFT", "DPO", "IPO", "CPO", "KTO", "ORPO", "R-DPO", "SimPO")

BLOCKS = (
    Block("amapo", "2", AMAPO_MODELS, ("SFT", "DPO", "SLiC", "IPO", "KTO", "CPO", "SimPO", "alpha-DPO", "AMaPO")),
    Block("amapo", "3", AMAPO_MODELS, RANKED),
    Block("amapo", "4", AMAPO_MODELS, ("DPO", "SimPO", "AMaPO")),
    Block(
        "amapo",
        "5",
        ("Llama3-8B-Base", "Llama3-8B-Instruct"),
        ("DPO", "SimPO", "AMaPO", "w/o Z-norm", "w/o exp", "w/o adaptive", "w/o zero"),
    ),
    Block("amapo", "8", AMAPO_MODELS, ("DPO", "SLiC", "IPO", "KTO", "CPO", "SimPO", "AMaPO")),
    Block("amapo", "10", AMAPO_MODELS, RANKED),
    Block(
        "amapo",
        "12",
        ("Llama3-8B-Base", "Llama3-8B-Instruct"),
        ("AMaPO", "w/o Z-norm", "w/o exp", "w/o adaptive", "w/o zero"),
    ),
    Block("amapo", "13", AMAPO_MODELS, ("SFT", "DPO", "SLiC", "IPO", "KTO", "CPO", "SimPO", "alpha-DPO", "AMaPO")),
    Block("gamma_po", "2", GAMMA_MODELS, (*CLASSIC, "rDPO", "beta-DPO", "gamma-SimPO")),
    Block(
        "gamma_po",
        "3",
        GAMMA_MODELS,
        ("DPO", "rDPO", "beta-DPO", "gamma-DPO", "SimPO", "rSimPO", "beta-SimPO", "gamma-SimPO"),
    ),
    Block("gamma_po", "4", ("Mistral-Instruct-7B",), ("SimPO", "rSimPO", "beta-SimPO", "gamma-SimPO")),
    Block("gapo", "1", GAPO_MODELS, (*CLASSIC, "alpha-DPO", "GAPO")),
    Block("gapo", "2", GAPO_MODELS[:2], ("DPO", "R-DPO", "SimPO", "alpha-DPO", "GAPO")),
    Block("gapo", "3", GAPO_MODELS[:1], ("SimPO", "GradNorm-Reweight", "GAPO")),
    Block("gapo", "B", ("Pythia-2.8B",), ("DPO", "Dr.DPO", "GAPO")),
    Block("gapo", "G", ("Llama-3-8B-Base",), ("lm_head", "full")),
    Block("gapo", "H", GAPO_MODELS[:1], ("SimPO", "SimPO+SAM", "GAPO")),
    Block("gappo", "1", GAPPO_MODELS, ("CPO", "IPO", "SimPO", "AlphaPO", "GapPO")),
    Block("gappo", "2", ("Gemma-2-2B-it",), ("no_weight_norm", "weight_norm")),
)


def printed_rows() -> set[tuple[str, str, str, str]]:
    """(paper, table, model, method) of every row, by the paper's names."""
    return {
        (block.paper, block.table, model, method)
        for block in BLOCKS
        for model in block.models
        for method in block.methods
    }


def recipes_of(paper: str, model_label: str, method_label: str) -> list[str]:
    """Names of the recipes that a row needs; none for a released model that nobody trains."""
    model = MODELS[paper][model_label]
    if method_label == "SFT":
        return [f"sft__{model}"] if model in SFT_RUNS else []
    methods = GAPPO_METHODS.get(method_label) if paper == "gappo" else None
    return [
        f"{method}__{model}" + (f"__{paper}" if (paper, method, model) in OWN else "")
        for method in methods or METHODS[method_label]
    ]
