"""Transformer blocks compiled by torch (``engine.compile_blocks``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from src.model.packed import shares_prefixes
from src.model.trainable import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compile_blocks(model: PreTrainedModel, backend: Any = "inductor") -> None:
    """Compile each block of ``model`` in place, once for rows of any length; names of weights stay as they are.

    What a block gives differs from before by rounding. Blocks compile at their first forward, for about half a minute.
    """
    if shares_prefixes(model):
        # packed attention looks at the lengths of each pair, and would be compiled anew for each forward
        from transformers import AttentionInterface
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        disable: Any = torch.compiler.disable
        name = str(model.config._attn_implementation)
        AttentionInterface.register(name, disable(ALL_ATTENTION_FUNCTIONS[name]))
    for block in blocks_of(model):
        block.compile(dynamic=True, backend=backend)


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether its blocks are."""
    return any(block._compiled_call_impl is not None for block in blocks_of(model))
