"""The W&B mirror offline: no network, no login, nothing in it that metrics.jsonl has not, and every step once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.schema import LoggingConfig
from src.wandb_files import parts_of, read_offline
from src.wandb_runs import LONGEST_ID, Identity, run_id, training_identity
from tests.entry import call, refused
from tests.support import SMALL_RUN, metrics, places

wandb = pytest.importorskip("wandb")

SETTINGS: dict[str, Any] = {
    "method": {"name": "simpo"},
    "model": {"name": "tiny"},
    "dataset": {"name": "toy"},
    "noise": {"_target_": "src.data.noise.NoNoise"},
    "training": {"global_batch_size": 8},
}


def test_a_run_mirrored_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    common = [*SMALL_RUN, *places(tmp_path), "method=simpo", "training.max_steps=4"]
    target, plain = tmp_path / "run", tmp_path / "plain"
    labels = ["logging.paper=gapo", "logging.table=B", "logging.scale=laptop", "logging.tags=[mine]"]
    done = call("src.train", *common, f"run_dir={target}", "logging=wandb_offline", *labels, "logging.samples=3")
    assert done.code == 0, done.err
    assert call("src.train", *common, f"run_dir={plain}").code == 0
    assert (target / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()

    config_hash = json.loads((target / "status.json").read_text())["config_hash"]
    found = read_offline(target, f"run__{config_hash}")
    assert found.identity == {
        "id": f"run__{config_hash}",
        "name": "run",
        "project": "marginalia",
        "group": "gapo_tableB",
        "job_type": "train",
        "tags": ["gapo", "laptop", "gapo:tableB", "mine", "simpo", "tiny", "toy"],
    }
    assert found.finished
    assert found.config["training"]["max_steps"] == 4
    assert found.axes["train/*"] == found.axes["validation/*"] == "step"
    # validation before the first step and after steps 3 and 4; W&B's own step is 2s, or 2s + 1 of a validation
    assert sorted(found.rows) == [1, 2, 4, 6, 7, 8, 9]
    assert found.repeated == []
    for line in metrics(target):
        row = found.rows[2 * line["step"] + (line["split"] == "validation")]
        assert (row["step"], row["pairs"]) == (line["step"], 8 * line["step"])
        numbers = {key: value for key, value in line.items() if key not in ("step", "split")}
        assert {key: row[f"{line['split']}/{key}"] for key in numbers} == numbers
    assert found.rows[2]["speed/pairs_per_second"] > 0
    check_table(target)


def check_table(target: Path) -> None:
    """Three pairs as text, whose numbers are those of the last validation."""
    (file,) = target.glob("wandb/offline-run-*/files/media/table/validation/samples_9_*.json")
    content = json.loads(file.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert len(rows) == 3
    for row in rows:
        assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-4)
        assert row["ranked right"] == (row["rewards/margins"] > 0)
        assert row["chosen"] != row["rejected"]
        assert "margin at step 0" in row


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "simpo__tiny__toy__s0__0123456789"
    folder.mkdir()
    return folder


def mirrored(directory: Path, start: int, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process does that trains steps ``start`` to ``stop`` and validates after each."""
    from src.training.wandb_mirror import WandbMirror

    monkeypatch.setenv("WANDB_SILENT", "true")
    logging: Any = LoggingConfig("wandb_offline", project="p", samples=1)
    identity = training_identity(SETTINGS, logging, directory, "0123456789")
    mirror = WandbMirror(logging, identity, directory, SETTINGS, list)
    for step in range(start, stop + 1):
        train, validation = ({"step": step, "split": split, "loss": step / 2} for split in ("train", "validation"))
        for line in (train, {"step": step, "seconds": 1.0}, validation):
            if "split" in line:
                with (directory / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            mirror.log(line, step)
    mirror.finish()
    wandb.teardown()  # as the end of the process does: W&B's own process has closed the file


def cut_metrics(directory: Path, steps: int) -> None:
    """metrics.jsonl as it was at the checkpoint of that step."""
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[: 2 * steps]))


def test_steps_of_a_killed_run_are_there_once_and_all(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored(directory, 1, 6, monkeypatch)
    (part,) = parts_of(directory, directory.name)
    whole = part.read_bytes()
    ends = [place for place in range(len(whole), 0, -60) if rows_with(part, whole[:place], directory) == 7]
    part.write_bytes(whole[: ends[0]])  # torn: rows 2 to 8 are whole, the validation of step 4 is not
    assert sorted(read_offline(directory, directory.name).rows) == [2, 3, 4, 5, 6, 7, 8]
    time.sleep(1.1)  # W&B names parts by the second
    cut_metrics(directory, steps=5)  # the last checkpoint is of step 5, after what W&B has
    mirrored(directory, 6, 7, monkeypatch)
    found = read_offline(directory, directory.name)
    assert len(parts_of(directory, directory.name)) == 2
    assert sorted(found.rows) == list(range(2, 16))
    assert found.repeated == []
    assert [found.rows[2 * step]["train/loss"] for step in range(1, 8)] == [step / 2 for step in range(1, 8)]


def rows_with(part: Path, data: bytes, directory: Path) -> int:
    part.write_bytes(data)
    return len(read_offline(directory, directory.name).rows)


def test_a_checkpoint_before_what_is_there_repeats_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored(directory, 1, 3, monkeypatch)
    cut_metrics(directory, steps=1)
    time.sleep(1.1)  # W&B names parts by the second
    mirrored(directory, 2, 4, monkeypatch)  # steps 2 and 3 once more, with the same numbers
    found = read_offline(directory, directory.name)
    assert (sorted(found.rows), found.repeated) == (list(range(2, 10)), [])


def test_identity_is_a_function_of_the_directory(tmp_path: Path) -> None:
    hashed = "0123456789"
    planned = f"simpo__tiny__toy__s0__{hashed}"
    assert run_id(tmp_path / "a" / planned, hashed) == run_id(tmp_path / "b" / planned, hashed) == planned
    assert run_id(tmp_path / "mine", hashed) == f"mine__{hashed}"
    assert run_id(tmp_path / "mine?x#1", hashed) == f"mine_x_1__{hashed}"
    long = [run_id(tmp_path / f"{letter}{'x' * 200}", hashed) for letter in "ab"]
    assert len(set(long)) == 2
    assert all(len(one) == LONGEST_ID and one.endswith(hashed) for one in long)


@pytest.mark.parametrize(
    ("logging", "sweep", "group", "tags"),
    [
        ({}, "", "simpo__tiny__toy", ("simpo", "tiny", "toy")),
        ({"paper": "amapo"}, "", "amapo", ("amapo", "simpo", "tiny", "toy")),
        ({"paper": "amapo", "table": 2}, "", "amapo_table2", ("amapo", "amapo:table2", "simpo", "tiny", "toy")),
        ({}, "tiny_simpo", "sweep_tiny_simpo", ("sweep", "sweep:tiny_simpo", "simpo", "tiny", "toy")),
        ({"group": "mine", "paper": "gapo"}, "tiny_simpo", "mine", ("gapo", "sweep", "sweep:tiny_simpo")),
    ],
)
def test_groups_and_tags(logging: dict[str, Any], sweep: str, group: str, tags: tuple[str, ...]) -> None:
    found: Identity = training_identity(SETTINGS, LoggingConfig(**logging), Path("r"), "0" * 10, sweep)
    assert found.group == group
    assert found.tags[: len(tags)] == tags
    sft = {**SETTINGS, "method": {"name": "sft"}, "noise": {"name": "random_flip"}}
    other = training_identity(sft, LoggingConfig(scale="gpu", tags=["a", 3]), Path("r"), "0" * 10)
    assert (other.job_type, other.tags) == ("sft", ("gpu", "a", "3", "sft", "tiny", "toy", "noise:random_flip"))


def test_demonstrations_have_no_table(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.training.metrics import Mirror
    from src.training.wandb_mirror import WandbMirror

    mirror = WandbMirror.__new__(WandbMirror)
    mirror.count, mirror.measured = 2, {}
    mirror.pairs(0, {"logps/chosen": torch.zeros(4)})
    assert mirror.measured == {}
    for step in (0, 3, 6):
        mirror.pairs(step, {"rewards/margins": torch.full((4,), float(step))})
    assert mirror.measured == {0: {"rewards/margins": [0.0, 0.0]}, 6: {"rewards/margins": [6.0, 6.0]}}
    Mirror().pairs(0, {})


def test_online_without_login_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = call("src.train", *SMALL_RUN, *places(tmp_path), "method=simpo", "logging=wandb")
    assert done.code == 2
    assert "needs a login" in done.err
    assert "wandb_offline" in done.err
    assert "Traceback" not in done.err


def test_keys_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    message = refused("src.train", *SMALL_RUN, *places(tmp_path), "logging.paper=amapo", "logging.samples=2")
    assert "logging.paper=amapo, logging.samples=2 would not be read with logging=none" in message
    message = refused("src.train", *SMALL_RUN, *places(tmp_path), "logging=wandb_offline", "logging.table=2")
    assert "logging.table=2 needs logging.paper" in message


def test_runs_of_a_table_are_labelled_by_it() -> None:
    from src.config import compose_train, composed
    from src.reproduce import mirroring

    plain: Any = composed("reproduce", ["paper=gapo", "table=B"])
    assert mirroring(plain, "B") == ()
    config: Any = composed("reproduce", ["paper=gapo", "table=B", "logging=wandb_offline", "logging.tags=[a,3]"])
    logging = compose_train(list(mirroring(config, "B"))).logging
    assert (logging.backend, logging.paper, logging.table, logging.scale) == ("wandb_offline", "gapo", "B", "laptop")
    assert (logging.project, list(logging.tags)) == ("marginalia", ["a", 3])
