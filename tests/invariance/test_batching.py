"""How a global batch is cut must not matter; how the seed is set must."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.engine.local import LocalEngine
from src.model.load import build_model
from src.objective.adaptive import Adaptive
from src.objective.objective import Objective
from src.schema import TrainConfig
from src.training.assemble import (
    build_objective,
    build_source,
    build_template,
    build_tokenizer,
    prepare_data,
)
from src.training.step import training_step, validate
from tests.support import SMALL_RUN, places

STEPS = 5
BATCH = 8


def trajectory(config: TrainConfig, objective: Objective, cuts: Sequence[int]) -> list[dict[str, float]]:
    """Loss, gradient norm and metrics of ``STEPS`` steps of which every window is cut into ``cuts`` micro-batches."""
    source = build_source(config)
    tokenizer = build_tokenizer(config, source)
    data = prepare_data(config, build_template(config, tokenizer), source, objective)
    model = build_model(config.model, None, len(tokenizer), seed=0)
    engine = LocalEngine(model, config.training, STEPS, "cpu", "float32")
    initial = copy.deepcopy(model)
    rows = []
    for step in range(STEPS):
        window, start = [], step * BATCH
        for size in cuts:
            pairs = [data.train[index % len(data.train)] for index in range(start, start + size)]
            window.append(with_reference(initial, collate(pairs)))
            start += size
        output = training_step(engine, objective, objective.initial_state(), window, 1.0)
        assert output.gradient_norm is not None
        row = {"loss": output.loss.item(), "grad_norm": output.gradient_norm.item()}
        rows.append(row | {name: value.mean().item() for name, value in output.pair_metrics.items()})
    return rows


def with_reference(model: Any, batch: PairBatch) -> PairBatch:
    from src.model.logps import pair_log_probs

    with torch.no_grad():
        return dataclasses.replace(batch, reference=pair_log_probs(model, batch))


def configured(tmp_path: Path, *more: str) -> tuple[TrainConfig, Objective]:
    config = compose_train([*SMALL_RUN, *places(tmp_path), "training.adam_epsilon=1e-3", *more])
    return config, build_objective(config)


def worst(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Largest relative difference of any number of two trajectories.

    Rewards are differences of log-probs, so their rounding is measured against the size of those.
    """

    def scale(row: dict[str, float], name: str) -> float:
        return abs(row["logps/chosen"]) if name.startswith(("rewards", "target")) else abs(row[name])

    def says_something(row: dict[str, float], name: str) -> bool:
        """Before the first step DPO's margins are rounding, and their signs too."""
        return name != "rewards/accuracies" or abs(row["rewards/margins"]) > 1e-6 * abs(row["logps/chosen"])

    return max(
        abs(a[name] - b[name]) / scale(a, name)
        for a, b in zip(one, other, strict=True)
        for name in a
        if says_something(a, name)
    )


@pytest.mark.parametrize(
    "method",
    [
        ["method=sft"],
        ["method=sft", "method.normalization=sequence_mean"],
        ["method=dpo"],
        ["method=simpo"],
        ["method=amapo", "method.statistics=4"],
        ["method=amapo", "method.statistics=8"],
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_cutting_the_batch_changes_nothing(tmp_path: Path, method: list[str]) -> None:
    config, objective = configured(tmp_path, *method)
    whole = trajectory(config, objective, [8])
    assert worst(whole, trajectory(config, objective, [1] * 8)) < 1e-6
    assert worst(whole, trajectory(config, objective, [4, 4])) < 1e-6
    assert worst(whole, trajectory(config, objective, [3, 5])) < 1e-6, "uneven forwards count by their pairs"


def test_forward_statistics_do_depend_on_the_cut(tmp_path: Path) -> None:
    """What the authors' code does: the scope is the forward, so another micro-batch is another method."""
    config, objective = configured(tmp_path, "method=amapo", "method.statistics=forward")
    whole = trajectory(config, objective, [8])
    assert worst(whole, trajectory(config, objective, [2] * 4)) > 1e-3
    four = dataclasses.replace(objective, target=Adaptive(beta=config.method["beta"], statistics=4))
    assert worst(trajectory(config, objective, [4, 4]), trajectory(config, four, [8])) < 1e-6


def test_validation_does_not_depend_on_its_batches(tmp_path: Path) -> None:
    config, objective = configured(tmp_path, "method=amapo", "method.statistics=4")
    source = build_source(config)
    tokenizer = build_tokenizer(config, source)
    data = prepare_data(config, build_template(config, tokenizer), source, objective)
    model = build_model(config.model, None, len(tokenizer), seed=0)
    engine = LocalEngine(model, config.training, STEPS, "cpu", "float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for size in (8, 1, 3):
        pairs = [data.train[index] for index in range(8)]
        batches = [collate(pairs[start : start + size]) for start in range(0, 8, size)]
        results.append(validate(engine, objective, {}, batches))
    for other in results[1:]:
        assert other.loss.item() == pytest.approx(results[0].loss.item(), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sampler_gives_the_same_windows_for_any_micro_batch() -> None:
    from src.data.sampler import WindowSampler

    def flat(micro: int, seed: int = 0) -> list[list[int]]:
        sampler = WindowSampler(21, 8, micro, seed)
        return [[index for part in sampler.window(step) for index in part] for step in range(6)]

    assert flat(8) == flat(1) == flat(4)
    assert flat(8) != flat(8, seed=1)
    stream = [index for window in flat(8) for index in window]
    assert sorted(stream[:21]) == sorted(stream[21:42]) == list(range(21)), "each pass has every pair once"
