"""The head, from hidden states to log-probs of labels, with logits of a few tokens at a time.

Work is counted in units, one matrix product of hidden states with the head's weight. Full logits cost 3 (forward, and
one gradient each of hidden states and weight) but hold [m, vocabulary] several times over. Here:

* ``token_log_probs``: 3 units, and one more for all chunks but the last, whose logits the backward makes again; 2 where
  the head is frozen, since the gradient of a log-prob by its hidden state can be kept from the forward.
* ``src.model.fused``: 3 units and no second look, where the loss of a few pairs is known from their log-probs.

All of it goes through ``Chunk``: with p the softmax, ∂log p(label)/∂logits = onehot(label) − p.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
"""Below this many tokens a chunk's products lose speed: the weight is read (and its gradient rewritten) too often."""
CHUNK_ENTRIES = {"cpu": 2**24, "cuda": 2**28}
"""Logits that a chunk may always have: a small vocabulary takes more tokens at once."""
EXACT_ROWS = 256
"""How many rows of low-precision logits are turned to float32 at a time."""


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits are made at once, from the size of the vocabulary and the device."""
    kind = device.type if device.type in CHUNK_TOKENS else "cuda"
    return max(CHUNK_TOKENS[kind], CHUNK_ENTRIES[kind] // vocabulary)


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | Literal["auto"] | None = "auto",
) -> Tensor:
    """log p(label) in nats of each token, [m], float32 (float64 of float64), with gradient.

    ``hidden`` [m, width], ``weight`` [vocabulary, width], ``labels`` [m] int64, ``bias`` [vocabulary]; ``softcap`` c
    makes logits z to c·tanh(z/c) (Gemma-2). ``chunk``: tokens whose logits exist at once; ``None``: all of them, by
    plain operations, which is slower but knows forward mode and second derivatives. Under autocast products are of
    its type. No gradient of the gradient: autograd raises ``RuntimeError`` where one is asked for.
    """
    if chunk is None:
        return plain_log_probs(hidden, weight, labels, bias, softcap)
    size = chunk_tokens(weight.shape[0], hidden.device) if chunk == "auto" else chunk
    graded = torch.is_grad_enabled()
    found: Tensor = LogProbs.apply(hidden, weight, bias, labels, softcap, size, graded)  # type: ignore[no-untyped-call]
    return found


def plain_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """log p(label), [m], from logits of all tokens at once."""
    return log_probs_of(torch.nn.functional.linear(hidden, weight, bias), labels, softcap)


def log_probs_of(logits: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    """log p(label), [m], from logits [m, vocabulary] before their cap."""
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.to(exact_type(logits.dtype))
    return logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)


def module_log_probs(
    head: torch.nn.Module, hidden: Tensor, labels: Tensor, softcap: float | None, *, chunked: bool
) -> Tensor:
    """log p(label), [m], of the logits that any module gives, in chunks that the backward makes again."""

    def of_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return log_probs_of(head(hidden), labels, softcap)

    size = chunk_tokens(int(getattr(head, "out_features", 2**17)), hidden.device)
    parts = spans(len(labels), size)
    if not chunked or len(parts) < 2:
        return of_chunk(hidden, labels)
    found = [checkpoint(of_chunk, hidden[part], labels[part], use_reentrant=False) for part in parts]
    return torch.cat(found)


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """In what log-probs and sums of gradients are held: float32, and float64 where tests run in it."""
    return torch.promote_types(dtype, torch.float32)


def product_type(hidden: Tensor) -> torch.dtype:
    """In what matrix products are taken: autocast's type where it is on, else that of the hidden states."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def spans(tokens: int, size: int) -> list[slice]:
    """``tokens`` in as few slices of at most ``size`` as there must be, of even length."""
    count = -(-tokens // size)
    step = -(-tokens // max(count, 1))
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, max(step, 1))]


@dataclass(frozen=True, slots=True)
class Head:
    """Weight [vocabulary, width] and bias [vocabulary] in the type of the products, and the cap of the logits."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None, softcap: float | None, dtype: torch.dtype) -> Head:
        return Head(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype), softcap)

    def scratch(self, tokens: int) -> Tensor:
        """Room for the logits of a chunk, used again by each: fresh memory would be paged in every time."""
        return self.weight.new_empty(tokens, self.weight.shape[0])

    def score(self, hidden: Tensor, labels: Tensor, residuals: Tensor) -> Tensor:
        """log p(label), [c]; ``residuals`` [c, vocabulary] is overwritten by −∂log p(label)/∂logits before the cap."""
        if self.bias is None:
            torch.mm(hidden, self.weight.t(), out=residuals)
        else:
            torch.addmm(self.bias, hidden, self.weight.t(), out=residuals)
        exact = exact_type(residuals.dtype)
        if residuals.dtype == exact:
            return self.normalize(residuals, labels)
        found = []
        for rows in spans(len(labels), EXACT_ROWS):
            block = residuals[rows].to(exact)
            found.append(self.normalize(block, labels[rows]))
            residuals[rows] = block
        return torch.cat(found) if found else labels.new_zeros(0, dtype=exact)

    def normalize(self, logits: Tensor, labels: Tensor) -> Tensor:
        """log p(label), [c], and ``logits`` overwritten by the residuals; all in place."""
        slope = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(self.softcap)
        labels = labels[:, None]
        ahead = logits.gather(1, labels).squeeze(1) - logits.amax(1)
        torch.softmax(logits, 1, out=logits)
        # log Σ exp(z − max) = −log p(most likely), which never underflows, as p(label) may
        log_probs = ahead + logits.amax(1).log()
        logits.scatter_add_(1, labels, logits.new_full(labels.shape, -1))
        if slope is not None:
            logits.mul_(slope)
        return log_probs


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """Sums over chunks of the gradients of weight and bias, in the exact type; ``None`` of what is frozen."""

    weight: Tensor | None
    bias: Tensor | None

    @staticmethod
    def zeros(head: Head, weight: bool, bias: bool) -> HeadGradients:
        def zero(like: Tensor) -> Tensor:
            return torch.zeros_like(like, dtype=exact_type(like.dtype))

        return HeadGradients(
            zero(head.weight) if weight else None, zero(head.bias) if bias and head.bias is not None else None
        )

    def add(self, hidden: Tensor, residuals: Tensor, coefficients: Tensor) -> None:
        """Add those of Σ coefficient · log p over the tokens of a chunk, [c]."""
        if self.weight is not None:
            weighted = (hidden * coefficients[:, None]).to(residuals.dtype)
            if self.weight.dtype == residuals.dtype:
                self.weight.addmm_(residuals.t(), weighted, alpha=-1)
            else:
                self.weight.sub_(residuals.t() @ weighted)
        if self.bias is not None:
            self.bias.sub_(residuals.t() @ coefficients.to(residuals.dtype))


def hidden_slopes(head: Head, residuals: Tensor) -> Tensor:
    """∂log p(label)/∂hidden of each token of a chunk, [c, width]."""
    return (residuals @ head.weight).neg_()


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Types are chosen once, here; autocast would choose again for every product."""
    return torch.autocast(tensor.device.type, enabled=False)


class LogProbs(torch.autograd.Function):
    """``token_log_probs`` in chunks; keeps no logits but those of the last one, where all were made."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, weight, bias, labels, softcap, size, graded = inputs
        wanted = [graded and need for need in ctx.needs_input_grad[:3]]
        ctx.wanted, ctx.softcap, ctx.size = wanted, softcap, size
        ctx.given, ctx.product = hidden.dtype, product_type(hidden)
        head, parts = Head.of(weight, bias, softcap, ctx.product), spans(len(labels), size)
        low = hidden.detach().to(ctx.product)
        frozen = wanted == [True, False, False]
        kept: Tensor | None = low.new_empty(low.shape) if frozen else None
        found: Tensor = low.new_empty(len(labels), dtype=exact_type(ctx.product))
        with without_autocast(hidden):
            scratch = head.scratch(max((part.stop - part.start for part in parts), default=0))
            for part in parts:
                residuals = scratch[: part.stop - part.start]
                found[part] = head.score(low[part], labels[part], residuals)
                if kept is not None:
                    kept[part] = hidden_slopes(head, residuals)
        again = any(wanted) and not frozen
        if again and len(parts) < 2:
            kept = scratch
        # overwritten in the backward, which what autograd saves must not be
        ctx.last = scratch if again and len(parts) > 1 else None
        ctx.frozen = frozen
        ctx.save_for_backward(*((None, None, None, None) if frozen else (hidden, weight, bias, labels)), kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (coefficients,) = outputs
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        if ctx.frozen:
            return (kept * coefficients[:, None]).to(ctx.given), *[None] * 6
        head, low = Head.of(weight, bias, ctx.softcap, ctx.product), hidden.detach().to(ctx.product)
        with without_autocast(hidden):
            of_head = HeadGradients.zeros(head, *ctx.wanted[1:])
            of_hidden = torch.empty_like(hidden) if ctx.wanted[0] else None
            last, ctx.last = ctx.last, None
            for part, residuals in remade(head, low, labels, ctx.size, last if kept is None else kept):
                of_head.add(low[part], residuals, coefficients[part])
                if of_hidden is not None:
                    of_hidden[part] = hidden_slopes(head, residuals) * coefficients[part, None]
        return of_hidden, as_type_of(weight, of_head.weight), as_type_of(bias, of_head.bias), None, None, None, None


def remade(
    head: Head, hidden: Tensor, labels: Tensor, size: int, kept: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks and their residuals, from the last on: its own are in ``kept``, or made again as the others, over it."""
    parts = spans(len(labels), size)
    scratch = head.scratch(parts[0].stop if parts else 0) if kept is None else kept
    for part in reversed(parts):
        residuals = scratch[: part.stop - part.start]
        if kept is None or part is not parts[-1]:
            head.score(hidden[part], labels[part], residuals)
        yield part, residuals


def as_type_of(parameter: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient in the type that its parameter has."""
    return gradient if parameter is None or gradient is None else gradient.to(parameter.dtype)
