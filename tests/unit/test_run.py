"""Whole small runs in one process: determinism, broken numbers, the reference store, options of the step."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.config import compose_train
from src.data.collate import collate
from src.engine.local import LocalEngine
from src.errors import UserError
from src.model.load import build_model
from src.model.logps import pair_log_probs
from src.schema import TrainConfig
from src.training import run as runs
from src.training.assemble import build_objective, build_source, build_template, build_tokenizer, prepare_data
from src.training.rundir import owned
from src.training.step import NonFiniteError, training_step
from tests.support import SMALL_RUN, metrics, places


def configured(tmp_path: Path, *more: str) -> TrainConfig:
    return compose_train([*SMALL_RUN, *places(tmp_path), *more])


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoints" / "last" / "model" / "model.safetensors")


def test_same_command_same_weights_other_seed_others(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = configured(tmp_path, "method=dpo", f"seed={seed}", f"run_dir={tmp_path / name}")
        assert runs.train(config) == 0
        found.append(weights(tmp_path / name))
    same, other = found[1], found[2]
    assert all(torch.equal(found[0][name], same[name]) for name in same)
    assert not all(torch.equal(found[0][name], other[name]) for name in other)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_training_lowers_its_loss_and_logs_the_named_metrics(tmp_path: Path) -> None:
    config = configured(
        tmp_path, "method=simpo", "debug=overfit", "training.learning_rate=1e-2", "noise=random_flip", "noise.rate=0.3"
    )
    assert runs.train(config) == 0
    directory = runs.planned_directory(config)
    lines = metrics(directory, "train")
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    flat = {
        "rewards/accuracies_clean",
        "rewards/accuracies_flipped",
        "rewards/margins_clean",
        "grad_norm",
        "lr",
        "epoch",
    }
    assert flat | {"loss", "logps/chosen", "logps/rejected", "rewards/chosen", "target/mean"} <= set(lines[0])
    assert not any("second" in name for name in lines[0]), "clock times would make two runs differ"
    assert json.loads((directory / "manifest.json").read_text())["flipped"]["count"] > 0


def test_broken_numbers_stop_the_run_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    config = configured(tmp_path, "method=simpo", "training.learning_rate=1e30", "training.warmup_ratio=0.5")
    with pytest.raises(NonFiniteError, match="no update was made") as caught:
        runs.train(config)
    assert caught.value.exit_code == 1
    directory = runs.planned_directory(config)
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "failed"
    assert "toy" in status["message"], "the pairs of the window are named"
    assert (directory / "checkpoints" / "last" / "COMPLETED").exists()
    assert all(torch.isfinite(value).all() for value in weights(directory).values())


class Small:
    """Model, engine and batches of a small configuration."""

    def __init__(self, config: TrainConfig, objective_of: str = "simpo") -> None:
        self.objective = build_objective(config)
        source = build_source(config)
        tokenizer = build_tokenizer(config, source)
        self.data = prepare_data(config, build_template(config, tokenizer), source, self.objective)
        self.model = build_model(config.model, None, len(tokenizer), seed=0)
        self.engine = LocalEngine(self.model, config.training, 8, "cpu", config.model.dtype)
        self.batch = collate([self.data.train[index] for index in range(6)])

    def gradients(self) -> dict[str, torch.Tensor]:
        self.engine.log_probs(self.batch).chosen.average.sum().backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def test_nan_names_the_pair(tmp_path: Path) -> None:
    small = Small(configured(tmp_path, "method=simpo"))
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    poison = dataclasses.replace(small.batch, ids=tuple(f"pair-{index}" for index in range(6)))
    real = small.engine.pair_loss

    def broken(batch: Any, share: Any, **options: bool) -> Any:
        result = real(batch, share, **options)
        chosen = result.log_probs.chosen
        spoiled = dataclasses.replace(chosen, summed=chosen.summed * torch.tensor([1, 1, float("nan"), 1, 1, 1]))
        return dataclasses.replace(result, log_probs=dataclasses.replace(result.log_probs, chosen=spoiled))

    small.engine.pair_loss = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"non-finite log-probs or rewards: pair-2\."):
        training_step(small.engine, small.objective, {}, [poison], 1.0)
    assert all(torch.equal(value, before[name]) for name, value in small.model.state_dict().items())
    assert all(parameter.grad is None for parameter in small.model.parameters())


def test_gradient_checkpointing_changes_memory_not_numbers(tmp_path: Path) -> None:
    plain = Small(configured(tmp_path, "method=simpo")).gradients()
    kept = Small(configured(tmp_path, "method=simpo", "model.gradient_checkpointing=true")).gradients()
    assert plain.keys() == kept.keys()
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-6, atol=1e-7)


def test_bfloat16_computes_in_half_and_keeps_float32_weights(tmp_path: Path) -> None:
    exact = Small(configured(tmp_path, "method=simpo"))
    half = Small(configured(tmp_path, "method=simpo", "model.dtype=bfloat16"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    with torch.no_grad():
        one, other = exact.engine.log_probs(exact.batch), half.engine.log_probs(half.batch)
    assert other.chosen.summed.dtype == torch.float32
    assert not torch.equal(one.chosen.summed, other.chosen.summed)
    torch.testing.assert_close(one.chosen.average, other.chosen.average, rtol=2e-2, atol=2e-2)


def test_reference_is_computed_once_and_a_wrong_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.train(configured(tmp_path, "method=dpo", "training.max_steps=2")) == 0
    assert "computing those of" in capsys.readouterr().err
    assert runs.train(configured(tmp_path, "method=dpo", "training.max_steps=3", "method.beta=0.2")) == 0
    assert "computing those of" not in capsys.readouterr().err
    for path in (tmp_path / "cache" / "reference").iterdir():
        save_file({name: value - 5 if "summed" in name else value for name, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match="differ from the untrained policy"):
        runs.train(configured(tmp_path, "method=dpo", "training.max_steps=4"))


def test_store_rows_are_those_of_the_pairs(tmp_path: Path) -> None:
    """Cached equals live: what the loader looks up is what the model gives for the same pairs."""
    config = configured(tmp_path, "method=dpo", "training.max_steps=1")
    (tmp_path / "run").mkdir()
    loop = runs.assemble(tmp_path / "run", config, build_objective(config), runs.Base())
    for batch in loop.loader.window(0):
        assert batch.reference is not None
        with torch.no_grad():
            live = pair_log_probs(loop.engine.model, batch)  # type: ignore[attr-defined]
        torch.testing.assert_close(batch.reference.chosen.summed, live.chosen.summed, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(batch.reference.rejected.summed, live.rejected.summed, rtol=1e-5, atol=1e-4)


def test_the_sft_base_is_trained_once_and_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [*SMALL_RUN[2:], *places(tmp_path), "model=tiny", "debug=smoke"]
    assert runs.train(compose_train(["method=simpo", *common])) == 0
    first = capsys.readouterr().err
    assert "SFT base: training it once" in first
    assert runs.train(compose_train(["method=amapo", "method.statistics=8", *common])) == 0
    second = capsys.readouterr().err
    assert "SFT base: reusing" in second
    assert len(list((tmp_path / "runs").glob("sft__*"))) == 1


def test_one_process_owns_a_run_and_another_may_wait_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        owned(tmp_path / "run"),
        pytest.raises(UserError, match="being trained by another process"),
        owned(tmp_path / "run"),
    ):
        pass
    order: list[str] = []

    def second() -> None:
        with owned(tmp_path / "run", wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with owned(tmp_path / "run"):
        waiting.start()
        waiting.join(timeout=0.5)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert "waiting for another process" in capsys.readouterr().err
