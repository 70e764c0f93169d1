"""A trained run opened again: how hard its loss pushes each pair, at the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.data.collate import PairBatch
from src.data.pairset import PairSet
from src.errors import UserError
from src.schema import TrainConfig
from src.training.assemble import PreparedLoader, build_objective, in_order
from src.training.checkpoint import completed, read_state
from src.training.run import Base, assemble, base_of, sft_base
from src.training.step import validate


@dataclass(frozen=True)
class GradientWeights:
    """The pairs of a split, and the metric ``weight/gradient`` of each, [n], in the pairs' order."""

    trained: TrainConfig
    pairs: PairSet
    weights: Tensor


def gradient_weights(directory: Path, which: str, split: str) -> GradientWeights:
    """−∂(n · loss)/∂reward(y_w) of every pair of ``split`` under checkpoint ``which`` (last or best) of a run.

    Pairs are taken in order, in windows and micro-batches of the sizes of training, over which statistics are taken;
    state is that of the checkpoint throughout. The run's directory is not written to.

    Raises ``UserError`` for a run without pairs, a missing or half-written checkpoint, and data that has changed.
    """
    checkpoint = completed(directory / "checkpoints" / which)
    trained = configuration_of(directory)
    objective = build_objective(trained)
    if not objective.needs.rejected:
        raise UserError(f"{directory} trained on demonstrations, which have no pairs to weigh; give a run on pairs")
    base = sft_base(trained)
    start = Base() if base is None else base_of(base)
    with TemporaryDirectory() as aside:
        run = assemble(Path(aside), trained, objective, start)
    saved = read_state(checkpoint)
    run.checkpoints.refuse_other_identity(checkpoint, saved["identity"])
    run.engine.load(checkpoint, saved["engine"])
    loader, state = cast(PreparedLoader, run.loader), saved["progress"]["objective_state"]
    weights = [
        validate(run.engine, objective, state, window).pair_metrics["weight/gradient"].cpu()
        for window in windows(loader, trained, split)
    ]
    return GradientWeights(trained, loader.train if split == "train" else loader.held_out, torch.cat(weights))


def configuration_of(directory: Path) -> TrainConfig:
    """config.yaml of a run directory, typed; nothing is mirrored elsewhere."""
    loaded = OmegaConf.load(directory / "config.yaml")
    config = cast(TrainConfig, OmegaConf.merge(OmegaConf.structured(TrainConfig), loaded))
    config.logging.backend = "none"
    return config


def windows(loader: PreparedLoader, config: TrainConfig, split: str) -> Iterator[list[PairBatch]]:
    """Every pair of ``split`` once, in order."""
    size, training = config.training.micro_batch_size, split == "train"
    pairs = loader.train if training else loader.held_out
    reference = loader.train_reference if training else loader.validation_reference
    mismatched = loader.train_mismatched if training else loader.validation_mismatched
    for window in in_order(len(pairs), config.training.global_batch_size):
        chunks = [window[start : start + size] for start in range(0, len(window), size)]
        yield [loader.batch(pairs, indices, reference, mismatched) for indices in chunks]
