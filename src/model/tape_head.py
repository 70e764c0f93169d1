"""The output layer's part of a recording: log-probs, gradients of hidden states, and what its own gradient needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.model.fused import SIDES, FusedRun, Places, Share, nothing, pair_groups
from src.model.head import Head, HeadGradients, chunk_tokens, exact_type, product_type, spans, without_autocast
from src.model.logps import head_of, predicted_tokens
from src.model.packed import Predictions, lengths_of
from src.objective.types import PairLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """Tokens of a forward that are predicted, pair by pair: hidden states [m, width] and labels [m].

    ``token_pairs`` [m]: whose they are; ``coefficients`` [m]: the derivative of Σ m_i by each log-prob; ``size``: how
    many tokens' logits exist at once; ``residuals``: those of all of them, where they are few enough.
    """

    head: Head
    hidden: Tensor
    labels: Tensor
    token_pairs: Tensor
    coefficients: Tensor
    size: int
    residuals: Tensor | None

    def sums(self, weight: bool, bias: bool) -> HeadGradients:
        """Where gradients of weight and bias add up, from 0 on."""
        return HeadGradients.zeros(self.head, weight, bias)

    def add(self, sums: HeadGradients, factors: Tensor | None) -> None:
        """Add the gradients of Σ f_i·m_i, with ``factors`` [pairs], or 1."""
        coefficients = self.coefficients
        if factors is not None:
            coefficients = coefficients * factors.index_select(0, self.token_pairs).to(coefficients.dtype)
        for part, residuals in self.parts():
            sums.add(self.hidden[part], residuals, coefficients[part])

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Tokens and their residuals, kept or made again, each over the last."""
        if self.residuals is not None:
            yield slice(0, len(self.labels)), self.residuals
            return
        with torch.no_grad(), without_autocast(self.hidden):
            scratch = self.head.scratch(min(self.size, len(self.labels)))
            for part in spans(len(self.labels), self.size):
                residuals = scratch[: part.stop - part.start]
                self.head.score(self.hidden[part], self.labels[part], residuals)
                yield part, residuals


@dataclass(frozen=True, slots=True)
class RecordingRun(FusedRun):
    """A fused run that writes down by how much every token counts, [m]."""

    coefficients: Tensor

    def add(self, tokens: Tensor, hidden: Tensor, residuals: Tensor, coefficients: Tensor) -> None:
        FusedRun.add(self, tokens, hidden, residuals, coefficients)
        self.coefficients[tokens] = coefficients


def head_pass(
    model: PreTrainedModel,
    found: Predictions,
    batch: PairBatch,
    share: Share,
    *,
    per_token: bool,
    learning: bool,
    room: int = 0,
) -> tuple[PairLogProbs, HeadRecord | None, Tensor | None]:
    """Log-probs of ``batch``; when ``learning`` also the record, and the gradients of the hidden states [m, width].

    2 units (``src/model/head.py``). Pairs are taken as many at once as a chunk of logits holds; all of them, and the
    record keeps their residuals, where these are ``room`` entries at most.
    """
    module, softcap = head_of(model)
    layer: torch.nn.Linear = module  # type: ignore[assignment]
    hidden, pairs = found.hidden, len(batch)
    counts, size = predicted_tokens(lengths_of(batch), prompt=False), chunk_tokens(layer.out_features, hidden.device)
    if sum(counts) * layer.out_features <= room:
        size = max(size, sum(counts))
    groups, kind = pair_groups(counts, size), product_type(hidden)
    with torch.no_grad(), without_autocast(hidden):
        head = Head.of(layer.weight, layer.bias, softcap, kind)
        largest = min(size, max([1, *(one.tokens for one in groups)]))
        slopes = torch.empty_like(hidden) if learning else None
        counted = hidden.new_zeros(len(found.labels), dtype=exact_type(head.weight.dtype))
        run = RecordingRun(
            hidden.detach().to(head.weight.dtype),
            found.labels,
            head,
            head.scratch(largest),
            slopes,
            HeadGradients.zeros(head, False, False),
            counted,
        )
        sides = found.owner.div(pairs, rounding_mode="floor")
        rows, order = torch.sort(found.owner.remainder(pairs) * SIDES + sides, stable=True)
        start, policies = 0, []
        for group in groups:
            mine = slice(start, start + group.tokens)
            places = Places.of(rows[mine] - group.pairs.start * SIDES, group, per_token, False)
            policies.append(run.group(order[mine], places, share, group.pairs)[1])
            start = mine.stop
        policy = PairLogProbs.concatenate(policies) if policies else nothing(hidden, per_token, False)
        if not learning:
            return policy, None, None
        kept = run.scratch[: len(order)] if len(groups) == 1 and len(order) <= largest else None
        token_pairs = rows.div(SIDES, rounding_mode="floor")
        record = HeadRecord(head, run.hidden[order], found.labels[order], token_pairs, counted[order], size, kept)
        return policy, record, slopes
