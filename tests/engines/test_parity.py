"""Every engine on two and three ranks gives what a single process gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.engines.conftest import Found
from tests.engines.jobs import ENGINES, METHODS, Case, apart, cases

AGREES = 1e-5
HALF = 3e-2
"""In bfloat16, of which a digit is 4e-3. Some engines round weights, others only what they compute of them."""

ALL = [(size, case) for size in (2, 3) for case in cases(size)]


def single(found: Found, what: Case | str) -> Any:
    return found[1, 0][str(what)]


@pytest.mark.parametrize(("size", "case"), ALL, ids=lambda value: str(value).replace(" ", "-"))
def test_steps_are_those_of_one_process(found: Found, size: int, case: Case) -> None:
    """Loss, metrics of each pair, state, gradient norm, learning rate and weights."""
    alone, here = single(found, replace(case, engine="single")), found[size, 0][str(case)]
    assert len(here["steps"]) == 5
    for one, other in zip(alone["steps"], here["steps"], strict=True):
        assert one["norm"] > 1e-3
        for what in one:
            assert apart(one[what], other[what]) < AGREES, what
    assert apart(alone["weights"], here["weights"]) < AGREES
    for rank in range(1, size):
        assert apart(here["steps"], found[size, rank][str(case)]["steps"]) == 0, f"rank {rank} knows other numbers"


def test_every_axis_is_there() -> None:
    assert len(ALL) == 4 * (8 + 1) + 4 * 3
    assert {(case.engine, case.method) for size, case in ALL if size == 2} >= {(e, m) for e in ENGINES for m in METHODS}


def test_steps_change_weights(found: Found) -> None:
    """What is compared is not the initial model."""
    for engine in ENGINES:
        initial = found[2, 0][f"{engine} bfloat16"]["initial"]
        assert apart(initial, found[2, 0][f"{engine} simpo accumulation 4 untied"]["weights"]) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["lora", "kept"])
def test_adapters_and_checkpointing(found: Found, engine: str, what: str) -> None:
    """Frozen parameters beside trained ones (GAPO); activations computed again in the backward (SimPO)."""
    alone, here = single(found, f"single {what}"), found[2, 0][f"{engine} {what}"]
    assert apart(alone, here) < AGREES
    if what == "lora":
        assert all(".lora_" in name for name in here["weights"])


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_starts_from_unrounded_weights(found: Found, engine: str) -> None:
    alone, here = single(found, "single bfloat16"), found[2, 0][f"{engine} bfloat16"]
    assert apart(alone["initial"], here["initial"]) == 0
    assert apart(alone["weights"], here["weights"]) < HALF
    for one, other in zip(alone["steps"], here["steps"], strict=True):
        assert apart(one["loss"], other["loss"]) < HALF
        assert 0 < apart(single(found, "single kept")["steps"][0]["loss"], other["loss"]) < 1, "it is not float32"
