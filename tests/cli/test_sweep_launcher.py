"""`python -m src.train -m hydra/launcher=slurm`: the preset, what is refused, and failures told across processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import hydra
import pytest

from src.cli import register_schemas
from src.config import CONF
from tests.entry import assert_says, refused
from tests.support import run

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None,
    reason="hydra-submitit-launcher is not installed (requirements/cluster.txt)",
)
SLURM = "hydra/launcher=slurm"


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of that name, which nobody calls, and the package, whether it is installed or not."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_cluster_without_a_sweep_a_package_or_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_says(refused("src.train", SLURM, "seed=1"), f"add -m: -m {SLURM} seed=1")
    found: dict[str, Any] = {}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    assert_says(
        refused("src.train", "-m", SLURM),
        *("hydra-submitit-launcher, which is not installed", "requirements/cluster.txt", "python -m src.submit"),
    )
    found["hydra_plugins.hydra_submitit_launcher"] = True
    monkeypatch.setenv("PATH", "/nowhere")
    assert_says(refused("src.train", "-m", SLURM), "no sbatch on PATH")


@pytest.mark.usefixtures("sbatch")
def test_a_time_limit_within_reach_of_the_warning_is_refused() -> None:
    said = refused("src.train", "-m", SLURM, "hydra.launcher.timeout_min=3")
    assert_says(said, "timeout_min=3", "signal_delay_s=180", "told to stop as it starts", "timeout_min=5 or more")
    said = refused("src.train", "-m", SLURM, "hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=300")
    assert_says(said, "timeout_min=7 or more")


@needs_submitit
def test_the_preset_requeues_and_leaves_time_to_write_a_checkpoint() -> None:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", overrides=[SLURM, "output_root=/shared"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.max_num_timeout > 0
    assert launcher.timeout_min * 60 > launcher.signal_delay_s + 60
    assert str(launcher.submitit_folder).startswith("/shared/")


@needs_submitit
def test_a_failed_run_of_a_sweep_in_other_processes_is_the_sweeps_failure(tmp_path: Path) -> None:
    place = f"hydra.sweep.dir={tmp_path}"  # a program that fails before it imports torch
    done = run("src.reproduce", "-m", "hydra/launcher=submitit_local", place, "paper=amapi", "table=2")
    assert done.returncode == 2, done.stderr
    assert_says(done.stderr, "error: a run of the sweep failed, see its log: ", "paper=amapi table=2")
    (log,) = tmp_path.glob(".submitit/*/*_log.err")
    assert_says(log.read_text(), "error: paper=amapi", "did you mean 'amapo'")
