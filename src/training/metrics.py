"""Where numbers go: metrics.jsonl (the source of truth, without clock times), timings.jsonl, and mirrors of both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.data.pairset import PairSet
from src.errors import UserError
from src.schema import TrainConfig
from src.training.distributions import keep_distributions
from src.training.window import StepOutput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    def keep_pairs(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Keep the distributions of the metrics of single validation pairs, [n] each, beside the file."""
        keep_distributions(self.path.parent, step, metrics)

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


class NoFile(MetricsFile):
    """What a rank other than rank 0 writes to: nothing."""

    def __init__(self) -> None: ...

    def write(self, record: Mapping[str, Any]) -> None: ...

    def keep_pairs(self, step: int, metrics: Mapping[str, Tensor]) -> None: ...

    length = 0

    def cut(self, length: int) -> None: ...


class Mirror:
    """What shows metrics elsewhere; this one shows nothing."""

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Show one line of metrics.jsonl or timings.jsonl."""

    def pairs(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Show the metrics of single validation pairs, [n] each."""

    def finish(self) -> None:
        """Flush and close."""


def open_mirror(
    config: TrainConfig, config_hash: str, directory: Path, pairs: PairSet, tokenizer: PreTrainedTokenizerBase
) -> Mirror:
    """The mirror that ``logging`` asks for. ``pairs``: those of validation; the first few are shown as text."""
    if config.logging.backend == "none":
        return Mirror()
    from src.training.wandb_mirror import SamplePair, WandbMirror
    from src.wandb_runs import chosen_sweep, training_identity

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    def samples() -> list[SamplePair]:
        shown = [pairs[index] for index in range(min(config.logging.samples, len(pairs)))]
        return [
            SamplePair(one.id, text(one.prompt_ids), text(one.chosen_ids), text(one.rejected_ids), one.flipped)
            for one in shown
        ]

    values = cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, config), resolve=True))
    identity = training_identity(values, config.logging, directory, config_hash, chosen_sweep())
    return WandbMirror(config.logging, identity, directory, values, samples)
