"""Models from a configuration: built from scratch, or read from a directory or a hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from src.build import plain
from src.errors import UserError
from src.model.adapter import load_adapter_weights, merge_adapter, put_on, saved_settings
from src.model.packed import share_prefixes
from src.model.trainable import select_trainable
from src.schema import ModelConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build_model(
    config: ModelConfig, path: str | None, vocabulary: int, seed: int, *, weights: bool = True
) -> PreTrainedModel:
    """The initial policy, in float32, in training mode without dropout, frozen but for ``model.trainable``.

    ``path`` overrides ``model.path`` (the supervised base of a preference run); without any path the architecture is
    built with weights drawn from ``seed``. Without ``weights`` only its shape is made, on the meta device. Raises
    ``UserError`` when weights cannot be had or do not fit.
    """
    silence_transformers()
    if not weights:
        model = empty_model(config, path, vocabulary)
    else:
        model = read_model(config, path, merged=True) if path else model_from_scratch(config, vocabulary, seed)
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if rows < vocabulary:
        raise UserError(
            f"model {path or config.name} embeds {rows} tokens but its tokenizer has {vocabulary}; "
            "set model.tokenizer to the one the model was trained with"
        )
    if config.gradient_checkpointing:
        cast(Any, model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    # train() would switch dropout on, which no method here wants; only checkpointing looks at the flag
    disable_dropout(model)
    model.train()
    select_trainable(model, config.trainable)
    if config.layout == "prefix":
        share_prefixes(model)
    return model


def model_from_scratch(config: ModelConfig, vocabulary: int, seed: int) -> PreTrainedModel:
    """A model with the architecture's values and ``vocabulary`` tokens; weights depend on ``seed`` alone."""
    from transformers import AutoConfig

    values = architecture_values(config)
    values["vocab_size"] = vocabulary
    try:
        architecture = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"model.architecture cannot be built: {error}; give model_type and its values") from error
    torch.manual_seed(seed)
    return architecture_only(architecture, dtype=torch.float32, attn_implementation=config.attention)


def empty_model(config: ModelConfig, path: str | None, vocabulary: int) -> PreTrainedModel:
    """The shape of the model that ``read_model`` or ``model_from_scratch`` gives, without memory for its weights."""
    from transformers import AutoConfig

    while path is not None and (settings := saved_settings(path)) is not None:
        path = str(settings.base_model_name_or_path)
    if path is None:
        values = {**architecture_values(config), "vocab_size": vocabulary}
        architecture = AutoConfig.for_model(values.pop("model_type"), **values)
    else:
        architecture = AutoConfig.from_pretrained(path, revision=config.revision if path == config.path else None)
    with torch.device("meta"):
        return architecture_only(architecture, dtype=torch.float32, attn_implementation=config.attention)


def architecture_values(config: ModelConfig) -> dict[str, Any]:
    """``model.architecture`` as plain data."""
    return {str(key): plain(value) for key, value in config.architecture.items()}


def architecture_only(architecture: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A model with random weights, on torch's current default device (``meta`` makes none)."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(architecture, **options)
    return model


def read_model(config: ModelConfig, path: str, *, merged: bool = False) -> PreTrainedModel:
    """Weights from a directory or a hub id, where that is an adapter's with the base that it names.

    ``merged``: the adapter is made part of the weights. Otherwise it stays beside them, and log-probs are exactly
    those of training. Raises ``UserError`` whose message says what to put in ``model.path``.
    """
    silence_transformers()
    settings = saved_settings(path)
    if settings is None:
        model = read_weights(config, path)
    else:
        base = settings.base_model_name_or_path
        try:
            model = read_model(config, str(base), merged=True)
        except UserError as error:
            raise UserError(
                f"{path} holds an adapter, whose base is {base} (base_model_name_or_path in its adapter_config.json): "
                f"{error}; put the base back there, or correct that entry"
            ) from error
        put_on(model, settings)
        load_adapter_weights(model, Path(path))
    if merged:
        merge_adapter(model)
    return model


def read_weights(config: ModelConfig, path: str) -> PreTrainedModel:
    """Weights from a directory or a hub id; the message of a failure says what to put in ``model.path``."""
    from transformers import AutoModelForCausalLM

    revision = config.revision if path == config.path else None
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=torch.float32, attn_implementation=config.attention
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        where = "directory" if Path(path).exists() else "hub id (not reachable from here, or no such model)"
        raise UserError(
            f"model.path={path} is a {where} that cannot be loaded: {reason} "
            "Put a directory written by save_pretrained in model.path"
        ) from error
    return model


def silence_transformers() -> None:
    """No progress bars for reading and writing weights: a run has its own; nor a warning of DeepSpeed, which
    transformers imports to write weights where it is installed, that it finds no GPU."""
    from transformers.utils import logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    cast(Any, logging).disable_progress_bar()


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout probability to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if getattr(model.config, name, None):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            cast(Any, module).attention_dropout = 0.0
