"""The W&B mirror offline: no network, no login, and nothing in it that metrics.jsonl has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import SMALL_RUN, metrics, places, run

pytest.importorskip("wandb")


def test_offline_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    target = tmp_path / "run"
    done = run(
        "src.train",
        *SMALL_RUN,
        *places(tmp_path),
        f"run_dir={target}",
        "method=simpo",
        "logging=wandb_offline",
        "training.max_steps=4",
    )
    assert done.returncode == 0, done.stderr
    assert len(metrics(target, "train")) == 4
    files = list((target / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for name in (b"train/loss", b"train/rewards/margins", b"validation/rewards/accuracies", b"speed/pairs_per_second"):
        assert name in content


def test_online_without_login_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("src.train", *SMALL_RUN, *places(tmp_path), "method=simpo", "logging=wandb")
    assert done.returncode == 2
    assert "wandb_offline" in done.stderr
    assert "Traceback" not in done.stderr
