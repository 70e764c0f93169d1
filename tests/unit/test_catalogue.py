"""The catalogue: rows of every method, explanations, and the mapping of test vectors to methods and constants."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from src.catalogue.explain import explained
from src.catalogue.measure import EXACT, SINGLE, inputs_of, kept_pairs, loss_of, state_of, state_value, with_sample
from src.catalogue.routes import ROUTES, SMALLEST_GAP, route_name, settings
from src.catalogue.rows import comment_on, constants, markdown_table, names, objective_of, row_of, rows, with_table
from src.catalogue.vectors import worst
from src.config import CONF, ROOT
from src.errors import UserError
from src.objective.types import Needs

METHODS = names()
BATCH = {"s_w": [-9.0, -7.0], "s_l": [-8.0, -9.5], "n_w": [4, 3], "n_l": [3, 0], "c_w": [5.0, 4.0], "c_l": [2.0, 4.0]}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_file_is_a_row() -> None:
    assert len(METHODS) > 40
    assert [row.name for row in rows()] == ["sft", "dpo", *(name for name in METHODS if name not in ("sft", "dpo"))]


def test_readme_table_is_that_of_the_files() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, markdown_table(rows())) == readme, "run python -m src.methods --update-readme"
    for method in METHODS:
        assert f"| `{method}` |" in readme


def test_readme_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(UserError, match="methods table"):
        with_table("# A page", "| a |")


def test_row_says_parts_constants_and_needs() -> None:
    row = row_of("amapo")
    assert row.constants["beta"] == 2.0
    assert row.needs == ["statistics (forward)"]
    assert type(row.objective.target).__name__ == "Adaptive"
    assert row_of("sft").needs == ["demonstrations"]
    assert row_of("odpo").needs == ["reference log-probs", "scores"]
    assert row_of("gappo_hard_filter").needs == ["scores (pairs 1 or more apart)"]
    assert "state" in row_of("gamma_simpo").needs


def test_rows_do_not_read_recipes() -> None:
    text = (CONF / "method" / "simpo.yaml").read_text()
    assert constants("simpo")["beta"] == float(re.search(r"^beta: (\S+)", text, re.MULTILINE)[1])  # type: ignore[index]


def test_constants_reach_the_parts() -> None:
    assert objective_of("simpo", {"beta": 7.0}).reward.beta == 7.0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="simpo has no constant tau"):
        objective_of("simpo", {"tau": 1.0})


def test_unknown_method_names_close_ones() -> None:
    with pytest.raises(UserError, match=r"no method is called amapoo; did you mean amapo"):
        row_of("amapoo")


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_explained(method: str) -> None:
    row, text = row_of(method), explained(method)
    assert text.startswith(f"{method}: ")
    assert "    loss = " in text
    assert all(f"  {name} = " in text for name in row.constants)
    assert all(re.search(rf"^  {re.escape(need)}", text, re.MULTILINE) for need in row.needs)
    assert "``" not in text
    assert max(len(line) for line in text.splitlines()) < 125
    assert all(comment_on(method, name) for name in row.constants), "every constant's comment is found"


def test_equation_leaves_out_what_a_method_leaves_out() -> None:
    assert "loss = mean_i( link( reward(y_w) − reward(y_l),  target_i ) )\n" in explained("amapo")
    assert "loss = mean_i( weight_i · link( reward(y_w) − reward(y_l),  target_i ) )\n" in explained("gappo")
    assert "loss = reduce_i( link( reward(y_w) − reward(y_l),  0 ) )\n" in explained("dr_dpo")
    assert "loss = mean_i( link( reward(y_w) − reward(y_l),  0 ) ) + regularizer\n" in explained("cpo")
    assert "t_i · (reward(y_w) − reward(y_l)),  t_i · target_i" in explained("beta_simpo")
    assert "loss = regularizer\n" in explained("sft")


def test_explanation_names_recipes_and_sources() -> None:
    text = explained("amapo")
    assert "model=llama3_8b_base: beta 3" in text
    assert "AMaPO Eq. 9-11" in text.split("Sources")[1]


# --- routes -----------------------------------------------------------------------------------------------------------


def test_every_route_leads_to_a_method() -> None:
    assert {route.method for route in ROUTES.values()} <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "config", "method", "found"),
    [
        ("simpo", {"beta": 2.0, "gamma_abs": 1.0}, "simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("cdpo", {"eps": 0.3}, "cdpo", {"label_smoothing": 0.3}),
        ("odpo", {"alpha": 2.0, "offset": "identity"}, "odpo", {"alpha": 2.0, "offset": "identity"}),
        ("amapo", {"variant": "paper_wo_exp"}, "amapo_without_exp", {"fidelity": "paper"}),
        ("amapo", {"variant": "wo_adaptive_eq8"}, "amapo_without_adaptive_eq8", {}),
        ("gappo", {"weight": "linear", "normalize": True}, "gappo_normalized", {}),
        ("gappo", {"weight": "quadratic", "normalize": True}, "gappo_quadratic", {"normalized": True}),
        ("gappo", {"weight": "hard", "min_delta": 2}, "gappo_hard_filter", {SMALLEST_GAP: 2.0}),
        ("gamma_dpo", {"beta": 0.1, "gamma0": 1.0}, "gamma_dpo", {"beta": 0.1, "gamma_beta_ratio": 10.0}),
        ("gapo", {"groups": [[0], [1], [2]]}, "gapo_instance", {}),
        ("gapo", {"groups": [[0, 1], [2]], "scope": "lm_head"}, "gapo_lm_head", {"anchor_pairs": 2}),
        ("gapo", {"groups": [[0], [1]], "scope": "lm_head"}, "gapo_instance", {"scope": "lm_head"}),
        ("gapo", {"beta": 2.0, "gamma_ratio": 0.5, "gamma_abs": 1.0}, "gapo", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("ipo_cpo_framework", {"beta": 0.5}, "ipo_cpo", {"tau": 0.5}),
        ("alpha_dpo", {"stats": "ema", "alpha_scale": "beta"}, "alpha_dpo", {"fidelity": "released"}),
    ],
)
def test_keys_of_vectors_become_constants(name: str, config: dict[str, Any], method: str, found: Any) -> None:
    assert settings(ROUTES[name], config) == (method, found)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("simpo", {"beta": 2.0, "gamma": 0.5}, "configuration key gamma is not known of simpo"),
        ("dpo", {"gamma_ratio": 0.5}, "configuration key gamma_ratio is not known of dpo"),
        ("amapo", {"variant": "other"}, "'other' is unknown"),
        ("simpo", {"gamma_abs": 1.0}, "without beta"),
        ("simpo", {"beta": 2.0, "gamma_abs": 1.0, "gamma_ratio": 0.4}, "disagree on gamma_beta_ratio"),
        ("alpha_dpo", {"stats": "ema", "alpha_scale": "one"}, "no form of alpha_dpo"),
        ("gappo", {"weight": "linear", "min_delta": 1.0}, "min_delta=1.0 would change nothing"),
        ("gapo", {"groups": [[0], [1, 2]]}, r"groups of \[1, 2\]"),
        ("gapo", {"beta": 2.0, "gamma": 1.0}, "give gamma_ratio or gamma_abs"),
    ],
)
def test_unclear_keys_are_refused(name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(ROUTES[name], config)


def test_tags_begin_with_their_method() -> None:
    assert route_name("cpo", "cpo_token_mean") == "cpo"
    assert route_name(None, "cpo_avg_gammapo") == "cpo_avg_gammapo"
    assert route_name(None, "simpo_sam_toy") == "simpo_sam"
    for method, tag in (("cpo", "simpo"), ("nothing", "nothing"), (None, "gapoo_x")):
        with pytest.raises(UserError):
            route_name(method, tag)


# --- measurements -----------------------------------------------------------------------------------------------------


def test_inputs_are_what_the_method_needs() -> None:
    pairs = inputs_of(BATCH, SINGLE, Needs(rejected=True), None)
    assert pairs.reference is None
    assert pairs.chosen_scores is None
    assert pairs.policy.chosen.summed.dtype == torch.float32
    with pytest.raises(UserError, match="log-probs token by token"):
        inputs_of(BATCH, EXACT, Needs(rejected=True, per_token=True), None)
    with pytest.raises(UserError, match="kl_logratios"):
        inputs_of(BATCH, EXACT, Needs(rejected=True, mismatched=True), None)


def test_loss_by_hand() -> None:
    objective = objective_of("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5})
    loss, _ = loss_of(objective, inputs_of(BATCH, EXACT, objective.needs, None), {})
    margins = [2 * (-9 / 4 + 8 / 3) - 1, 2 * (-7 / 3 + 9.5) - 1]
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in margins) / 2, abs=1e-14)


def test_filter_keeps_pairs_by_score_gap() -> None:
    assert kept_pairs(BATCH, 0) == [0, 1]
    assert kept_pairs(BATCH, 3.0) == [0]
    assert kept_pairs(BATCH, 3.5) == []


def test_state_of_the_file_enters_and_leaves_the_parts() -> None:
    objective = objective_of("beta_dpo", {})
    state = state_of(objective, {"mean": 0.5, "std": 2})
    assert state_value(state, "mean") == [0.5]
    assert {part["std"] for part in state.values()} == {2.0}
    with pytest.raises(UserError, match="does not keep"):
        state_of(objective, {"queue": [1.0]})
    with pytest.raises(UserError, match="does not keep"):
        state_value(state, "queue")
    with pytest.raises(UserError, match="disagree on their mean"):
        state_value({"one": {"mean": 1.0}, "other": {"mean": 2.0}}, "mean")


def test_sample_is_refused_where_nothing_draws() -> None:
    with pytest.raises(UserError, match="draws nothing"):
        with_sample(objective_of("simpo", {}), [0])


def test_worst_difference_counts_what_is_missing_or_not_finite() -> None:
    assert worst([1.0, 2.0], [1.0, 2.5], [1.0, 2.0]) == 0.25
    assert worst([1.0], [1.0, 2.0], [1.0, 1.0]) == math.inf
    assert worst([math.nan], [1.0], [1.0]) == math.inf
    assert worst([math.nan, math.inf], [math.nan, math.inf], [1.0, 1.0]) == 0
    assert worst([-math.inf], [math.inf], [1.0]) == math.inf
