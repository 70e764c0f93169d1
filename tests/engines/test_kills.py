"""A rank that dies ends the run within a minute, in words; then the same command gives what it would have given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support import ROOT

DEATHS = [("ddp", 3, 1, 3), ("fsdp2", 2, 0, 5), ("zero3", 2, 1, 5)]
"""Engine, ranks, the one that dies, after which of eight steps; checkpoints are written every two. With three ranks
sums depend on their order."""

ENGINES = [engine for engine, *_ in DEATHS]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each run (tests/engines/forked.py)."""
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.forked", str(folder), json.dumps(DEATHS)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_the_others_end_soon_and_say_who_is_gone(engine: str, stories: dict[str, Any]) -> None:
    lost, rank = stories[engine]["lost"], {name: dead for name, _, dead, _ in DEATHS}[engine]
    assert lost["codes"][rank] == -9
    assert lost["codes"][1 - rank] == 1
    assert lost["seconds"] < 60
    expected = "rank 1 on" if rank == 1 else "rank 0, at which the ranks meet, is gone"
    assert expected in lost["said"][1 - rank], lost["said"]
    assert "goes on from the last checkpoint" in lost["said"][1 - rank]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_start_equals_an_uninterrupted_run_bit_for_bit(engine: str, stories: dict[str, Any]) -> None:
    story = stories[engine]
    assert story["whole"] == story["second"] == [0] * len(story["lost"]["codes"])
    assert story["same_metrics"], "metrics.jsonl differs"
    assert story["same_weights"]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_another_number_of_ranks_goes_on(engine: str, stories: dict[str, Any]) -> None:
    story = stories[engine]
    assert set(story["other"]["codes"]) == {0}, story["other"]["said"]
    assert len(story["other"]["codes"]) != len(story["whole"])
    for mine, whole in zip(story["other_metrics"], story["metrics"], strict=True):
        for name, value in whole.items():
            if isinstance(value, float):
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("engine", ["zero3"])
def test_another_number_of_ranks_is_refused_where_shards_cannot_be_cut_anew(
    engine: str, stories: dict[str, Any]
) -> None:
    other = stories[engine]["other"]
    assert other["codes"] == [2, 2, 2]
    assert "was written by 2 ranks" in other["said"][0]
