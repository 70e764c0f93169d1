"""The next token of every sequence: greedy, or drawn by noise that belongs to the sequence alone.

Drawing by Gumbel-max (Gumbel 1954): argmax over tokens of logit/temperature + g, g = −log(−log u), is a draw from the
softmax. u is a hash of (the sequence's key, step, token), made on the device: no generator whose state would depend on
who else is in the batch. So a sequence meets the same noise in every batch, after every interruption and on every
device, and its text changes only where rounding changes the order of two almost equal sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)
"""Constants of SplitMix64 (Steele, Lea and Flood 2014) as signed numbers, since torch multiplies int64 modulo 2^64."""


def next_tokens(
    logits: Tensor, temperatures: Tensor, keys: Tensor, step: int, top_p: float = 1.0, top_k: int | None = None
) -> Tensor:
    """One token id per row. ``logits`` [rows, vocabulary]; ``temperatures`` [rows], 0 is greedy; ``keys`` [rows] int64.

    ``step``: how many tokens the response has already.
    """
    greedy = logits.argmax(dim=-1)
    if not bool((temperatures > 0).any()):
        return greedy
    scaled = logits.double() / temperatures.double().clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    scaled = scaled - scaled.amax(dim=-1, keepdim=True)
    scaled = only_nucleus(only_top(scaled, top_k), top_p)
    drawn = (scaled + gumbel(keys, step, logits.shape[-1])).argmax(dim=-1)
    return torch.where(temperatures > 0, drawn, greedy)


def only_top(logits: Tensor, top_k: int | None) -> Tensor:
    """All but the ``top_k`` largest become −inf (ties with the last of them stay)."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def only_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """All but the fewest likeliest tokens whose probabilities sum to at least ``top_p`` become −inf."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


def gumbel(keys: Tensor, step: int, size: int) -> Tensor:
    """Standard Gumbel noise [rows, size] in float64, a function of key, step and column alone."""
    offset = torch.tensor(step + 1, device=keys.device) * GOLDEN  # as a tensor, so that it wraps around
    starts = mixed(keys + offset)
    columns = torch.arange(1, size + 1, device=keys.device) * GOLDEN
    bits = mixed(starts[:, None] + columns[None, :])
    uniform = (shifted(bits, 12).double() + 0.5) * 2.0**-52  # in (0, 1), both ends excluded
    return -torch.log(-torch.log(uniform))


def mixed(value: Tensor) -> Tensor:
    """SplitMix64's finalizer, bit for bit, on int64."""
    value = (value ^ shifted(value, 30)) * FIRST
    value = (value ^ shifted(value, 27)) * SECOND
    return value ^ shifted(value, 31)


def shifted(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch's own keeps the sign)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
