"""AdamW's moments in 8 bits, block by block (after Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization).

A block of 256 entries has one float32 scale, its largest magnitude; entries are codes of their ratio r to it. The
maps are elementwise arithmetic on any device instead of the paper's tables, and as fine for small ratios.

* mean gradient: r = ±(k/127)³, k from 0 to 127, to the nearest: off by at most 1.2 % of the scale, by less near 0;
* mean square: r = 2^((k − 255)/8), k from 1 to 255, and 0 for k = 0: steps of 9 % over 31 octaves. What is positive
  never becomes 0: the update divides by its root. A step moves it by about a thousandth of itself, so that rounded to
  the nearest it would stand still (off by up to 14 times after the gradient's size changed); it is rounded up or down
  at random instead, right on average. The draws are a function of step and parameter: resuming repeats them.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
"""Entries that share a scale."""

LARGEST, PER_OCTAVE = 255, 8
"""Codes of a mean square, and how many of them halve it."""

SMALLEST = 4096
"""Parameters with fewer entries (norms, biases) keep float32 moments: they take no memory."""


def in_blocks(values: Tensor) -> Tensor:
    """Flat values as [blocks, 256], the last block filled with zeros."""
    missing = -values.numel() % BLOCK
    return (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, BLOCK)


def ratios(values: Tensor) -> tuple[Tensor, Tensor]:
    """(each entry over its block's largest magnitude [blocks, 256], those magnitudes [blocks]); 0 in blocks of 0."""
    blocks = in_blocks(values)
    scale = blocks.abs().amax(1)
    return blocks / torch.where(scale > 0, scale, 1)[:, None], scale


def encoded_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 [n], scales float32 [blocks]) of a flat float32 mean gradient."""
    ratio, scale = ratios(values)
    codes = ratio.abs().pow_(1 / 3).mul_(127).round_().copysign_(ratio)
    return codes.to(torch.int8).view(-1)[: values.numel()], scale


def decoded_mean(codes: Tensor, scale: Tensor) -> Tensor:
    """The flat float32 mean gradient of codes and scales."""
    ratio = in_blocks(codes).to(torch.float32).div_(127)
    return ratio.pow_(3).mul_(scale[:, None]).view(-1)[: codes.numel()]


def encoded_square(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(codes uint8 [n], scales float32 [blocks]) of a flat float32 mean square; right on average, positive kept so."""
    ratio, scale = ratios(values)
    below = ratio.log2().mul_(PER_OCTAVE).add_(LARGEST).floor_().clamp_(1, LARGEST - 1)
    share = (ratio / power(below)).sub_(1).div_(2 ** (1 / PER_OCTAVE) - 1)
    codes = below.add_(torch.rand(ratio.shape, generator=generator, device=ratio.device) < share)
    return codes.mul_(ratio > 0).to(torch.uint8).view(-1)[: values.numel()], scale


def decoded_square(codes: Tensor, scale: Tensor) -> Tensor:
    """The flat float32 mean square of codes and scales."""
    places = in_blocks(codes).to(torch.float32)
    return power(places).mul_(places > 0).mul_(scale[:, None]).view(-1)[: codes.numel()]


def power(codes: Tensor) -> Tensor:
    """The ratio that a code of a mean square stands for."""
    return ((codes - LARGEST) / PER_OCTAVE).exp2_()
