"""Runs that train a part of the model go on exactly where they were: adapters, feed-forward projections, RMSprop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import compose_train
from src.training import run as runs
from src.training.assemble import build_objective
from src.training.loop import StopFlag
from tests.resume.test_resume import assert_same
from tests.support import SMALL_RUN, metrics, places

PARTS = {
    "adapter": ("adapter=lora", "method=dpo"),
    "projections": ("model.trainable=mlp", "method=simpo"),
    "rmsprop": ("training.optimizer=rmsprop", "training.warmup_steps=3", "method=simpo"),
}


class StopsAfter:
    """A display that asks the run to stop after a step."""

    def __init__(self, stop: StopFlag, last: int) -> None:
        self.stop, self.last = stop, last

    def step(self, step: int, record: dict[str, Any], speed: dict[str, Any]) -> None:
        if step == self.last:
            self.stop.signal = "SIGTERM"

    def validation(self, step: int, record: dict[str, Any], best: bool) -> None:
        pass


def run_to(folder: Path, last: int, overrides: list[str]) -> tuple[dict[str, Any], Any]:
    """Start or resume the run in ``folder`` up to step ``last``; its weights and trainer.pt then."""
    config = compose_train(overrides)
    folder.mkdir(exist_ok=True)
    loop: Any = runs.assemble(folder, config, build_objective(config), runs.Base())
    stop = StopFlag()
    object.__setattr__(loop, "display", StopsAfter(stop, last))
    assert loop.run(loop.start(), stop).step == last
    state = torch.load(folder / "checkpoints" / "last" / "trainer.pt", weights_only=True)
    return loop.engine.model.state_dict(), {"engine": state["engine"], "progress": state["progress"]}


@pytest.mark.parametrize("part", PARTS)
def test_resumed_equals_uninterrupted(part: str, tmp_path: Path) -> None:
    overrides = [*SMALL_RUN, *places(tmp_path), *PARTS[part], "checkpoint.every_steps=0"]
    whole = run_to(tmp_path / "whole", 8, overrides)
    stopped = run_to(tmp_path / "resumed", 5, overrides)
    resumed = run_to(tmp_path / "resumed", 8, overrides)
    assert not all(torch.equal(value, resumed[0][name]) for name, value in stopped[0].items())
    assert_same(whole, resumed)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "resumed")
