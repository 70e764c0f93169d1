"""Loss of pairs and its gradients by hidden states and head, in the forward: 3 units and no logits made twice.

The loss of a few pairs follows from their log-probs alone, so while their logits are still there it says with which
coefficient every token counts, and the logits become gradients in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.model.head import (
    Head,
    HeadGradients,
    chunk_tokens,
    exact_type,
    hidden_slopes,
    product_type,
    spans,
    without_autocast,
)
from src.objective.types import PairLogProbs, ResponseLogProbs

Share = Callable[[PairLogProbs, slice], Tensor]
"""The loss (scalar) that some pairs add to the whole, of their log-probs and of which they are."""

SIDES = 3
"""Rows of a pair: chosen, rejected, prompt."""


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Consecutive pairs whose logits exist at once: their supervised ``tokens`` in all, and of the ``longest`` pair."""

    pairs: slice
    tokens: int
    longest: int


def pair_groups(tokens: Sequence[int], budget: int) -> list[PairGroup]:
    """As many consecutive pairs a group as ``budget`` tokens hold, from the tokens of each; one too long is alone."""
    groups: list[PairGroup] = []
    start, held = 0, 0
    for pair, count in enumerate(tokens):
        if pair > start and held + count > budget:
            groups.append(PairGroup(slice(start, pair), held, max(tokens[start:pair])))
            start, held = pair, 0
        held += count
    if tokens:
        groups.append(PairGroup(slice(start, len(tokens)), held, max(tokens[start:])))
    return groups


@dataclass(frozen=True, slots=True)
class FusedLoss:
    """``loss`` (scalar, with gradient) and the log-probs it was made of, [n] each, without."""

    loss: Tensor
    log_probs: PairLogProbs


def fused_pair_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    owner: Tensor,
    groups: Sequence[PairGroup],
    share: Share,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    budget: int | None = None,
    per_token: bool = False,
    prompt: bool = False,
) -> FusedLoss:
    """Sum over ``groups`` of ``share(log-probs of the group's pairs, pairs)``, and its gradients by one backward.

    ``hidden`` [m, width] in any order, ``labels`` [m]; ``owner`` [m]: i for the chosen response of pair i of n, n + i
    for the rejected one, 2n + i for the prompt. ``groups`` cover all n pairs and all m tokens in order (see
    ``pair_groups``); a group of more than ``budget`` tokens (what ``chunk_tokens`` says) has its logits made twice.
    ``weight``, ``bias``, ``softcap``: as ``token_log_probs`` takes them.

    ``per_token``: the share is given the terms of the sums too, [pairs, longest]: column k is the response's k-th
    supervised token, in the order of ``hidden``. ``prompt``: and the prompts' log-probs. The share must not look
    beyond its pairs, and may be of any form that autograd knows. Gradients are taken where autograd is on; the
    loss is to be differentiated once, by nothing that needs a second derivative.
    """
    pairs = groups[-1].pairs.stop if groups else 0
    size = chunk_tokens(weight.shape[0], hidden.device) if budget is None else budget
    wanted = [torch.is_grad_enabled() and one is not None and one.requires_grad for one in (hidden, weight, bias)]
    head = Head.of(weight, bias, softcap, product_type(hidden))
    with torch.no_grad(), without_autocast(hidden):
        run = FusedRun.of(hidden, labels, head, wanted, min(size, max([1, *(one.tokens for one in groups)])))
        sides = owner.div(max(pairs, 1), rounding_mode="floor")
        rows, order = torch.sort(owner.remainder(max(pairs, 1)) * SIDES + sides, stable=True)
        start, losses, found = 0, [], []
        for group in groups:
            mine = slice(start, start + group.tokens)
            places = Places.of(rows[mine] - group.pairs.start * SIDES, group, per_token, prompt)
            loss, log_probs = run.group(order[mine], places, share, group.pairs)
            losses.append(loss)
            found.append(log_probs)
            start = mine.stop
    log_probs = PairLogProbs.concatenate(found) if found else nothing(hidden, per_token, prompt)
    loss = torch.stack(losses).sum() if losses else log_probs.chosen.summed.sum()
    if any(wanted):
        of_head = run.of_head
        gradients = [run.of_hidden, of_head.weight, of_head.bias]
        loss = HandOut.apply(loss, hidden, weight, bias, gradients)  # type: ignore[no-untyped-call]
    return FusedLoss(loss, log_probs)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a group, sorted by row (pair × 3 + side), stand in [rows, longest]."""

    rows: Tensor
    columns: Tensor
    counts: Tensor
    longest: int
    per_token: bool
    prompt: bool

    @staticmethod
    def of(rows: Tensor, group: PairGroup, per_token: bool, prompt: bool) -> Places:
        counts = rows.new_zeros((group.pairs.stop - group.pairs.start) * SIDES)
        counts.scatter_add_(0, rows, torch.ones_like(rows))
        before = counts.cumsum(0) - counts
        columns = torch.arange(len(rows), device=rows.device) - before[rows]
        return Places(rows, columns, counts, group.longest, per_token, prompt)

    def pairs(self, token_log_probs: Tensor) -> PairLogProbs:
        """Sums and counts of each response, from the terms [tokens]; in an order that does not vary on a GPU."""
        dense = token_log_probs.new_zeros(len(self.counts), self.longest)
        dense = dense.index_put((self.rows, self.columns), token_log_probs)
        counts = self.counts.to(dense.dtype)

        def side(number: int, per_token: bool) -> ResponseLogProbs:
            terms = dense[number::SIDES]
            return ResponseLogProbs(terms.sum(-1), counts[number::SIDES], terms if per_token else None)

        return PairLogProbs(side(0, self.per_token), side(1, self.per_token), side(2, False) if self.prompt else None)


@dataclass(frozen=True, slots=True)
class FusedRun:
    """What the groups share: hidden states [m, width] in the type of the products, and gradients as they come."""

    hidden: Tensor
    labels: Tensor
    head: Head
    scratch: Tensor
    of_hidden: Tensor | None
    of_head: HeadGradients

    @staticmethod
    def of(hidden: Tensor, labels: Tensor, head: Head, wanted: Sequence[bool], size: int) -> FusedRun:
        low = hidden.detach().to(head.weight.dtype)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        return FusedRun(low, labels, head, head.scratch(size), of_hidden, HeadGradients.zeros(head, *wanted[1:]))

    @property
    def learning(self) -> bool:
        return not (self.of_hidden is None and self.of_head.weight is None and self.of_head.bias is None)

    def group(self, tokens: Tensor, places: Places, share: Share, pairs: slice) -> tuple[Tensor, PairLogProbs]:
        """Loss of one group (scalar) and its log-probs, both detached; its gradients are added."""
        hidden, labels = self.hidden[tokens], self.labels[tokens]
        parts = spans(len(tokens), len(self.scratch))
        scores = [self.head.score(hidden[part], labels[part], self.residuals(part)) for part in parts]
        terms = torch.cat(scores) if scores else hidden.new_zeros(0, dtype=exact_type(hidden.dtype))
        loss, coefficients, log_probs = weighed(terms, places, share, pairs)
        if self.learning:
            for part in reversed(parts):
                if part is not parts[-1]:  # the last one's residuals are still there
                    self.head.score(hidden[part], labels[part], self.residuals(part))
                self.add(tokens[part], hidden[part], self.residuals(part), coefficients[part])
        return loss, log_probs

    def residuals(self, part: slice) -> Tensor:
        return self.scratch[: part.stop - part.start]

    def add(self, tokens: Tensor, hidden: Tensor, residuals: Tensor, coefficients: Tensor) -> None:
        self.of_head.add(hidden, residuals, coefficients)
        if self.of_hidden is not None:
            slopes = hidden_slopes(self.head, residuals) * coefficients[:, None]
            self.of_hidden[tokens] = slopes.to(self.of_hidden.dtype)


def weighed(terms: Tensor, places: Places, share: Share, pairs: slice) -> tuple[Tensor, Tensor, PairLogProbs]:
    """Loss of a group, its derivative by each token's log-prob [tokens], and the log-probs per response, detached."""
    with torch.enable_grad():
        terms = terms.detach().requires_grad_()
        log_probs = places.pairs(terms)
        loss = share(log_probs, pairs)
        if loss.requires_grad:
            (coefficients,) = torch.autograd.grad(loss, terms)
        else:
            coefficients = torch.zeros_like(terms)
    return loss.detach(), coefficients, log_probs.detach()


def nothing(hidden: Tensor, per_token: bool, prompt: bool) -> PairLogProbs:
    """Log-probs of no pair."""
    empty = hidden.detach().new_zeros(0, dtype=exact_type(hidden.dtype))
    side = ResponseLogProbs(empty, empty, empty.new_zeros(0, 0) if per_token else None)
    return PairLogProbs(side, side, ResponseLogProbs(empty, empty) if prompt else None)


class HandOut(torch.autograd.Function):
    """A loss whose gradients are known: backward hands them out, once, through autograd and so past every hook."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        loss: Tensor
        loss, hidden, weight, bias, gradients = inputs
        ctx.gradients = gradients
        ctx.types = [None if one is None else one.dtype for one in (hidden, weight, bias)]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        # handed over, not lent: a second reference would make autograd copy the weight's gradient to accumulate it
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a fused loss are handed out once; compute the loss again")
        # a GPU is not asked for the value, which would wait for it
        scaled = scale.device.type != "cpu" or scale.item() != 1
        found = [
            None if one is None else (one.mul_(scale) if scaled else one).to(kind)
            for one, kind in zip(gradients, ctx.types, strict=True)
        ]
        return None, *found, None
