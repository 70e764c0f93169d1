"""Parts of several methods together, as a user types them: one run, its record, and the same command again."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.entry import call
from tests.support import SMALL_RUN, metrics, places

COMMAND = ("method=dpo", "parts.target=amapo", "parts.weight=gappo", "training.max_steps=3")


def test_parts_of_three_methods_train_together(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*SMALL_RUN, *COMMAND, *places(tmp_path), f"run_dir={run_dir}"]
    done = call("src.train", *command)
    assert done.code == 0, done.err
    lines = metrics(run_dir, "train")
    assert [line["step"] for line in lines] == [1, 2, 3]
    # DPO's reward: the policy is the reference at first, so there is no margin; later AMaPO's target answers to it
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(lines[2]["rewards/margins"]) > 1e-4
    assert lines[2]["target/mean"] > 0
    # GapPO's weight: the gap of the annotated scores
    assert all(line["weight/mean"] > 0 and line["weight/mean"] != 1 for line in lines)

    method = OmegaConf.load(run_dir / "config.yaml").method
    assert {slot: method[slot]._target_.rpartition(".")[2] for slot in ("reward", "target", "weight", "link")} == {
        "reward": "ReferenceLogRatio",
        "target": "Adaptive",
        "weight": "ScoreGap",
        "link": "Logistic",
    }
    assert method.target.beta == method.reward.beta == 0.1, "constants of one name are shared"
    again = call("src.train", *command)
    assert again.code == 0
    assert "finished already" in again.err
