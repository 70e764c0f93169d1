"""From the configuration of a test vector to a method of conf/method and the constants it sets there.

The vectors have names of their own (``gamma_ratio``, ``eps``, ``variant: code_wo_zero``). A route says what each key of
a family of vectors means here. A key that neither a route nor the method's YAML knows is an error, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from src.catalogue.rows import constants
from src.errors import UserError

Config = Mapping[str, Any]

METHOD = "method"
"""The setting that sends a vector to another method (a thin YAML), so that this one is checked too."""

SMALLEST_GAP = "min_score_gap"
"""The setting that is no constant of the method but of the data set's filter."""

Reading = Callable[[Any, Config], Mapping[str, Any]]
"""From the value of a key, and the whole configuration, to settings: constants by our names and those above."""


def named(name: str) -> Reading:
    """The key is a constant of ours under another name; null leaves it to another key, or at its default."""
    return lambda value, config: {} if value is None else {name: value}


def meaning(**choices: Mapping[str, Any]) -> Reading:
    """Each value of the key stands for some settings."""

    def read(value: Any, config: Config) -> Mapping[str, Any]:
        if str(value) not in choices:
            raise UserError(f"value {value!r} is unknown (known: {', '.join(choices)})")
        return choices[str(value)]

    return read


def margin(value: Any, config: Config) -> Mapping[str, Any]:
    """A margin in reward units: divided by beta it is ``gamma_beta_ratio``."""
    if value is None:
        return {}
    if "beta" not in config:
        raise UserError("a margin in reward units cannot be converted without beta")
    return {"gamma_beta_ratio": float(value) / float(config["beta"])}


def margin_in_mode(value: Any, config: Config) -> Mapping[str, Any]:
    """A bare gamma, of which ``gamma_mode`` says what it is."""
    readings = {"ratio": named("gamma_beta_ratio"), "abs": margin}
    if config.get("gamma_mode") not in readings:
        raise UserError("gamma may be a ratio to beta or in reward units; give gamma_ratio or gamma_abs")
    return readings[config["gamma_mode"]](value, config)


def normalized(value: Any, config: Config) -> Mapping[str, Any]:
    """GapPO's normalized weight: a method of its own when linear, else a constant."""
    return {METHOD: "gappo_normalized"} if value and config.get("weight") == "linear" else {"normalized": value}


def gap_weight(value: Any, config: Config) -> Mapping[str, Any]:
    """GapPO's weight: each form is a method."""
    if value == "linear" and config.get("normalize"):
        return {}
    return meaning(
        linear={METHOD: "gappo"},
        quadratic={METHOD: "gappo_quadratic"},
        exponential={METHOD: "gappo_exponential"},
        hard={METHOD: "gappo_hard_filter"},
    )(value, config)


def smallest_gap(value: Any, config: Config) -> Mapping[str, Any]:
    """The score gap from which a pair is kept; only the hard filter has one."""
    if config.get("weight") != "hard":
        raise UserError(f"min_delta={value} would change nothing, since weight={config.get('weight')} is no filter")
    return {SMALLEST_GAP: float(value)}


def statistics_of_alpha_dpo(value: Any, config: Config) -> Mapping[str, Any]:
    """Running or batch statistics come with their own scale of z, so the two keys together name the fidelity."""
    pair = (config.get("stats"), config.get("alpha_scale"))
    known = {("ema", "beta"): "released", ("batch", "one"): "paper"}
    if pair not in known:
        raise UserError(f"stats={pair[0]} with alpha_scale={pair[1]} is no form of alpha_dpo that we have")
    return {"fidelity": known[pair]}


def amapo_variants() -> dict[str, Mapping[str, Any]]:
    """Fidelities and ablations of AMaPO; each ablation is a method."""
    fidelities = {"code": "released", "paper": "paper"}
    ablations = {"zero": "zero", "exp": "exp", "znorm": "z_norm"}
    variants: dict[str, Mapping[str, Any]] = {name: {"fidelity": ours} for name, ours in fidelities.items()}
    for name, ours in fidelities.items():
        for theirs, ablation in ablations.items():
            variants[f"{name}_wo_{theirs}"] = {METHOD: f"amapo_without_{ablation}", "fidelity": ours}
    variants["wo_adaptive_linear"] = {METHOD: "amapo_without_adaptive"}
    variants["wo_adaptive_eq8"] = {METHOD: "amapo_without_adaptive_eq8"}
    return variants


DIRECTION_KEYS = ("direction", "anchor", "strategy")
"""Names under which a vector says whether pairs share a direction."""

OWN_DIRECTION = {METHOD: "gapo_instance"}
DIRECTIONS = {"batch": {}, "batch_wise": {}, "instance": OWN_DIRECTION, "instance_wise": OWN_DIRECTION}


def instance_wise(config: Config) -> bool:
    """Whether every pair has a direction of its own."""
    said = any(str(config.get(key)).startswith("instance") for key in DIRECTION_KEYS)
    return said or all(len(group) == 1 for group in config.get("groups", [[0, 1]]))


def perturbed_scope(value: Any, config: Config) -> Mapping[str, Any]:
    """GAPO's output-layer form is a method of its own, unless directions are instance-wise as well."""
    return {METHOD: "gapo_lm_head"} if value == "lm_head" and not instance_wise(config) else {"scope": value}


def anchor_groups(value: Any, config: Config) -> Mapping[str, Any]:
    """How many pairs share a direction: groups of equal size, the last may be smaller."""
    if instance_wise(config):
        return OWN_DIRECTION
    sizes = [len(group) for group in value]
    if len(set(sizes[:-1])) > 1 or not sizes or not 0 < sizes[-1] <= sizes[0]:
        raise UserError(f"groups of {sizes} pairs: all but the last must be of one size, and the last not larger")
    return {"anchor_pairs": sizes[0]}


def radius_of_norms(value: Any, config: Config) -> Mapping[str, Any]:
    """GradNorm-Reweight's rho, which norms divided by their mean do not contain."""
    return {"rho": value} if config.get("norm") == "rho" else {}


def normalization(constant: str) -> Reading:
    """How the negative log-likelihood of the chosen responses is averaged, under our name of the constant."""
    ours = {"token_mean": "token_mean", "seq_mean": "sequence_mean", "seq_sum": "sequence_sum"}
    return meaning(**{theirs: {constant: name} for theirs, name in ours.items()})


NLL = normalization("nll_normalization")
SOLVER = {"opt_size": named("solver_pairs"), "queue_maxlen": named("queue_capacity"), "gamma0": margin}
WEIGHTED_NLL = {"lambda": named("nll_coefficient"), "nll": NLL}
MARGIN = {"gamma_ratio": named("gamma_beta_ratio"), "gamma_abs": margin}
SMOOTHED = {"eps": named("label_smoothing")}
FLAVOURS = meaning(official={"fidelity": "official"}, gammapo={"fidelity": "gamma_po"})


@dataclass(frozen=True)
class Route:
    """The method of a family of vectors and the meaning of its keys, besides constants of the same name.

    ``given``: keys that are no constants but inputs of the measurement (an injected sample, groups of pairs).
    """

    method: str
    keys: Mapping[str, Reading] = field(default_factory=dict)
    given: tuple[str, ...] = ()


ROUTES: Mapping[str, Route] = {
    "dpo": Route("dpo", SMOOTHED),
    "cdpo": Route("cdpo", SMOOTHED),
    "rdpo_unbiased": Route("rdpo_unbiased", SMOOTHED),
    "ipo_sum": Route("ipo"),
    "ipo_avg": Route("ipo_avg"),
    "ipo_cpo_framework": Route("ipo_cpo", {"beta": named("tau"), **WEIGHTED_NLL}),
    "r_dpo": Route("r_dpo"),
    "slic_hinge_ref": Route("slic_hinge"),
    "slic_sft": Route("slic", WEIGHTED_NLL),
    "odpo": Route("odpo"),
    "focalpo": Route(
        "focalpo",
        {
            "gamma": named("focal_exponent"),
            "factor": meaning(grad={METHOD: "focalpo"}, stopgrad={METHOD: "focalpo_stop_gradient"}),
        },
    ),
    "kto_paired": Route(
        "kto", {"lambda_w": named("lambda_chosen"), "lambda_l": named("lambda_rejected")}, ("kl_logratios",)
    ),
    "kto_pair_swapped": Route(
        "kto_swapped", {"lambda_w": named("lambda_chosen"), "lambda_l": named("lambda_rejected")}
    ),
    "simpo": Route("simpo", MARGIN | SMOOTHED),
    "simpo_ls": Route("simpo_smoothed", MARGIN | SMOOTHED),
    "rsimpo_eq13": Route("rsimpo", MARGIN | SMOOTHED),
    "rsimpo_unbiased": Route("rsimpo_unbiased", MARGIN | SMOOTHED),
    "cpo": Route("cpo", WEIGHTED_NLL),
    "cpo_avg_gammapo": Route("cpo_avg", WEIGHTED_NLL),
    "cpo_gappo_eq3": Route("cpo_gappo_eq3"),
    "orpo": Route("orpo", {"lambda": named("odds_ratio_weight"), "nll": NLL}),
    "alphapo": Route("alphapo", MARGIN),
    "alphapo_token": Route("alphapo_token", MARGIN | {"gamma": named("gamma_beta_ratio")}),
    "gappo": Route(
        "gappo",
        MARGIN
        | {
            "gamma": named("gamma_beta_ratio"),
            "weight": gap_weight,
            "normalize": normalized,
            "min_delta": smallest_gap,
        },
    ),
    "amapo": Route("amapo", {"variant": meaning(**amapo_variants())}),
    "gamma_simpo": Route("gamma_simpo", MARGIN | SOLVER, ("sample_index",)),
    "gamma_dpo": Route("gamma_dpo", MARGIN | SOLVER | {"subtract_gamma0": named("centered")}, ("sample_index",)),
    "alpha_dpo": Route(
        "alpha_dpo", MARGIN | {"stats": statistics_of_alpha_dpo, "alpha_scale": statistics_of_alpha_dpo}
    ),
    "beta_dpo": Route("beta_dpo", {"flavour": FLAVOURS}, ("sample_index",)),
    "beta_simpo": Route("beta_simpo", MARGIN | {"flavour": FLAVOURS}, ("sample_index",)),
    "dr_dpo": Route("dr_dpo"),
    "gapo": Route(
        "gapo",
        MARGIN
        | {
            "scope": perturbed_scope,
            "groups": anchor_groups,
            "gamma": margin_in_mode,
            "gamma_mode": meaning(ratio={}, abs={}),
            "fidelity": meaning(paper={}, released={METHOD: "gapo_released"}),
        }
        | dict.fromkeys(DIRECTION_KEYS, meaning(**DIRECTIONS)),
    ),
    "gradnorm_reweight": Route("gradnorm_reweight", MARGIN | {"norm": named("normalization"), "rho": radius_of_norms}),
    "simpo_sam": Route("simpo_sam", MARGIN),
}
"""By the name that vectors give their method."""

TABLES = {
    "sft": Route("sft", {"normalization": normalization("normalization")}),
    "alphapo_sequence": Route("alphapo", {"gamma": named("gamma_beta_ratio")}),
}
"""Methods behind tables of numbers, by a name of ours."""


def route_name(method: str | None, tag: str) -> str:
    """The name of a vector's route; raises ``UserError`` when there is none.

    A tag must begin with the name of its method; where the file names no method (the toy), the longest name that the
    tag begins with counts.
    """
    if method is None:
        found = [name for name in ROUTES if begins(tag, name)]
        if not found:
            raise UserError(f"tag {tag} begins with the name of no method that vectors are known for")
        return max(found, key=len)
    if method not in ROUTES:
        raise UserError(f"method {method} is none that vectors are known for; known: {', '.join(ROUTES)}")
    if not begins(tag, method):
        raise UserError(f"tag {tag} does not begin with the name of its method, {method}")
    return method


def begins(tag: str, name: str) -> bool:
    return tag == name or tag.startswith(f"{name}_")


def settings(route: Route, config: Config) -> tuple[str, dict[str, Any]]:
    """The method and its constants that a configuration stands for; raises ``UserError`` for what is unclear."""
    known = constants(route.method)
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in route.keys:
            meant = route.keys[key](value, config)
        elif key in known:
            meant = {key: value}
        elif key in route.given:
            continue
        else:
            readable = sorted({*route.keys, *known, *route.given})
            raise UserError(f"configuration key {key} is not known of {route.method} (known: {', '.join(readable)})")
        for name, setting in meant.items():
            if name in found and not same(found[name], setting):
                raise UserError(f"configuration keys disagree on {name}: {found[name]} and {setting}")
            found[name] = setting
    return str(found.pop(METHOD, route.method)), found


def same(one: Any, other: Any) -> bool:
    """Whether two settings say the same, but for rounding."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)
