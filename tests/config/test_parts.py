"""Parts taken from other methods on the command line."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from src.config import CONF, compose_train, config_hash
from src.errors import UserError
from src.objective.adaptive import Adaptive
from src.objective.anchor import Anchor
from src.objective.perturbations import AnchorProbe
from src.objective.rewards import ReferenceLogRatio
from src.objective.targets import Constant
from src.objective.weights import ScoreGap
from src.schema import TrainConfig
from src.training.assemble import PARTS, build_objective


def composed(*overrides: str) -> TrainConfig:
    return compose_train([*overrides, "~recipe"])


def test_amapo_target_and_gappo_weight_on_dpo_reward() -> None:
    config = composed("method=dpo", "parts.target=amapo", "parts.weight=gappo", "method.beta=0.3")
    objective = build_objective(config)
    assert isinstance(objective.reward, ReferenceLogRatio)
    assert objective.target == Adaptive(beta=0.3), "the shared constant is the method's"
    assert isinstance(objective.weight, ScoreGap)
    assert (objective.needs.reference, objective.needs.scores, objective.needs.statistics) == (True, True, "forward")
    assert config.method["name"] == "dpo-target_amapo-weight_gappo"
    assert set(config.parts.values()) == {None}, "what was taken is the method's own now"
    assert config_hash(config) != config_hash(composed("method=dpo", "method.beta=0.3"))


def test_constants_of_the_donor_can_be_set() -> None:
    config = composed("method=dpo", "parts.target=amapo", "+method.fidelity=paper", "+method.statistics=8")
    assert build_objective(config).target == Adaptive(beta=config.method["beta"], fidelity="paper", statistics=8)


def test_a_constant_that_only_the_old_part_read_is_dropped_or_refused() -> None:
    assert "gamma_beta_ratio" not in composed("method=simpo", "parts.target=amapo").method
    with pytest.raises(UserError, match=r"method\.gamma_beta_ratio is given, but with parts\.target=amapo"):
        composed("method=simpo", "parts.target=amapo", "method.gamma_beta_ratio=1.0")


def test_a_part_from_a_method_that_inherits_its_parts() -> None:
    config = composed("method=simpo", "parts.weight=gappo_quadratic")
    assert build_objective(config).weight == ScoreGap(weighting="quadratic", statistics="window")


def test_an_anchor_comes_in_two_parts() -> None:
    with pytest.raises(UserError, match="reads anchor gaps"):
        build_objective(composed("method=dpo", "parts.target=gapo"))
    objective = build_objective(composed("method=dpo", "parts.target=gapo", "parts.perturbation=gapo"))
    assert isinstance(objective.target, Anchor)
    assert isinstance(objective.perturbation, AnchorProbe)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parts.target=amapp", r"did you mean parts\.target=amapo\?"),
        ("parts.perturbation=dpo", "has no perturbation of its own"),
    ],
)
def test_parts_that_are_not_there_are_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed("method=simpo", override)


def test_every_slot_can_be_named() -> None:
    config = composed("method=simpo")
    assert set(config.parts) == set(PARTS)


def test_taking_a_part_from_the_same_method_changes_its_name_alone() -> None:
    one, other = composed("method=simpo"), composed("method=simpo", "parts.target=simpo")
    assert build_objective(one) == build_objective(other)
    assert isinstance(build_objective(one).target, Constant)


@pytest.mark.parametrize("slot", ["target", "weight"])
def test_targets_and_weights_of_all_methods_go_onto_the_dpo_reward(slot: str) -> None:
    """Whatever the combination, it is built or refused with what to take besides; nothing else happens."""
    donors = {}  # one method for each class that fills the slot
    for path in sorted((CONF / "method").glob("*.yaml")):
        node = OmegaConf.load(path).get(slot)
        if node is not None and "_target_" in node:
            donors[node._target_] = path.stem
    said = {donor: refusal(slot, donor) for donor in donors.values()}
    refused = {donor: message for donor, message in said.items() if message}
    assert all("; take " in message for message in refused.values()), refused
    assert (len(donors), len(refused)) == ((12, 2) if slot == "target" else (6, 1))


def refusal(slot: str, donor: str) -> str:
    """Why DPO with ``donor``'s part is refused; "" when it is not."""
    try:
        build_objective(composed("method=dpo", f"parts.{slot}={donor}"))
    except UserError as error:
        return str(error)
    return ""
