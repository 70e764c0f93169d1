"""What engines must not get wrong between two steps: perturbation, accumulation, forgetting, resuming."""

from __future__ import annotations

import pytest

from tests.engines.conftest import Found
from tests.engines.jobs import ENGINES, apart

OFFLOAD = ("fsdp2_offload", "zero2_offload", "zero3_offload")
SCOPES = ("full", "backbone", "lm_head")
PERTURBED = [f"{scope} {inside}" for scope in SCOPES for inside in (False, True)]


@pytest.mark.parametrize("where", PERTURBED)
@pytest.mark.parametrize("engine", [*ENGINES, "zero3 partitioned"])
def test_a_forward_after_a_perturbation_is_the_one_before_it(found: Found, engine: str, where: str) -> None:
    """Also with parameters that stay gathered (zero3 as configured) and with none that does (partitioned)."""
    alone, here = found[1, 0][f"single perturbed {where}"], found[2, 0][f"{engine} perturbed {where}"]
    assert here["after"] == here["before"]
    assert abs(here["moved"] - here["before"]) > 1, "it does move the weights that forwards see"
    assert here == pytest.approx(alone, rel=1e-5)
    assert (here["left"] > 0) == where.endswith("True"), "the gradient taken within stays, the one before does not"


@pytest.mark.parametrize("engine", [*ENGINES, "zero3 partitioned"])
def test_an_update_after_perturbations_is_that_without(found: Found, engine: str) -> None:
    assert apart(found[1, 0]["single after perturbations"], found[2, 0][f"{engine} after perturbations"]) < 1e-5


@pytest.mark.parametrize("engine", [*ENGINES, "zero3 partitioned"])
def test_the_direction_takes_no_memory_once_weights_have_moved(found: Found, engine: str) -> None:
    assert found[2, 0][f"{engine} lets go"]


@pytest.mark.parametrize("engine", [*ENGINES, *OFFLOAD])
def test_gradients_add_up_and_are_forgotten(found: Found, engine: str) -> None:
    """One window of two forwards, one forgotten in between, one pair alone (a rank has none)."""
    alone, here = found[1, 0]["single gradients"], found[2, 0][f"{engine} gradients"]
    assert here == pytest.approx({name: alone[name] for name in here}, rel=1e-5)
    assert here["forgotten"] == 0
    assert here["broken off"] == pytest.approx(here["both"], rel=1e-6)
    assert here.get("one by one", here["both"]) == pytest.approx(here["both"], rel=1e-6)


@pytest.mark.parametrize("engine", OFFLOAD)
def test_offloaded_states_give_the_same_steps(found: Found, engine: str) -> None:
    assert apart(found[1, 0]["single after gradients"], found[2, 0][f"{engine} after gradients"]) < 1e-5


@pytest.mark.parametrize("engine", [*ENGINES, *OFFLOAD])
def test_a_new_engine_goes_on_bit_for_bit(found: Found, engine: str) -> None:
    whole, resumed = found[2, 0][f"{engine} resumed"]
    assert apart(whole, resumed) == 0


@pytest.mark.parametrize("engine", ["zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_another_number_of_ranks_is_refused(found: Found, engine: str) -> None:
    said = found[2, 0][f"{engine} refusal"]
    assert f"was written by 5 ranks, and engine={engine} goes on from it with as many, not with 2" in said
    assert "start 5 ranks, or begin a new run with engine=fsdp2" in said


def test_deepspeed_is_silent_and_compiles_nothing(found: Found) -> None:
    said = found[0, 0]["output"]
    assert [words for words in ("[INFO]", "[WARNING]", "built successfully", "deprecated") if words in said] == []
