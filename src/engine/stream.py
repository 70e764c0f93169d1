"""Gradients of single pairs, one after the other, added up twice: alike for a direction, and weighed for the update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientStream:
    """Takes each pair's gradient from where the backward left it (``grad`` of the parameters, which is then empty).

    ``moved``: the parameters that a direction is made of; ``trained``: all that are updated. Holds one more gradient
    of the former and one of the latter.
    """

    def __init__(self, moved: Iterable[nn.Parameter], trained: Iterable[nn.Parameter]) -> None:
        self.moved, self.trained = list(moved), list(trained)
        self.seen: dict[nn.Parameter, Tensor] = {}
        self.total: dict[nn.Parameter, Tensor] = {}

    def start(self) -> None:
        """A new direction begins."""
        self.seen = {}

    @torch.no_grad()
    def measured(self) -> tuple[Tensor, Tensor]:
        """‖g‖² and ⟨g, Σ of those before⟩ of the present gradient g over ``moved`` (scalars); it joins the sum."""
        present = [(parameter, parameter.grad) for parameter in self.moved if parameter.grad is not None]
        device = self.trained[0].device
        square, product = torch.zeros((), device=device), torch.zeros((), device=device)
        for parameter, gradient in present:
            exact = gradient.flatten().to(torch.promote_types(gradient.dtype, torch.float32))
            square = square.to(exact) + exact @ exact
            product = product.to(exact)
            if parameter in self.seen:
                product = product + exact @ self.seen[parameter]
                self.seen[parameter] += exact
            else:
                self.seen[parameter] = exact.clone()
        return square, product

    @torch.no_grad()
    def add(self, factor: Tensor) -> None:
        """The present gradient times ``factor`` joins the update, and is forgotten."""
        for parameter in self.trained:
            if parameter.grad is None:
                continue
            gradient = parameter.grad * factor.to(parameter.grad.dtype)
            if parameter in self.total:
                self.total[parameter] += gradient
            else:
                self.total[parameter] = gradient
            parameter.grad = None

    def finish(self) -> None:
        """The update's gradient takes the place of the parameters' gradients."""
        for parameter, gradient in self.total.items():
            parameter.grad = gradient
        self.total = {}
