"""The batch scripts: shellcheck has no complaint, and what clients of SLURM say is read aright."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from src.build import build
from src.cluster.batch import Batch, spans
from src.cluster.options import Options, seconds_of
from src.cluster.states import JobState, of_job, rows, tasks
from src.config import ROOT, composed
from src.errors import Problems

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm").rglob("*.sh")])


def test_shellcheck_has_no_complaint() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    assert len(SCRIPTS) == 7
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_are_bash_that_fails_on_unset_names() -> None:
    for path in SCRIPTS:
        text = path.read_text()
        assert "\r" not in text
        if path.name != "common.sh":
            assert text.startswith("#!/bin/bash\n"), path
            assert "set -uo pipefail" in text or "set -euo pipefail" in text, path


def test_arrays_and_limits_are_written_as_slurm_reads_them(tmp_path: Path) -> None:
    assert spans((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    batch = Batch("n", "sweep.sbatch", ("m",), tmp_path, tmp_path / "%A_%a.out", Options(throttle=4), (0, 1, 3))
    assert "--array=0-1,3%4" in batch.command
    limits = {"90": 5400, "5:30": 330, "1:00:00": 3600, "1-2": 93600, "1-02:30": 95400, "2-00:00:01": 172801}
    assert {limit: seconds_of(limit) for limit in limits} == limits


def test_options_come_from_conf_and_are_checked_together() -> None:
    node = composed("submit", ["cluster.extra=[--exclusive]", "cluster.time='1:00:00'"]).cluster
    assert build(node, "cluster").arguments[-1] == "--exclusive"
    with pytest.raises(Problems) as caught:
        Options(nodes=0, time=86400, memory="much", container_runtime="docker")
    assert len(caught.value.problems) == 4
    assert "write hours too, as text: '24:00:00'" in str(caught.value)


def test_states_of_arrays_are_told_apart() -> None:
    assert tasks("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert tasks("7_3") == ["7_3"]
    lines = [
        "7_[1-2%1]|PENDING|JobArrayTaskLimit|0:00",
        "7_0|RUNNING|None|0:05",
        "8|CANCELLED by 0|0:15|00:00:01",
        "bad",
    ]
    found = {state.id: state for state in rows(lines)}
    assert [one.id for one in of_job(found, "7")] == ["7_0", "7_1", "7_2"]
    assert found["7_0"] == JobState("7_0", "RUNNING", "", "0:05")
    assert (found["7_0"].running, found["7_1"].waiting, found["8"].failed) == (True, True, True)
    assert JobState("1", "COMPLETED").completed
