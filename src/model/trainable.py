"""Which parameters a run trains, and what share of the model they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from src.errors import UserError
from src.schema import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Share:
    """Numbers of parameters, tied ones counted once; an adapter's own are part of ``total``."""

    trained: int
    total: int

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} parameters ({100 * self.trained / self.total:.2f} %)"


def trained_share(model: PreTrainedModel) -> Share:
    """How many of the model's parameters get a gradient."""
    parameters = list(model.parameters())
    return Share(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def what_is_trained(config: TrainConfig) -> str:
    """In words, which parameters a run trains."""
    if config.adapter.name != "none":
        return f"adapters of rank {config.adapter.r} (adapter={config.adapter.name})"
    everything = config.model.trainable == "full"
    return "all of the model" if everything else f"feed-forward projections (model.trainable={config.model.trainable})"


def select_trainable(model: PreTrainedModel, trainable: str) -> None:
    """Freeze all but what ``model.trainable`` names: ``full`` freezes nothing, ``mlp`` all but the feed-forward
    projections (GapPO section 3.5: attention, norms, embeddings and head stay as they are, tied or not).

    Raises ``UserError`` for an architecture whose blocks have no such projections.
    """
    if trainable == "full":
        return
    chosen = {id(parameter) for layer in feed_forward_projections(model) for parameter in layer.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def feed_forward_projections(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """The linear layers in the module ``mlp`` of every block, in order.

    Gate, up and down in Llama, Mistral, Qwen2 and Gemma-2; dense_h_to_4h and dense_4h_to_h, with biases, in GPT-NeoX.
    """
    blocks = blocks_of(model)
    found = [linear_layers(getattr(block, "mlp", None)) for block in blocks]
    if blocks and all(found):
        return [layer for layers in found for layer in layers]
    inside = ", ".join(name for name, _ in blocks[0].named_children()) if blocks else "no list of blocks was found"
    raise UserError(
        f"model.trainable=mlp: the blocks of a {model.config.model_type} model have no linear layers in a module "
        f"'mlp' ({inside}), so its feed-forward projections cannot be told from the rest; "
        "use model.trainable=full, or adapter=lora with adapter.target_modules"
    )


def blocks_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The transformer blocks: the list of modules that is as long as the configuration says."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return list(module)
    return []


def linear_layers(module: torch.nn.Module | None) -> list[torch.nn.Linear]:
    """Linear layers within ``module``; [] without one."""
    return [] if module is None else [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
