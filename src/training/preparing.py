"""What a training needs, made before it: data, the SFT base, the reference's log-probs. Training then finds them."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from src.config import STOPPED
from src.engine.create import joined_ranks
from src.schema import TrainConfig
from src.training.assemble import build_objective
from src.training.run import Base, assemble, run_data, sft_base, trained_base
from src.training.rundir import say


def prepare(config: TrainConfig, *, reference: bool) -> int:
    """Prepare the data of a training, and that of the SFT base it starts from; 75 when it was asked to stop.

    ``reference``: also train that base, and compute the reference's log-probs where the method needs them, on all
    ranks. Raises ``UserError`` as training does.
    """
    objective, base_config = build_objective(config), sft_base(config)
    if not reference:
        for one in (config, base_config):
            if one is not None:
                data, _ = run_data(one, build_objective(one))
                say(f"prepared: {len(data.train)} training and {len(data.validation)} validation pairs")
        return 0
    joined_ranks(config)
    base = Base() if base_config is None else trained_base(base_config)
    if base is None:
        return STOPPED
    if not objective.needs.reference:
        say(f"method={config.method['name']} needs no reference")
        return 0
    with TemporaryDirectory() as aside:
        assemble(Path(aside), unmirrored(config), objective, base)
    return 0


def separated(config: DictConfig) -> tuple[DictConfig, bool]:
    """From a configuration of src.prepare that of its training, and ``reference``."""
    keys: list[Any] = [key for key in config if key != "reference"]
    return OmegaConf.masked_copy(config, keys), bool(config.reference)


def unmirrored(config: TrainConfig) -> TrainConfig:
    """The same configuration, whose metrics are mirrored nowhere: nothing is trained."""
    quiet = copy.deepcopy(config)
    OmegaConf.set_readonly(cast(DictConfig, quiet), False)
    quiet.logging.backend = "none"
    return quiet
