"""Evaluation records as offline W&B runs: linked to their training run, written once, with what the judge said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.evaluation.record import DataInfo, JudgeInfo, Record, RunInfo
from src.reporting import wandb_records
from src.reporting.pages.samples import Sample, Samples, Text
from src.reporting.wandb_records import identity_of, mirror_records
from src.schema import LoggingConfig
from src.wandb_files import parts_of, read_offline

wandb = pytest.importorskip("wandb")

LOGGING: Any = LoggingConfig("wandb_offline", project="p", samples=2)
HASH = "0123456789"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """AlpacaEval of a run that was trained for a table."""
    run = tmp_path / f"simpo__tiny__toy__s0__{HASH}"
    run.mkdir()
    config = {
        "method": {"name": "simpo", "beta": 2.0},
        "model": {"name": "tiny"},
        "dataset": {"name": "toy"},
        "training": {"learning_rate": 1e-3},
        "logging": {"backend": "wandb_offline", "paper": "amapo", "table": 2, "scale": "laptop", "later": 1},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    info = RunInfo(str(run), HASH, "simpo", "tiny", "toy", "none", 0, 20, "best", {"beta": 2.0})
    metric: Any = {"value": 40.0, "low": 35.0, "high": 45.0, "n": 10}
    none: Any = {"value": None, "low": None, "high": None, "n": 0, "reason": "none"}
    judge = JudgeInfo("oracle", "", "x")
    metrics = {"win_rate": metric, "avg_length": none}
    data = DataInfo("toy", "x", 10)
    return Record("alpaca_eval", info, data, metrics, judge=judge, counts={"ties": 3}, scale="laptop", command="c")


def test_identity_follows_the_training_run(record: Record, tmp_path: Path) -> None:
    found = identity_of(record)
    assert (found.id, found.group, found.job_type) == (f"evaluate__{record.id}", "amapo_table2", "evaluate")
    assert found.tags == (
        *("amapo", "laptop", "amapo:table2", "simpo", "tiny", "toy"),
        *("alpaca_eval", "judge:oracle"),
    )
    elsewhere = replace(record, run=replace(record.run, directory=str(tmp_path / "gone")))
    assert identity_of(elsewhere).group == "simpo__tiny__toy"
    assert identity_of(elsewhere).tags == ("alpaca_eval", "laptop", "judge:oracle", "simpo", "tiny", "toy")


def test_a_record_is_written_once(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (Text("simpo", "an answer"), Text("baseline", "another"))
    prompt, verdicts = (Text("user", "a question"),), (Text("oracle", "the first is better"),)
    found = [Sample(str(n), prompt, answers, verdicts, "won", "0.9", n) for n in range(5)]
    monkeypatch.setattr(wandb_records, "samples_of", lambda _: Samples(tuple(found), 5))
    older = replace(record, created="2026-01-01T00:00:00+00:00", metrics={})
    for new, known in ((1, 0), (0, 1)):
        done = mirror_records([record, older], LOGGING, tmp_path / "w")
        wandb.teardown()
        assert (done.new, done.known) == (new, known)
    (part,) = parts_of(tmp_path / "w", f"evaluate__{record.id}")
    run = read_offline(tmp_path / "w", f"evaluate__{record.id}")
    assert run.rows == {}  # numbers are a summary: nothing to be repeated
    numbers = {key: run.summary[f"alpaca_eval/{key}"] for key in ("win_rate", "win_rate_low", "win_rate_high")}
    assert numbers == {"win_rate": 40, "win_rate_low": 35, "win_rate_high": 45}
    assert "alpaca_eval/avg_length" not in run.summary
    assert run.summary["alpaca_eval/counts/ties"] == 3
    assert run.config["training_run"] == Path(record.run.directory).name
    assert (run.config["method"]["beta"], run.config["training"]["learning_rate"]) == (2.0, 1e-3)
    (table,) = part.parent.glob("files/media/table/alpaca_eval/samples*.json")
    content = json.loads(table.read_text())
    assert [row[0] for row in content["data"]] == ["0", "2"]
    assert content["data"][0][1:5] == ["user: a question", "an answer", "another", "the first is better"]
