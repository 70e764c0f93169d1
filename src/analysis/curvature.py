"""How sharply the preference loss bends in the output layer: its Hessian's extreme eigenvalues (GAPO, appendix I).

The loss is L(W) = mean over pairs of -log sigmoid(r_w - r_l), r the run's own reward and W the output layer's weight,
[vocabulary, width]. The paper does not say which loss it takes; target margins and anchors differ between methods, and
this one they have in common. Below W everything is held fixed, also where the input embedding shares the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.analysis.lanczos import ritz_values
from src.data.collate import PairBatch
from src.model.logps import of_pairs
from src.model.packed import Predictions, predictions, shares_prefixes
from src.objective.objective import Objective
from src.objective.types import PairLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOP = 5
"""Eigenvalues in the mean that the paper reports beside the largest."""


@dataclass(frozen=True)
class OutputLayer:
    """The preference loss of one batch as a function of the output layer's weight.

    ``found``: hidden states and the tokens of ``batch`` that they predict; ``cap``: of the logits, where the
    architecture has one; ``reference``: log-probs that rewards compare with.
    """

    weight: Tensor
    bias: Tensor | None
    found: Predictions
    batch: PairBatch
    cap: float | None
    objective: Objective
    reference: PairLogProbs | None

    @classmethod
    def of(
        cls, model: PreTrainedModel, batch: PairBatch, objective: Objective, reference: PairLogProbs | None
    ) -> OutputLayer:
        """That of ``model`` on ``batch``; the forward below the output layer runs once, without gradient."""
        whole: Any = model
        head = whole.get_output_embeddings()
        with torch.no_grad():
            found = predictions(model, batch, prompt=False, packed=shares_prefixes(model))
        return cls(
            head.weight.detach().float(),
            None if getattr(head, "bias", None) is None else head.bias.detach().float(),
            replace(found, hidden=found.hidden.float()),
            batch,
            getattr(model.config, "final_logit_softcapping", None),
            objective,
            reference,
        )

    def loss(self, weight: Tensor) -> Tensor:
        """L(W), nats."""
        logits = torch.nn.functional.linear(self.found.hidden, weight, self.bias)
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        chosen = logits.gather(-1, self.found.labels[:, None]).squeeze(-1)
        terms = chosen - logits.logsumexp(-1)
        policy = of_pairs(terms, self.found, self.batch, per_token=False, prompt=False)
        return torch.nn.functional.softplus(-self.objective.rewards(policy, self.reference).margins).mean()

    def product(self, direction: Tensor) -> Tensor:
        """The Hessian times ``direction``, both flat, by differentiating the gradient's product with it."""
        weight = self.weight.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.loss(weight), weight, create_graph=True)
        (found,) = torch.autograd.grad((gradient * direction.view_as(weight)).sum(), weight)
        return found.detach().flatten()

    def eigenvalues(self, steps: int, seed: int) -> Tensor:
        """Ascending approximations of the Hessian's eigenvalues, from a random start."""
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(self.weight.numel(), generator=generator, dtype=torch.float32)
        return ritz_values(self.product, start.to(self.weight), steps)


def summary(eigenvalues: Sequence[Tensor]) -> dict[str, list[float]]:
    """By name the value of every batch: largest, mean of the five largest, smallest."""
    return {
        "lambda_max": [float(values[-1]) for values in eigenvalues],
        "top5_mean": [float(values[-TOP:].mean()) for values in eigenvalues],
        "lambda_min": [float(values[0]) for values in eigenvalues],
    }
