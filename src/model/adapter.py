"""LoRA: small trained matrices beside frozen weights (Hu et al. 2021, Eq. 3), by peft, in place.

The model stays a plain transformers model whose linear layers carry their adapter, so every forward, and whatever
looks at parameters, works as without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.errors import UserError
from src.schema import AdapterConfig

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name of the only adapter a model has here."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft's files put before the names of weights."""


def add_adapter(
    model: PreTrainedModel, config: AdapterConfig, seed: int, base: str | None = None, revision: str | None = None
) -> None:
    """Freeze the model and put adapters on its target modules: W becomes W + alpha/r · B·A, with B = 0 at the start.

    A depends on ``seed`` alone. ``base`` (with ``revision``) is where the frozen weights are found again; it is
    written beside the adapter. Raises ``UserError`` when the model has no such target modules.
    """
    from peft import LoraConfig

    targets = config.target_modules
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base if base is None or not Path(base).is_dir() else os.path.abspath(base),
        revision=revision,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
    )
    torch.manual_seed(seed)
    put_on(model, settings)


def put_on(model: PreTrainedModel, settings: PeftConfig) -> None:
    """Put untrained adapters on ``model``; raises ``UserError`` when the target modules are not there."""
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(settings, model, ADAPTER)
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
        raise UserError(
            f"adapter.target_modules={targets_text(settings)} is not found in a {model.config.model_type} model; "
            f"give all-linear, or a list of its linear layers ({', '.join(sorted(names))})"
        ) from error


def targets_text(settings: PeftConfig) -> str:
    """The target modules as one writes them on the command line."""
    targets: Any = getattr(settings, "target_modules", None)
    return targets if isinstance(targets, str) else f"[{','.join(sorted(targets))}]"


def settings_of(model: PreTrainedModel) -> LoraConfig | None:
    """The adapter's settings; ``None`` for a model without one."""
    settings: LoraConfig | None = getattr(model, "peft_config", {}).get(ADAPTER)
    return settings


def tuned_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Layers that carry an adapter, by name."""
    if settings_of(model) is None:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Within the block ``model`` is its base, whatever its adapter has learned; without an adapter nothing changes."""
    layers = tuned_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights without those of adapters, under the names that they have without adapters."""
    state = model.state_dict()
    if settings_of(model) is None:
        return state
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def merge_adapter(model: PreTrainedModel) -> None:
    """Make the adapter part of the weights (W + alpha/r · B·A, rounded once); all of them can be trained then."""
    layers = tuned_layers(model)
    for name, layer in layers.items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    if layers:
        plain: Any = model
        del plain.peft_config
        plain._hf_peft_config_loaded = False
        model.requires_grad_(True)


def save_weights(model: PreTrainedModel, directory: Path) -> None:
    """Write weights and configuration, or for a model with an adapter this alone, in peft's format."""
    save_state(model, None, directory)


def save_state(model: PreTrainedModel, whole: Mapping[str, Tensor] | None, directory: Path) -> None:
    """The same with the weights ``whole`` (names of ``state_dict``) in place of those that ``model`` holds."""
    settings = settings_of(model)
    if settings is None:
        model.save_pretrained(directory, state_dict=None if whole is None else tied_again(model, whole))
        return
    settings.save_pretrained(str(directory))
    state = {PREFIX + name: tensor.contiguous() for name, tensor in adapter_state(model, whole).items()}
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def tied_again(model: PreTrainedModel, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``whole`` with one tensor for all names of a parameter, of which a file then holds one."""
    first: dict[int, str] = {}
    names = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    return {name: whole[names.get(name, name)] for name in whole}


def adapter_state(model: PreTrainedModel, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's weights under peft's names, from ``whole`` where that is given."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=whole, adapter_name=ADAPTER, save_embedding_layers=False
    )
    return state


def load_adapter_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy what ``save_weights`` wrote into the adapter that ``model`` has, bit for bit."""
    from peft import set_peft_model_state_dict

    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(directory / WEIGHTS_FILE).items()}
    if state.keys() != adapter_state(model).keys():
        raise UserError(
            f"the adapter in {directory} is for other layers than adapter.target_modules names; give the configuration "
            "it was trained with (config.yaml of its run)"
        )
    set_peft_model_state_dict(model, state, adapter_name=ADAPTER)


def saved_settings(path: str | Path) -> PeftConfig | None:
    """Settings of the adapter in a directory; ``None`` when there is none in it."""
    if not (Path(path) / CONFIG_FILE).is_file():
        return None
    from peft import PeftConfig

    settings: PeftConfig = PeftConfig.from_pretrained(str(path))
    return settings
