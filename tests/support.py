"""What several tests share: a configuration so small that a run takes a second or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

SMALL_MODEL = (
    "model=tiny",
    "model.init=scratch",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=48",
    "model.architecture.num_hidden_layers=1",
    "model.architecture.num_attention_heads=2",
    "model.architecture.num_key_value_heads=2",
    "model.architecture.vocab_size=300",
)
SMALL_DATA = ("dataset=toy", "dataset.source.prompts=80", "dataset.source.demonstration_prompts=80")
SMALL_RUN = (
    *SMALL_MODEL,
    *SMALL_DATA,
    "~recipe",  # another calibration must not change what is tested
    "engine.device=cpu",
    "training.max_steps=8",
    "training.global_batch_size=8",
    "training.micro_batch_size=4",
    "training.learning_rate=1e-3",
    "evaluation.every_steps=3",
    "evaluation.max_pairs=16",
    "checkpoint.every_steps=2",
)


def places(folder: Path) -> list[str]:
    """Overrides that keep a run below ``folder``."""
    return [f"output_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]


def start(module: str, *overrides: str) -> subprocess.Popen[str]:
    """``python -m module overrides`` from the repository root, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *overrides],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    process = start(module, *overrides)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def metrics(run_dir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split in (None, line["split"])]
