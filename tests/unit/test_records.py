"""Records: identity, whole-file writing, and messages for files that are none."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from src.environment import environment
from src.errors import UserError
from src.evaluation.records import DataInfo, Record, RunInfo, describe_run, read_records, write_record


def make_record(**changes: object) -> Record:
    run = RunInfo("runs/x", "c0ffee", "simpo", "tiny", "toy", "none", 0, 50, "best", {"beta": 2.0})
    record = Record(
        benchmark="ranking",
        run=run,
        data=DataInfo("validation", "abc", 200),
        metrics={"accuracy/average": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 200}},
        settings={"min_score_gap": 0.0},
        environment=environment(),
        command="python -m src.evaluation.ranking checkpoint=runs/x",
    )
    return replace(record, **changes)


def test_round_trip(tmp_path: Path) -> None:
    record = make_record(
        metrics={"spearman/average": {"value": None, "low": None, "high": None, "n": 0, "reason": "x"}}
    )
    path = write_record(tmp_path / "deep" / "records", record)
    assert path.name == f"{record.id}.json"
    assert json.loads(path.read_text())["id"] == record.id
    assert read_records([path.parent]) == [record]
    assert read_records([path.parent, path]) == [record]


def test_another_setting_is_another_record() -> None:
    first = make_record()
    others = [
        make_record(settings={"min_score_gap": 1.0}),
        make_record(benchmark="rm_bench"),
        make_record(data=DataInfo("train", "abc", 200)),
        make_record(run=replace(first.run, config_hash="other")),
        make_record(run=replace(first.run, checkpoint="last")),
        make_record(evaluation_hash="0123456789"),
    ]
    assert len({record.id for record in [first, *others]}) == 7


def test_id_is_a_file_name() -> None:
    run = replace(make_record().run, dataset="../my data")
    assert "/" not in make_record(run=run).id
    assert " " not in make_record(run=run).id


def test_a_failed_write_leaves_the_old_record_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_record(tmp_path, replace(record, counts={"ties": 1}))
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_record(tmp_path / "file" / "records", make_record())


def test_nan_is_never_written(tmp_path: Path) -> None:
    nan = {"accuracy/sum": {"value": float("nan"), "low": None, "high": None, "n": 1}}
    with pytest.raises(ValueError, match="Out of range"):
        write_record(tmp_path, make_record(metrics=nan))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.pop("run"), "'run' is missing"),
        (lambda r: r["run"].pop("seed"), r"'run\.seed' is missing"),
        (lambda r: r["run"].update(seed="0"), r"'run\.seed' must be a whole number, not '0'"),
        (lambda r: r["data"].update(pairs=True), r"'data\.pairs' must be a whole number"),
        (lambda r: r["metrics"].update({"accuracy/sum": 0.5}), r"'metrics\.accuracy/sum' must be an object"),
        (
            lambda r: r["metrics"]["accuracy/average"].update(value="high"),
            r"'metrics\.accuracy/average\.value' must be",
        ),
        (lambda r: r.update(benchmark=None), "'benchmark' must be a string"),
    ],
)
def test_malformed_records_name_file_and_field(tmp_path: Path, spoil, message: str) -> None:
    content = make_record().to_json()
    spoil(content)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_records([tmp_path])
    assert str(file) in str(caught.value)


def test_truncated_and_absent_records(tmp_path: Path) -> None:
    file = tmp_path / "half.json"
    file.write_text('{"id": "x", ')
    with pytest.raises(UserError, match=r"half\.json is not a usable record"):
        read_records([tmp_path])
    with pytest.raises(UserError, match=r"nowhere: the path does not exist"):
        read_records([tmp_path / "nowhere"])


def make_run(directory: Path, config: dict[str, object]) -> Path:
    (directory / "checkpoints" / "step-00000050").mkdir(parents=True)
    (directory / "checkpoints" / "best").symlink_to("step-00000050")
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "status.json").write_text(json.dumps({"state": "finished", "step": 80, "config_hash": "c0ffee"}))
    return directory


def test_describe_run(tmp_path: Path) -> None:
    config = {
        "seed": 3,
        "run_dir": "elsewhere",
        "method": {"name": "simpo", "beta": 2.0, "reward": {"_target_": "x", "beta": 2.0}, "link": {"gamma": 2.0}},
        "model": {"name": "tiny", "init": "sft"},
        "dataset": {"name": "toy"},
        "noise": {"_target_": "src.data.noise.RandomFlip", "rate": 0.3, "seed": 7},
        "training": {"learning_rate": 0.001, "micro_batch_size": 4, "max_steps": None},
    }
    info = describe_run(make_run(tmp_path / "run", config))
    assert (info.method, info.model, info.dataset, info.seed, info.step) == ("simpo", "tiny", "toy", 3, 50)
    assert info.noise == "RandomFlip(rate=0.3)"
    assert info.config_hash == "c0ffee"
    assert info.constants == {
        "beta": 2.0,
        "reward._target_": "x",
        "link.gamma": 2.0,
        "model.init": "sft",
        "learning_rate": 0.001,
        "max_steps": None,
    }
    with pytest.raises(UserError, match="no checkpoint 'last'"):
        describe_run(tmp_path / "run", "last")
    with pytest.raises(UserError, match="is not a run directory"):
        describe_run(tmp_path)


def test_no_noise_is_none(tmp_path: Path) -> None:
    for number, noise in enumerate([None, {"name": "none"}, {"_target_": "src.data.noise.NoNoise"}]):
        run = make_run(tmp_path / str(number), {"noise": noise})
        assert describe_run(run).noise == "none"


def test_environment_names_versions() -> None:
    found = environment()
    assert {"commit", "dirty", "python", "torch", "transformers", "numpy", "hydra-core"} <= set(found)
    assert found["numpy"].count(".") == 2
