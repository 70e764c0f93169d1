"""Sequence log-probs of pairs: the one kernel behind training, validation, the reference pass and ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.data.collate import PairBatch
from src.model.fused import FusedLoss, Share, fused_pair_loss, pair_groups
from src.model.head import chunk_tokens, module_log_probs, token_log_probs
from src.model.packed import Predictions, lengths_of, predictions, shares_prefixes
from src.model.segments import Way
from src.objective.types import PairLogProbs, ResponseLogProbs, each_tensor, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pair_log_probs(
    model: PreTrainedModel,
    batch: PairBatch,
    *,
    per_token: bool = False,
    prompt: bool = False,
    forward_mode: bool = False,
) -> PairLogProbs:
    """Summed log-probs (nats, float32) and token counts of both responses, [n] each, with gradient.

    Logits are made only for supervised tokens. Without rejected responses their entries are 0.
    ``per_token``: also the terms of the sums, [n, time]; column t belongs to token t of the row, 0 where none is
    supervised. ``prompt``: also the prompts' own tokens but the first, which nothing precedes, once per pair.
    ``forward_mode``: by operations alone that forward-mode differentiation knows.
    """
    # of the ways of packed attention, blocks alone know forward mode
    way: Way | None = "blocks" if forward_mode else None
    found = predictions(model, batch, prompt=prompt, packed=shares_prefixes(model), way=way)
    token_log_probs = label_log_probs(model, found, forward_mode=forward_mode)
    return of_pairs(token_log_probs, found, batch, per_token=per_token, prompt=prompt)


def of_pairs(
    token_log_probs: Tensor, found: Predictions, batch: PairBatch, *, per_token: bool, prompt: bool
) -> PairLogProbs:
    """From log-probs of tokens [m] to those of the responses, and of the prompts where they are among the tokens."""
    pairs, time = len(batch), batch.layout.input_ids.shape[1]
    # summed in a row of its own rather than added up in place, which on a GPU takes any order
    terms = token_log_probs.new_zeros(3 * pairs, time).index_put((found.owner, found.column), token_log_probs)
    counts = found.counts.to(terms.dtype)
    chosen, rejected, prompts = (
        ResponseLogProbs(terms[part].sum(-1), counts[part], terms[part] if per_token else None)
        for part in (slice(0, pairs), slice(pairs, 2 * pairs), slice(2 * pairs, 3 * pairs))
    )
    if not batch.has_rejected:
        rejected = each_tensor(chosen.detach(), torch.zeros_like)
    return PairLogProbs(chosen, rejected, replace(prompts, per_token=None) if prompt else None)


def label_log_probs(model: PreTrainedModel, found: Predictions, *, forward_mode: bool = False) -> Tensor:
    """log p(label), [m], in nats, of logits that are soft-capped where the architecture does so (Gemma-2).

    Logits exist for a chunk of tokens at a time; for all at once in ``forward_mode``.
    """
    head, softcap = head_of(model)
    if type(head) is not torch.nn.Linear:  # an adapter's: more than a product with one weight
        return module_log_probs(head, found.hidden, found.labels, softcap, chunked=not forward_mode)
    return token_log_probs(
        found.hidden,
        head.weight,
        found.labels,
        bias=head.bias,
        softcap=softcap,
        chunk=None if forward_mode else "auto",
    )


def head_of(model: PreTrainedModel) -> tuple[torch.nn.Module, float | None]:
    """The module that gives logits, and the soft cap of those."""
    whole: Any = model
    return whole.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)


def pair_loss(
    model: PreTrainedModel, batch: PairBatch, share: Share, *, per_token: bool = False, prompt: bool = False
) -> FusedLoss:
    """Sum over groups of pairs of ``share(their log-probs, which they are)``, with its gradients made in the forward.

    For losses that are sums over pairs: ``share(policy, pairs)`` = ``objective.loss(inputs[pairs], terms[pairs],
    totals)``, where the terms are known or, where ``objective.separable``, found from those pairs. Its loss is to be
    differentiated once. ``per_token``, ``prompt``: as for ``pair_log_probs``, but that a response's per-token terms
    stand from column 0.
    """
    head, softcap = head_of(model)
    if type(head) is not torch.nn.Linear:
        policy = pair_log_probs(model, batch, per_token=per_token, prompt=prompt)
        return FusedLoss(share(policy, slice(0, len(batch))), policy.detach())
    found = predictions(model, batch, prompt=prompt, packed=shares_prefixes(model))
    groups = pair_groups(
        predicted_tokens(lengths_of(batch), prompt=prompt), chunk_tokens(head.out_features, found.hidden.device)
    )
    return fused_pair_loss(
        found.hidden,
        head.weight,
        found.labels,
        found.owner,
        groups,
        share,
        bias=head.bias,
        softcap=softcap,
        per_token=per_token,
        prompt=prompt,
    )


def predicted_tokens(lengths: Sequence[tuple[int, int, int]], *, prompt: bool) -> list[int]:
    """How many tokens of each pair are predicted, from those of (prompt, chosen, rejected)."""

    def predicted(before: int, length: int) -> int:
        return length if before else max(length - 1, 0)

    return [
        predicted(first, chosen) + predicted(first, rejected) + (predicted(0, first) if prompt else 0)
        for first, chosen, rejected in lengths
    ]


class Kernel(torch.nn.Module):
    """The kernel as a module: engines wrap it, so that their hooks see one forward, and its parameters can be replaced
    for a call. It gives flat tensors, in which such hooks find what needs a gradient; ``as_pairs`` puts them together.
    """

    def __init__(self, model: PreTrainedModel, *, forward_mode: bool = False) -> None:
        super().__init__()
        self.model, self.forward_mode = model, forward_mode

    def forward(
        self, batch: PairBatch, per_token: bool, prompt: bool = False, share: Share | None = None
    ) -> tuple[Tensor, ...]:
        """Log-probs; with a ``share`` that loss before them, of whose gradient alone they are part."""
        if share is not None:
            fused = pair_loss(self.model, batch, share, per_token=per_token, prompt=prompt)
            return (fused.loss, *tensors_of(fused.log_probs))
        found = pair_log_probs(self.model, batch, per_token=per_token, prompt=prompt, forward_mode=self.forward_mode)
        return tuple(tensors_of(found))


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
    kernel, training = Kernel(model, forward_mode=True), model.training

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


def as_pairs(tensors: Sequence[Tensor], *, prompt: bool = False) -> PairLogProbs:
    """From the flat tensors of the kernel back to pairs; ``prompt``: the last two are those of the prompts."""
    of_prompt = ResponseLogProbs(*tensors[-2:]) if prompt else None
    responses = tensors[:-2] if prompt else tensors
    half = len(responses) // 2
    return PairLogProbs(ResponseLogProbs(*responses[:half]), ResponseLogProbs(*responses[half:]), of_prompt)
