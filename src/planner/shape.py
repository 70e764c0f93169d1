"""The architecture of a configuration in numbers; makes no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from src.errors import UserError
from src.model.trainable import Share, blocks_of, select_trainable, trained_share
from src.planner.activations import FAMILIES
from src.planner.sizes import ModelShape
from src.schema import TrainConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def parameter_share(config: TrainConfig, vocabulary: int | None) -> Share:
    """Parameters of ``model.architecture`` (with ``vocabulary`` tokens if given) and its adapter, and how many of them
    the run trains; makes no weights. Raises ``UserError`` when there is nothing of the kind to train."""
    return trained_share(weightless(config, vocabulary))


def shape_of(config: TrainConfig, vocabulary: int | None) -> ModelShape:
    """The architecture that the run trains, its adapter included; raises ``UserError`` as ``parameter_share`` does."""
    return shape_of_model(weightless(config, vocabulary), eager=config.model.attention == "eager")


def weightless(config: TrainConfig, vocabulary: int | None) -> PreTrainedModel:
    """The model without memory for its weights."""
    from transformers import AutoConfig

    from src.model.adapter import add_adapter
    from src.model.load import architecture_only, architecture_values

    values = architecture_values(config.model)
    if not values:
        raise UserError(
            f"model={config.model.name} gives no model.architecture, from which memory is estimated; add it"
        )
    if config.model.path is None and vocabulary is not None:
        values["vocab_size"] = vocabulary
    architecture = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = architecture_only(architecture)
        select_trainable(model, config.model.trainable)
        if config.adapter.name != "none":
            add_adapter(model, config.adapter, config.seed)
    return model


def shape_of_model(model: PreTrainedModel, *, eager: bool) -> ModelShape:
    """What a plan asks of a model, whose weights need not be there."""
    values: PretrainedConfig = model.config
    heads = int(values.num_attention_heads)
    head_width = int(getattr(values, "head_dim", None) or values.hidden_size // heads)
    keys = int(getattr(values, "num_key_value_heads", None) or heads)
    whole: Any = model
    matrices = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    kind = str(values.model_type)
    return ModelShape(
        kind=kind,
        layers=int(values.num_hidden_layers),
        hidden=int(values.hidden_size),
        inner=int(getattr(values, "intermediate_size", None) or 4 * values.hidden_size),
        heads=heads,
        query_width=heads * head_width,
        key_width=keys * head_width,
        vocabulary=int(whole.get_output_embeddings().weight.shape[0]),
        tied=whole.get_output_embeddings().weight is whole.get_input_embeddings().weight,
        capped_scores=bool(getattr(values, "attn_logit_softcapping", None)),
        capped_logits=bool(getattr(values, "final_logit_softcapping", None)),
        eager=eager,
        share=trained_share(model),
        block=max((sum(p.numel() for p in block.parameters()) for block in blocks_of(model)), default=0),
        linear=sum(matrices),
        known=kind in FAMILIES,
    )
