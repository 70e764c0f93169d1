"""Everything that can fail, found before a model is loaded, all of it at once."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from transformers import CONFIG_MAPPING, AutoConfig

from src.build import build, plain
from src.config import CONF, config_hash, frozen, gaps, training_problems
from src.engine.create import refuse_unfit_launch
from src.engine.local import refuse_missing_device
from src.errors import Problems, UserError
from src.parts import given_overrides, with_parts
from src.schema import TrainConfig
from src.training.assemble import (
    PARTS,
    build_noise,
    build_objective,
    build_source,
    build_template,
    build_tokenizer,
    check_best_metric,
    refuse_unknown_parts,
)
from src.training.needs import refuse_source_without_pairs, refuse_unscored_source, refuse_untrainable
from src.training.run import hash_of_base, sft_base
from src.training.rundir import refuse_other_configuration


def checked(config: DictConfig, *, strict: bool) -> TrainConfig:
    """The frozen configuration; raises ``Problems`` that list everything found wrong.

    ``strict``: weights and tokenizer must be at hand too, as training needs them.
    """
    config = with_parts(config, given_overrides())
    problems = training_problems(config)
    if gaps(config):
        raise Problems(problems)
    ready = frozen(config)
    problems += further_problems(ready, found_already=bool(problems), strict=strict, complete=not missing(config))
    if problems:
        raise Problems(list(dict.fromkeys(problems)))
    return ready


def missing(config: DictConfig) -> bool:
    """Whether the source of data has keys without a value."""
    return bool(OmegaConf.missing_keys(config))


def further_problems(
    ready: TrainConfig, *, found_already: bool = False, strict: bool = False, complete: bool = True
) -> list[str]:
    """What is wrong with a configuration that is sound by itself: parts, places, device, data, weights.

    ``found_already``: whether the run is refused anyway; ``complete``: whether the source of data can be built.
    """
    problems: list[str] = []

    def find(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except Problems as error:
            problems.extend(error.problems)
        except UserError as error:
            problems.append(str(error))
        return None

    slots = [name for name in PARTS if name in ready.method]
    parts = [find(partial(build, ready.method[name], f"method.{name}")) for name in slots]
    find(lambda: refuse_unknown_parts(ready))
    objective = None if any(part is None for part in parts) else find(lambda: build_objective(ready))
    find(lambda: refuse_unknown_recipe(ready))
    find(lambda: refuse_unusable_model(ready))
    find(lambda: refuse_missing_attention(ready))
    find(lambda: refuse_unread_seed(ready))
    find(lambda: build_noise(ready))
    find(lambda: check_best_metric(ready))
    find(lambda: refuse_unfit_launch(ready) if strict else refuse_missing_device(ready.engine.device))
    find(
        lambda: refuse_unwritable(
            Path(ready.run_dir or ready.output_root), "run_dir" if ready.run_dir else "output_root"
        )
    )
    find(lambda: refuse_foreign_run(ready))
    find(lambda: refuse_unwritable(Path(ready.cache_root), "cache_root"))
    find(lambda: refuse_missing_logger(ready))
    source = find(lambda: build_source(ready)) if complete else None
    if source is not None:
        if objective is not None:
            find(lambda: refuse_source_without_pairs(ready, objective, source))
            find(lambda: refuse_unscored_source(ready, objective, source))
        named = ready.model.tokenizer or ready.model.path
        if named is not None and (strict or Path(named).expanduser().is_dir()):
            tokenizer = find(lambda: build_tokenizer(ready, source))
            if tokenizer is not None:
                find(lambda: build_template(ready, tokenizer))
        # one record says whether there is data at all; where the run is refused anyway, name its bad records too
        find(lambda: deque(islice(source.pairs(), None if (found_already or problems) and not strict else 1), maxlen=0))
    return problems


def refuse_missing_attention(config: TrainConfig) -> None:
    """Raise ``UserError`` for an attention whose package is not installed here."""
    if config.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attention=flash_attention_2 needs the package flash_attn, which is not installed here; use "
            "model.attention=sdpa (eager for Gemma 2), with which model.layout=prefix takes torch's own flash attention"
        )


def refuse_unknown_recipe(config: TrainConfig) -> None:
    """Raise ``UserError`` when the command line names a recipe that does not exist."""
    recipe = chosen_recipe(config)
    if recipe not in (None, usual_recipe(config)) and not recipe_exists(recipe):
        known = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
        close = difflib.get_close_matches(str(recipe), known, n=1)
        hint = f"; did you mean recipe={close[0]}?" if close else "."
        method = usual_recipe(config).split("__")[0]
        near = ", ".join(name for name in known if name.split("__")[0] == method)
        raise UserError(f"recipe={recipe} does not exist{hint} Those of method={method}: {near}")


def usual_recipe(config: TrainConfig) -> str:
    """The recipe that is taken when the command line names none, if there is one: that of the method without swaps."""
    return f"{config.method['name'].split('-')[0]}__{config.model.name}"


def chosen_recipe(config: TrainConfig) -> str | None:
    """The recipe that was composed, whether it exists or not; ``None`` for recipe=null."""
    if not HydraConfig.initialized():
        return usual_recipe(config)
    choice = HydraConfig.get().runtime.choices.get("recipe")
    return None if choice is None else str(choice)


def recipe_exists(recipe: str | None) -> bool:
    return (CONF / "recipe" / f"{recipe}.yaml").exists()


def refuse_unusable_model(config: TrainConfig) -> None:
    """Raise ``UserError`` for an architecture that transformers does not know, or that lacks what is to be trained."""
    refuse_unread_architecture(config)
    refuse_untrainable(config)


def refuse_unread_architecture(config: TrainConfig) -> None:
    """Raise ``UserError`` for a value of ``model.architecture`` that its transformers configuration does not have."""
    values = plain(config.model.architecture)
    kind = values.pop("model_type", None)
    if kind is None:
        raise UserError(f"model.architecture of model={config.model.name} names no model_type; give one, such as llama")
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
        hint = f"; did you mean {close[0]}?" if close else "; give one that it has, such as llama"
        raise UserError(f"model.architecture.model_type={kind} is unknown to transformers{hint}")
    defaults = AutoConfig.for_model(kind)
    if unread := [name for name in values if not hasattr(defaults, name)]:
        close = difflib.get_close_matches(unread[0], vars(defaults), n=1)
        hint = f"; did you mean {close[0]}?" if close else "; remove it"
        raise UserError(
            f"model.architecture.{unread[0]}={values[unread[0]]} is read by no {kind} model of transformers{hint}"
        )


def refuse_unread_seed(config: TrainConfig) -> None:
    """Raise ``UserError`` for a seed of the SFT base where there is no such base."""
    if config.model.init != "sft" and config.model.sft_seed != 0:
        raise UserError(
            f"model.sft_seed={config.model.sft_seed} would not be read, since model.init={config.model.init} starts "
            "from no SFT run; leave it out, or write model.init=sft"
        )


def refuse_unwritable(path: Path, key: str) -> None:
    """Raise ``UserError`` when ``path`` is no directory and none can be made there."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "is not a directory" if not existing.is_dir() else "may not be written"
        raise UserError(f"{key}={path} cannot be made: {existing} {why}; set {key} to a place where you may write")


def refuse_foreign_run(config: TrainConfig) -> None:
    """Raise ``UserError`` when ``run_dir`` holds the run of another configuration."""
    if config.run_dir is not None:
        mine = config_hash(config, hash_of_base(sft_base(config)))
        refuse_other_configuration(Path(config.run_dir), config, mine)


def refuse_missing_logger(config: TrainConfig) -> None:
    """Raise ``UserError`` when a mirror of the metrics is asked for whose package is absent."""
    if config.logging.backend != "none" and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"logging={config.logging.backend} needs the package wandb; pip install it, or use logging=none"
        )
