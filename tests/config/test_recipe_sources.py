"""What a recipe's `# source:` says is true: the value is the published one, or lies in the grid that it names."""

from __future__ import annotations

import functools
import operator
import re
from collections import Counter
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.config import CONF
from tests.config.recipe_files import PUBLISHED, RECIPES, own_sources, own_values

HPARAMS = CONF.parent.parent / "shared" / "hparams.yaml"

NAMES = {
    "seed": ("seed",),
    "training.learning_rate": ("learning_rate", "lr"),
    "training.global_batch_size": ("global_batch_size", "effective_batch", "batch_size"),
    "training.micro_batch_size": ("per_device_train_batch_size",),
    "training.epochs": ("epochs",),
    "training.warmup_ratio": ("warmup_ratio",),
    "training.warmup_steps": ("warmup_steps",),
    "training.scheduler": ("lr_scheduler",),
    "training.optimizer": ("optimizer",),
    "training.max_grad_norm": ("max_grad_norm",),
    "dataset.max_length": ("max_length",),
    "dataset.max_prompt_length": ("max_prompt_length",),
    "evaluation.every_steps": ("eval_steps",),
    "checkpoint.every_steps": ("eval_steps",),
    "method.beta": ("beta", "delta(beta)"),
    "method.gamma_beta_ratio": ("gamma_ratio", "gamma"),
    "method.alpha": ("alpha", "alpha(a)"),
    "method.tau": ("tau", "beta"),
    "method.rho": ("rho",),
    "method.beta_prime": ("beta_prime",),
    "method.delta": ("delta", "delta(beta)"),
    "method.drop": ("drop_fraction(mode_weight)",),
    "method.decay": ("ema",),
    "method.label_smoothing": ("epsilon",),
    "method.lambda_chosen": ("lambda_w",),
    "method.lambda_rejected": ("lambda_l",),
    "method.nll_coefficient": ("lambda", "cpo_alpha", "alpha"),
    "method.odds_ratio_weight": ("lambda",),
    "method.statistics": ("stat_batch_released",),
}
"""A recipe's key and what hparams.yaml calls it. GapPO's `gamma` counts as a ratio, since its beta is 1, GAPO's too."""

AMAPO = {
    "llama3_8b_base": "Llama3-8B-Base",
    "llama3_8b_instruct": "Llama3-8B-Instruct",
    "mistral_7b_base": "Mistral-7B-Base",
    "mistral_7b_instruct": "Mistral-7B-Instruct",
}
GAMMA = {
    "llama3_8b_instruct": "Llama3-Instruct-8B",
    "mistral_7b_instruct": "Mistral-Instruct-7B",
    "gemma2_9b_instruct": "Gemma2-Instruct-9B",
    "qwen2_5_7b_instruct": "Qwen2.5-Instruct-7B",
}
GAPO = {
    "mistral_7b_instruct": "Mistral-7B-Instruct-v0.2",
    "llama3_8b_base": "Llama-3-8B-Base",
    "llama3_8b_instruct": "Llama-3-8B-Instruct",
    "gemma2_9b_instruct": "Gemma-2-9B-Instruct",
    "pythia_2_8b": "Llama-3-8B-Base",  # whose constants the unstated ones of Pythia are
}
GAPPO = {
    "qwen2_5_0_5b_instruct": "Qwen2.5-0.5B-Instruct",
    "gemma2_2b": "Gemma-2-2B",
    "mistral_7b_instruct": "Mistral-7B-Instruct",
}
README = {
    "llama3_8b_base": "Llama3-Base",
    "llama3_8b_instruct": "Llama3-Instruct",
    "mistral_7b_base": "Mistral-Base",
    "mistral_7b_instruct": "Mistral-Instruct",
    "gemma2_9b_instruct": "Gemma",
}
LABELS = {"amapo": AMAPO, "gamma": GAMMA, "gapo": GAPO, "gappo": GAPPO, "readme": README}
"""What each paper or repository calls a model, in hparams.yaml."""

OUTSIDE = "external_reference_values"
COMMON = tuple(f"papers/{paper}/common" for paper in ("amapo", "gammapo", "gapo"))
HH = "papers/gapo/models/Pythia-2.8B_HH_noise"
PLACES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"SimPO README, v0\.2", (f"{OUTSIDE}/SimPO_README/{{family}}/Llama3-Instruct-v0.2",)),
    (r"ours, that of (DPO|SimPO).* SimPO README.*v0\.2", (f"{OUTSIDE}/SimPO_README/{{said}}/Llama3-Instruct-v0.2",)),
    (r"ours, that of (DPO|SimPO) in the SimPO README", (f"{OUTSIDE}/SimPO_README/{{said}}/{{readme}}",)),
    (r"SimPO README", (f"{OUTSIDE}/SimPO_README/{{family}}/{{readme}}",)),
    (r"SimPO setting, printed by", COMMON),
    (r"AMaPO and gamma-PO repos", COMMON[:2]),
    (r"AMaPO and gamma-PO papers", ("papers/amapo/search/{grid}", "papers/gammapo/search/{grid}")),
    (r"AMaPO paper, SFT stage", ("papers/amapo/sft", *COMMON[:1])),
    (r"AMaPO (paper|repo), for Mistral-7B-Base", ("papers/amapo/common",)),
    (r"AMaPO repo", ("papers/amapo/models/{amapo}/AMaPO",)),
    (r"gamma-PO Table 7|ours, that of its gamma-SimPO", ("papers/gammapo/models/{gamma}/gamma-SimPO",)),
    (r"GAPO Table A|ours, that of (GAPO Table A|Llama-3-8B-Base)", ("papers/gapo/models/{gapo}/GAPO",)),
    (r"GAPO paper, appendix G\.4", ("papers/gapo/models/{gapo}/GradNorm-Reweight",)),
    (r"GAPO paper, appendix G\.5", ("papers/gapo/models/{gapo}/SimPO+SAM",)),
    (r"GapPO paper, beta of its Eq\. 4", ("papers/gappo/methods/IPO",)),
    (r"GapPO paper", tuple(f"papers/gappo/{node}" for node in ("methods/AlphaPO", "shared_loss", "common"))),
    (r"Dr\.DPO repo", (f"{HH}/DPO", f"{HH}/Dr.DPO", f"{OUTSIDE}/Dr_DPO_repo")),
    (r"alpha-DPO repo", (f"{OUTSIDE}/alpha-DPO_repo/{{readme}}",)),
    (r"beta-DPO repo", (f"{OUTSIDE}/beta-DPO_repo",)),
    (r"HALOs, its default", (f"{OUTSIDE}/HALOs_defaults/{{grid}}",)),
    (r"TRL, its default", (f"{OUTSIDE}/TRL_1.16_defaults/CPO",)),
)
"""How a source begins, and where hparams.yaml has its values; the first that fits decides."""

UNCOLLECTED = {
    (r"Dr\.DPO repo", "training.scheduler"): "constant",
    (r"Dr\.DPO repo", "model.init"): "pretrained",
    (r"Dr\.DPO repo, pairs of one forward on one GPU", "method.statistics"): 64 // 2 // 4,
    (r"alpha-DPO repo, pairs of one forward", "method.statistics"): 2 * 4,
    (r"gamma-PO repo, pairs of one forward.*: 2 per device, 4 GPUs", "method.statistics"): 2 * 4,
    (r"gamma-PO repo, pairs of one forward.*: 1 per device, 8 GPUs", "method.statistics"): 1 * 8,
    (r"GAPO paper, section 6\.4: instance-wise", "method.anchor_pairs"): 1,
    (r"SimPO README|Zephyr's SFT recipe", "model.path"): None,
}
"""Published values that the collection lacks (None: any)."""

GRIDS = {
    "alpha_dpo": "alpha-DPO",
    "beta_simpo": "beta-DPO",
    "cdpo": "rDPO",
    "cpo": "CPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "kto": "KTO",
    "orpo": "ORPO",
    "r_dpo": "R-DPO",
    "rsimpo": "rDPO",
    "simpo": "SimPO",
    "slic": "SLiC",
}
"""What hparams.yaml calls a method's search grid."""


def numbers(text: str) -> list[float]:
    return [float(one) for one in text.split(",")]


def grid_in(source: str) -> list[float] | None:
    """The grid that a source names, if it names one."""
    match = re.search(r"grid \[([^\]]+)\]|in the grid ([\d., e-]+)", source)
    return numbers(match[1] or match[2]) if match else None


def cases() -> list[tuple[str, str, Any, str]]:
    """(recipe, key, value, source) of every value of a published model's recipe."""
    return [
        (recipe.stem, key, value, own_sources(recipe)[key])
        for recipe in PUBLISHED
        for key, value in own_values(recipe).items()
    ]


def test_every_source_is_a_known_one() -> None:
    kinds: Counter[str] = Counter()
    for recipe, key, value, source in cases():
        place = next((pattern for pattern, _ in PLACES if re.match(pattern, source)), None)
        other = next((pattern for pattern, name in UNCOLLECTED if name == key and re.match(pattern, source)), None)
        assert place or other or source.startswith("ours, "), f"{recipe}: {key}: {source}"
        kinds["ours" if source.startswith("ours, ") else "published"] += 1
        grid = grid_in(source)
        assert grid is None or value in grid, f"{recipe}: {key}={value} is not in {grid}"
    assert kinds == {"ours": 177, "published": 1000}


def test_toy_recipes_say_that_they_are_not_tuned() -> None:
    counted = 0
    for recipe in RECIPES:
        if recipe.stem.endswith("__tiny"):
            for key, source in own_sources(recipe).items():
                assert re.fullmatch("calibration on the toy world, docs/toy_world.md|.*not tuned", source), key
                counted += 1
    assert counted == 63


def test_published_values_are_those_of_the_collection() -> None:
    if not HPARAMS.is_file():
        pytest.skip("../shared/hparams.yaml, the collection of published values, is not here")
    collection = OmegaConf.to_container(OmegaConf.load(HPARAMS))
    compared: Counter[str] = Counter()
    for recipe, key, value, source in cases():
        for pattern, name in UNCOLLECTED:
            if name == key and re.match(pattern, source):
                assert UNCOLLECTED[pattern, name] in (None, value), f"{recipe}: {key}"
                break
        else:
            for found in published(collection, recipe, key, source):
                assert value == found, f"{recipe}: {key}={value}, but {found} is published"
                compared["values"] += 1
        for grid in printed_grids(collection, recipe, key, source):
            assert grid_in(source) == grid, f"{recipe}: {key}"
            compared["grids"] += 1
    assert compared == {"values": 1971, "grids": 96}


def published(collection: Any, recipe: str, key: str, source: str) -> list[Any]:
    """What hparams.yaml says of ``key`` at each place that ``source`` names; [] where the source is our own choice."""
    method, model = recipe.split("__")[:2]
    match = next((found for pattern, _ in PLACES if (found := re.match(pattern, source))), None)
    if match is None:
        return []
    places = next(places for pattern, places in PLACES if re.match(pattern, source))
    labels = {paper: names.get(model, "-") for paper, names in LABELS.items()}
    family = "DPO" if method == "dpo" else "SimPO"
    said = match[1] if match.re.groups else None
    names = NAMES[key]
    if "for Mistral-7B-Base" in source:
        names = tuple(f"{name}_mistral_base" for name in names)
    found = []
    for place in places:
        node = at(collection, place.format(**labels, family=family, said=said, grid=GRIDS.get(method, "-")))
        found += [plain(node[name]) for name in names if isinstance(node, dict) and name in node][:1]
    if source.startswith("GapPO paper") and key == "training.learning_rate":
        found = [at(collection, f"papers/gappo/learning_rate/{labels['gappo']}")]
    assert found, f"{recipe}: {key} is nowhere in {places}"
    return found if source.startswith(("SimPO setting", "AMaPO and")) else found[:1]


def at(collection: Any, path: str) -> Any:
    """The node at a path of hparams.yaml; {} where there is none."""
    try:
        return functools.reduce(operator.getitem, path.split("/"), collection)
    except KeyError:
        return {}


def plain(found: Any) -> Any:
    """A value without its note, a grid's only value, a name in our spelling."""
    found = found.get("value", found) if isinstance(found, dict) else found
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    return found.lower() if isinstance(found, str) else found


def printed_grids(collection: Any, recipe: str, key: str, source: str) -> list[list[float]]:
    """The grids that the papers named in ``source`` print for ``key``."""
    if grid_in(source) is None:
        return []
    method = recipe.split("__")[0]
    papers = [name for name, said in (("amapo", "AMaPO"), ("gammapo", "gamma-PO")) if said in source.split("[")[0]]
    found = []
    for paper in papers or ["amapo", "gammapo"]:
        node = at(collection, f"papers/{paper}/search")
        if key != "training.learning_rate":
            node = node.get(GRIDS[method], {})
        found += [node[name] for name in NAMES[key] if name in node][:1]
    assert found, f"{recipe}: no paper prints a grid for {key}"
    return found
