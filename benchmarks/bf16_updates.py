"""What rounding weights to bfloat16 leaves of their updates: `python -m benchmarks.bf16_updates`.

Weights as of a language model (normal, deviation 0.02) take 470 steps of AdamW, as many as an epoch of 60k pairs in
batches of 128, along gradients with a steady part and noise, at a constant rate; stored in float32, in bfloat16
rounded to nearest, in bfloat16 rounded at random so that the mean is right, and split (training.master=split). Of the
whole movement are written: its norm and its cosine with that of the float32 weights, and whether it is the same bit
for bit. Beside it, the error of 32 gradients added up in bfloat16. Writes results/benchmarks/bf16_updates.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.config import ROOT
from src.engine.chunked_adamw import ChunkedAdamW
from src.engine.split_master import master_of, split_weights
from src.environment import environment

RESULT = Path("results/benchmarks/bf16_updates.json")
WEIGHTS, STEPS, DEVIATION = 100_000, 470, 0.02
RATES = (5e-7, 1e-6, 1e-5, 1e-4)


def main() -> int:
    torch.set_num_threads(1)
    rates = {f"{rate:g}": compared(rate) for rate in RATES}
    result = {
        "command": "python -m benchmarks.bf16_updates",
        "weights": WEIGHTS,
        "steps": STEPS,
        "deviation": DEVIATION,
        "learning_rates": rates,
        "accumulation_of_32": {"bfloat16": accumulation_error(torch.bfloat16)},
        "environment": environment(),
    }
    (ROOT / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("learning_rates", "accumulation_of_32")}, indent=2))
    return 0


def compared(rate: float) -> dict[str, Any]:
    """Every way of storing against float32, after all steps."""
    start = initial_weights()
    wanted = trained(rate, unrounded)
    found = {
        "nearest": trained(rate, nearest) - start,
        "at_random": trained(rate, at_random) - start,
    }
    split = trained_split(rate)
    moved = wanted - start
    described = {
        name: {
            "norm": float(change.norm() / moved.norm()),
            "cosine": float(torch.cosine_similarity(change, moved, dim=0)),
        }
        for name, change in found.items()
    }
    return {**described, "split": {"bit_identical": torch.equal(split, wanted)}}


def initial_weights() -> Tensor:
    """Normal weights that bfloat16 holds, as those of a released model."""
    drawn = torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0)) * DEVIATION
    return drawn.to(torch.bfloat16).to(torch.float32)


def gradient(step: int) -> Tensor:
    """A steady part and three times as much noise."""
    steady = torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(1))
    return steady + 3 * torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(100 + step))


def trained(rate: float, stored: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """Weights after all steps, where each is kept as ``stored`` makes it; moments are float32."""
    weight = nn.Parameter(initial_weights())
    optimizer = torch.optim.AdamW([weight], lr=rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    draws = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        weight.grad = gradient(step)
        optimizer.step()
        weight.data.copy_(stored(weight.data, draws))
    return weight.detach()


def trained_split(rate: float) -> Tensor:
    """Masters after all steps with split weights."""
    weight = nn.Parameter(initial_weights())
    split_weights([weight], torch.float32)
    optimizer = ChunkedAdamW([weight], lr=rate, betas=(0.9, 0.999), eps=1e-8, int8=False)
    for step in range(STEPS):
        weight.grad = gradient(step)
        optimizer.step()
    return master_of(weight)


def unrounded(weights: Tensor, draws: torch.Generator) -> Tensor:
    return weights


def nearest(weights: Tensor, draws: torch.Generator) -> Tensor:
    return weights.to(torch.bfloat16).to(torch.float32)


def at_random(weights: Tensor, draws: torch.Generator) -> Tensor:
    """Up or down to a bfloat16 number, in proportion to the distance: lower 16 bits plus a uniform draw, cut off."""
    bits = weights.view(torch.int32) + torch.randint(0, 2**16, weights.shape, generator=draws, dtype=torch.int32)
    return (bits & -(2**16)).view(torch.float32)


def accumulation_error(kind: torch.dtype) -> float:
    """Relative error of the sum of 32 gradients of bfloat16 that is kept in ``kind``."""
    parts = [gradient(step).to(torch.bfloat16) for step in range(32)]
    total = torch.zeros(WEIGHTS, dtype=kind)
    for part in parts:
        total += part
    exact = torch.stack([part.double() for part in parts]).sum(0)
    return float((total.double() - exact).norm() / exact.norm())


if __name__ == "__main__":
    raise SystemExit(main())
