"""Where numbers go: metrics.jsonl (the source of truth, without clock times), timings.jsonl, and mirrors of both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from src.errors import UserError
from src.schema import LoggingConfig
from src.training.step import StepOutput


def summarize(output: StepOutput, noisy: bool) -> dict[str, float | None]:
    """Means over the window's pairs, moved off the device in one transfer; ``None`` where there is no number.

    ``noisy``: each metric of a pair also as ``..._clean`` and ``..._flipped``, over the pairs that noise left alone and
    those it flipped.
    """
    values = {"loss": output.loss} | {name: value.mean() for name, value in output.pair_metrics.items()}
    if noisy:
        places = {"clean": torch.nonzero(~output.flipped)[:, 0], "flipped": torch.nonzero(output.flipped)[:, 0]}
        for name, value in output.pair_metrics.items():
            values |= {f"{name}_{part}": value[place].mean() for part, place in places.items()}
    if output.gradient_norm is not None:
        values["grad_norm"] = output.gradient_norm
    numbers = torch.stack([value.to(torch.float64) for value in values.values()]).tolist()
    return {name: number if math.isfinite(number) else None for name, number in zip(values, numbers, strict=True)}


class MetricsFile:
    """A JSON-lines file whose length is part of a checkpoint, so that a resumed run does not say things twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def cut(self, length: int) -> None:
        """Forget what was written after a checkpoint; raises ``UserError`` when the file is shorter than that."""
        if self.length < length:
            raise UserError(
                f"{self.path} has {self.length} bytes, but the checkpoint was written after {length}: "
                "the file was edited or lost; restore it, or remove the run directory to start again"
            )
        os.truncate(self.path, length)


class Mirror:
    """What shows metrics elsewhere; this one shows nothing."""

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Show one line of metrics.jsonl or timings.jsonl."""

    def finish(self) -> None:
        """Flush and close."""


class WandbMirror(Mirror):
    """Weights & Biases, online or offline; one W&B run per run directory, continued on resume."""

    def __init__(self, config: LoggingConfig, run_id: str, directory: Path, values: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"logging={config.backend} needs the package wandb: pip install wandb, or use logging=none"
            ) from error
        offline = config.backend == "wandb_offline"
        if not offline and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise UserError("logging=wandb needs a login: run `wandb login`, set WANDB_API_KEY, or use wandb_offline")
        self.run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=run_id,
            name=directory.name,
            dir=str(directory),
            config=dict(values),
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    def log(self, record: Mapping[str, Any], step: int) -> None:
        split = f"{record['split']}/" if "split" in record else "speed/"
        shown = {f"{split}{key}": value for key, value in record.items() if key not in ("step", "split")}
        self.run.log(shown, step=step)

    def finish(self) -> None:
        self.run.finish()


def open_mirror(config: LoggingConfig, run_id: str, directory: Path, values: Mapping[str, Any]) -> Mirror:
    """The mirror that ``logging`` asks for."""
    return Mirror() if config.backend == "none" else WandbMirror(config, run_id, directory, values)
