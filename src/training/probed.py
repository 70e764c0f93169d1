"""What was found of pairs by moving the parameters, before their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.objective.types import PairInputs

SMALLEST_NORM = 1e-12
"""A gradient below it has no direction: the group is not perturbed, its gaps are 0."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found of each pair of a window, [n] each; ``diagnostics`` by metric name."""

    anchor_gaps: Tensor | None
    gradient_norms: Tensor | None
    diagnostics: Mapping[str, Tensor]


def with_probed(inputs: PairInputs, probed: Probed | None) -> PairInputs:
    """``inputs`` with what was found of these pairs."""
    found: dict[str, Any] = dict(probed_values(probed, slice(None)))
    return replace(inputs, **found)


def probed_values(probed: Probed | None, pairs: slice) -> dict[str, Tensor]:
    """What was found of these ``pairs`` of the window, by its name in ``PairInputs``."""
    if probed is None:
        return {}
    found = {"anchor_gaps": probed.anchor_gaps, "gradient_norms": probed.gradient_norms}
    return {name: value[pairs] for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Gaps:
    """What the probe found of a group: gaps [n], norm of the direction and applied fraction (scalars, or [n])."""

    gaps: Tensor
    norm: Tensor
    applied: Tensor


def diagnosed(groups: Sequence[Gaps]) -> Probed:
    """What was found of each pair of the groups, in order."""
    gaps = torch.cat([one.gaps for one in groups])
    applied = torch.cat([one.applied.to(one.gaps.dtype).expand_as(one.gaps) for one in groups])
    diagnostics = {
        "anchor/gap": gaps,
        "anchor/gradient_norm": torch.cat([one.norm.to(one.gaps.dtype).expand_as(one.gaps) for one in groups]),
        "anchor/applied": applied,
        "anchor/skipped": (applied == 0).to(gaps.dtype),
    }
    return Probed(gaps, None, diagnostics)


def no_gaps(like: Tensor, norm: Tensor) -> Gaps:
    """Of a group whose gradient has no direction."""
    return Gaps(torch.zeros_like(like), norm.to(like.dtype), like.new_zeros(()))


def has_direction(norm: Tensor) -> Tensor:
    """Whether a gradient of this norm has a direction (a truth value, elementwise)."""
    return torch.isfinite(norm) & (norm >= SMALLEST_NORM)
