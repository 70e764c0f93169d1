"""Extreme eigenvalues of a symmetric operator that is known by its products with vectors alone (Lanczos 1950)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BREAKDOWN = 1e-6
"""Where what is left of a vector is below this share of the largest entry so far, the subspace is invariant."""


def ritz_values(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Ascending eigenvalues of the operator on the Krylov space of ``start`` [n], at most ``steps`` of them, float64.

    ``product``: v [n] -> A v [n]. The largest and the smallest approach A's own from inside; with ``steps`` = n they
    are A's own where all differ. Every vector is made orthogonal to all before it, twice, so that no eigenvalue comes
    again by rounding; ``steps`` vectors of n entries are kept.
    """
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(min(steps, start.numel())):
        vector = product(basis[-1])
        diagonal.append(torch.dot(vector, basis[-1]).to(torch.float64))
        for _ in range(2):
            for kept in basis:
                vector = vector - torch.dot(vector, kept) * kept
        length = vector.norm().to(torch.float64)
        largest = max(float(value.abs()) for value in [*diagonal, *beside])
        if step == min(steps, start.numel()) - 1 or float(length) <= BREAKDOWN * largest:
            break
        beside.append(length)
        basis.append(vector / vector.norm())
    matrix = torch.diag(torch.stack(diagonal))
    if beside:
        off = torch.stack(beside)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    found: Tensor = torch.linalg.eigvalsh(matrix)
    return found
