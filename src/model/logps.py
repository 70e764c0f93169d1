"""Sequence log-probs of pairs: the one kernel behind training, validation, the reference pass and ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.objective.types import PairLogProbs, ResponseLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pair_log_probs(model: PreTrainedModel, batch: PairBatch) -> PairLogProbs:
    """Summed log-probs (nats, float32) and token counts of both responses, [n] each, with gradient.

    Logits are made only for supervised tokens. Without rejected responses their entries are 0.
    """
    layout = batch.layout
    hidden = model.base_model(input_ids=layout.input_ids, use_cache=False)[0]
    predicts = layout.supervised[:, 1:]
    logits = head_logits(model, hidden[:, :-1][predicts])
    labels = layout.input_ids[:, 1:][predicts]
    # float64 in, float64 out: tests run the kernel in double precision
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_log_probs = logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    dense = token_log_probs.new_zeros(predicts.shape).masked_scatter(predicts, token_log_probs)
    return split_rows(dense.sum(-1), predicts.sum(-1).to(dense.dtype), len(batch), batch.has_rejected)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits of hidden states [m, width] → [m, vocabulary], soft-capped where the architecture does (Gemma-2)."""
    whole: Any = model
    logits: Tensor = whole.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def split_rows(summed: Tensor, tokens: Tensor, pairs: int, has_rejected: bool) -> PairLogProbs:
    """From rows (chosen first, then rejected) to pairs."""
    chosen = ResponseLogProbs(summed[:pairs], tokens[:pairs])
    if has_rejected:
        return PairLogProbs(chosen, ResponseLogProbs(summed[pairs:], tokens[pairs:]))
    zeros = torch.zeros_like(tokens)
    return PairLogProbs(chosen, ResponseLogProbs(zeros, zeros))
