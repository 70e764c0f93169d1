"""Sequence log-probs of pairs: the one kernel behind training, validation, the reference pass and ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.data.collate import PaddedLayout, PairBatch
from src.objective.types import PairLogProbs, ResponseLogProbs, each_tensor, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pair_log_probs(
    model: PreTrainedModel, batch: PairBatch, *, per_token: bool = False, prompt: bool = False
) -> PairLogProbs:
    """Summed log-probs (nats, float32) and token counts of both responses, [n] each, with gradient.

    Logits are made only for supervised tokens. Without rejected responses their entries are 0.
    ``per_token``: also the terms of the sums, [n, time]; column t belongs to token t of the row, 0 where none is
    supervised. ``prompt``: also the prompts' own tokens but the first, which nothing precedes, once per pair.
    """
    layout = batch.layout
    hidden = model.base_model(input_ids=layout.input_ids, use_cache=False)[0]
    supervised = layout.supervised[:, 1:]
    of_prompt = prompt_tokens(layout, len(batch)) if prompt else None
    predicts = supervised if of_prompt is None else supervised | of_prompt
    logits = head_logits(model, hidden[:, :-1][predicts])
    labels = layout.input_ids[:, 1:][predicts]
    # float64 in, float64 out: tests run the kernel in double precision
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_log_probs = logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    dense = token_log_probs.new_zeros(predicts.shape).masked_scatter(predicts, token_log_probs)
    found = split_rows(selected(dense, supervised, per_token), len(batch), batch.has_rejected)
    if of_prompt is None:
        return found
    return replace(found, prompt=selected(dense, of_prompt, per_token=False)[: len(batch)])


def prompt_tokens(layout: PaddedLayout, pairs: int) -> Tensor:
    """Where a token is one of the chosen row's prompt, bool, [rows, time − 1] (the first token has no place)."""
    time = torch.arange(1, layout.input_ids.shape[1], device=layout.starts.device)
    rows = torch.arange(layout.starts.shape[0], device=layout.starts.device)
    return (time < layout.starts[:, None]) & (rows < pairs)[:, None]


def selected(dense: Tensor, where: Tensor, per_token: bool) -> ResponseLogProbs:
    """Sums and counts of the log-probs ``dense`` at ``where``, [rows, time − 1] both."""
    terms = dense.masked_fill(~where, 0)
    placed = torch.nn.functional.pad(terms, (1, 0)) if per_token else None
    return ResponseLogProbs(terms.sum(-1), where.sum(-1).to(dense.dtype), placed)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits of hidden states [m, width] → [m, vocabulary], soft-capped where the architecture does (Gemma-2)."""
    whole: Any = model
    logits: Tensor = whole.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def split_rows(rows: ResponseLogProbs, pairs: int, has_rejected: bool) -> PairLogProbs:
    """From rows (chosen first, then rejected) to pairs."""
    chosen = rows[:pairs]
    return PairLogProbs(chosen, rows[pairs:] if has_rejected else each_tensor(chosen.detach(), torch.zeros_like))


class Kernel(torch.nn.Module):
    """The kernel as a module, so that its parameters can be replaced for one call."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch, per_token: bool) -> tuple[Tensor, ...]:
        return tuple(tensors_of(pair_log_probs(self.model, batch, per_token=per_token)))


def log_prob_slopes(
    model: PreTrainedModel,
    batch: PairBatch,
    parameters: Mapping[str, torch.nn.Parameter],
    directions: Mapping[str, Tensor],
    *,
    per_token: bool = False,
) -> tuple[PairLogProbs, PairLogProbs]:
    """Log-probs, and their derivatives where each of ``parameters`` (by name in the model) moves along its direction.

    Forward-mode differentiation: one pass whatever the number of pairs, exact to first order, no weight is touched.
    """
    values = {f"model.{name}": parameters[name].detach() for name in directions}
    tangents = {f"model.{name}": direction for name, direction in directions.items()}
    kernel, training = Kernel(model), model.training

    def run(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = functional_call(kernel, values, (batch, per_token))
        return found

    # only checkpointing looks at the training flag, and recomputing would lose the tangents; of the attention kernels
    # only the plain one knows forward mode
    model.train(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            found, slopes = jvp(run, (values,), (tangents,))  # type: ignore[misc]
    finally:
        model.train(training)
    return as_pairs(found), as_pairs(slopes)


def as_pairs(tensors: Sequence[Tensor]) -> PairLogProbs:
    """From the flat tensors of the kernel back to pairs."""
    half = len(tensors) // 2
    return PairLogProbs(ResponseLogProbs(*tensors[:half]), ResponseLogProbs(*tensors[half:]))
