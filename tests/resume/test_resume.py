"""A run that was interrupted ends exactly like one that was not: weights, optimizer, metrics.jsonl, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.config import STOPPED
from src.engine.ranks import Ranks
from src.training.loop import StopFlag
from tests.entry import call
from tests.evaluation.children import Child
from tests.support import SMALL_RUN, metrics, places

METHOD = ("method=amapo", "method.statistics=8", "noise=random_flip", "noise.rate=0.3", "training.max_steps=12")


def overrides(folder: Path, name: str) -> list[str]:
    return [*SMALL_RUN, *METHOD, *places(folder), f"run_dir={folder / name}"]


def final_state(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], bytes]:
    last = run_dir / "checkpoints" / "last"
    trainer = torch.load(last / "trainer.pt", weights_only=True)
    return load_file(last / "model" / "model.safetensors"), trainer, (run_dir / "metrics.jsonl").read_bytes()


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run in ``whole``."""
    folder: Path = tmp_path_factory.mktemp("resume")
    whole = call("src.train", *overrides(folder, "whole"))
    assert whole.code == 0, whole.err
    return folder


def started(folder: Path, name: str) -> Child:
    """The run in a process of its own, whose hashes of strings differ from this one's."""
    return Child("src.train", tuple(overrides(folder, name)), folder / f"said by {name}").start()


def signalled(folder: Path, name: str, number: signal.Signals, after_step: int) -> int:
    """Start the run and send it ``number`` once metrics.jsonl shows ``after_step``; its exit code."""
    child = started(folder, name)
    file = folder / name / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while child.process.is_alive() and time.monotonic() < deadline:
        if file.exists() and f'"step": {after_step},' in file.read_text():
            child.kill(number)
            break
        time.sleep(0.005)
    return child.join()


def gone_on(folder: Path, name: str) -> None:
    """Start the run again, to its end."""
    child = started(folder, name)
    assert child.join() == 0, child.err


def test_killed_at_three_steps(world: Path) -> None:
    steps = sorted(random.sample(range(1, 11), 3))
    print(f"killed after steps {steps}")
    for after_step in steps:
        assert signalled(world, "killed", signal.SIGKILL, after_step) == -signal.SIGKILL
    gone_on(world, "killed")
    whole, killed = final_state(world / "whole"), final_state(world / "killed")
    assert_same(whole[0], killed[0])
    assert_same(whole[1]["engine"], killed[1]["engine"])
    assert_same(whole[1]["progress"], killed[1]["progress"])
    assert whole[2] == killed[2]


def test_stopped_in_its_last_step_it_still_validates(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world / "late"
    agreed = StopFlag.agreed

    def late(self: StopFlag, ranks: Ranks) -> bool:
        if metrics(run) and metrics(run)[-1]["step"] == 12:
            self.signal = "SIGTERM"
        return agreed(self, ranks)

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "agreed", late)
        assert call("src.train", *overrides(world, "late")).code == STOPPED
    assert metrics(run)[-1]["split"] == "train"
    assert call("src.train", *overrides(world, "late")).code == 0
    assert_same(final_state(run), final_state(world / "whole"))


def test_a_signal_as_an_object_is_finalized_ends_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)

    def stopped() -> None:
        with StopFlag().listening():
            Finalized()
            time.sleep(10)

    with pytest.raises(SystemExit) as ending:
        stopped()
    assert ending.value.code == STOPPED
    assert capfd.readouterr().err == "", "it is no error"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop(world: Path, number: signal.Signals) -> None:
    name = f"asked-{number.name}"
    assert signalled(world, name, number, 3) == 75
    status = json.loads((world / name / "status.json").read_text())
    assert status["state"] == "stopped"
    assert number.name in status["message"]
    assert (world / name / "checkpoints" / "last" / "COMPLETED").exists()
    gone_on(world, name)
    assert final_state(world / name)[2] == final_state(world / "whole")[2]
    assert_same(final_state(world / name)[0], final_state(world / "whole")[0])


def test_a_finished_run_is_skipped(world: Path) -> None:
    before = (world / "whole" / "metrics.jsonl").stat().st_mtime_ns
    again = call("src.train", *overrides(world, "whole"))
    assert again.code == 0
    assert "finished already" in again.err
    assert (world / "whole" / "metrics.jsonl").stat().st_mtime_ns == before


def test_checkpoints_hold_what_they_should(world: Path) -> None:
    folder = world / "whole" / "checkpoints"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    steps = {(folder / link).resolve().name for link in ("last", "best")}
    assert names == steps | {"last", "best"}, "nothing is kept that no link names"
    validations = metrics(world / "whole", "validation")
    assert [line["step"] for line in validations] == [0, 3, 6, 9, 12]
    best = max(validations[1:], key=lambda line: line["rewards/accuracies"])
    assert (folder / "best").resolve().name == f"step-{best['step']:08d}"


def test_export_loads_with_plain_transformers(world: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = world / "whole" / "checkpoints" / "best" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert torch.isfinite(model(**ids).logits).all()
