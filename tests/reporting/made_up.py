"""Run directories and records for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from src.evaluation.records import DataInfo, Record, RunInfo
from src.evaluation.statistics import Metric

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def make_run(
    root: Path, method: str = "simpo", *, seed: int = 0, dataset: str = "toy", noise: Any = None, **status: Any
) -> Path:
    """A run directory of 60 steps with training and validation curves."""
    directory = root / f"{method}__tiny__{dataset}__s{seed}__0123456789"
    directory.mkdir(parents=True)
    config = {"seed": seed, "method": {"name": method}, "model": {"name": "tiny"}, "dataset": {"name": dataset}}
    (directory / "config.yaml").write_text(yaml.safe_dump({**config, "noise": noise}))
    state = {
        "state": "finished",
        "step": 60,
        "total_steps": 60,
        "message": "",
        "config_hash": f"{method}{seed}{dataset}",
    }
    (directory / "status.json").write_text(json.dumps({**state, **status}))
    lines = []
    for step in range(1, 61):
        rise = 1 - math.exp(-step / 20) + 0.05 * math.sin(step * (3 + seed) + len(method))
        train = {"loss": 0.7 - 0.3 * rise, "rewards/margins": 2 * rise, "rewards/accuracies": 0.5 + 0.3 * rise}
        train |= {"grad_norm": 3 - rise, "rewards/chosen": rise, "rewards/rejected": -rise, "lr": 1e-3}
        lines.append({"step": step, "split": "train", **train})
        if step % 15 == 0:
            lines.append({"step": step, "split": "validation", "loss": 0.6, "rewards/accuracies": 0.5 + 0.25 * rise})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "timings.jsonl").write_text(json.dumps({"step": 10, "pairs_per_second": 42.0}) + "\n")
    (directory / "environment.json").write_text(
        json.dumps({"commit": "abc123", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.0.0"})
    )
    return directory


def metric(value: float | None, reason: str = "") -> Metric:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}
    return {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 300}


def make_record(
    method: str = "simpo",
    accuracy: float = 0.8,
    *,
    seed: int = 0,
    constants: Mapping[str, Any] | None = None,
    noise: str = "none",
    config_hash: str = "",
    metrics: Mapping[str, Metric] | None = None,
) -> Record:
    given = metrics or {
        "accuracy/average": metric(accuracy),
        "accuracy/sum": metric(accuracy - 0.05),
        "accuracy/reference": metric(None, "no reference log-probs given"),
        "spearman/average": metric(accuracy - 0.3),
        "lengths/chosen_mean": metric(30.0),
    }
    name = config_hash or f"{method}{seed}toy"
    run = RunInfo(f"runs/{name}", name, method, "tiny", "toy", noise, seed, 60, "best", dict(constants or {}))
    created = "2026-01-01T00:00:00+00:00"
    environment = {"commit": "abc123", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.0.0"}
    return Record("ranking", run, DataInfo("validation", "m", 300), given, {}, environment, "python -m x", created)
