"""ArmoRM's kind of reward model (Wang et al. 2024, arXiv 2406.12845), read without the code that is published with it,
which current versions of transformers cannot import.

Beside a Llama body, ``regression_layer`` gives K rewards from the last token, ``reward_transform_matrix`` takes the
liking for length out of them, and ``gating`` weighs them by what the body makes of the prompt:

    score = Σ_k g_k · (W h_last M)_k,   g = s · softmax(MLP(h_prompt) / T)

h_prompt is the hidden state at the first token of the last assistant header: it has seen the prompt and no response.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, LlamaPreTrainedModel

from src.errors import UserError

ARCHITECTURE = "LlamaForRewardModelWithGating"
"""The name that ``config.json`` of such a model gives."""

HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
"""What Llama 3's template writes before a response."""


@dataclass
class GatedOutput:
    """``score``: [rows]."""

    score: Tensor


class Gating(nn.Module):
    """Weights of the K rewards from the prompt's hidden state."""

    def __init__(self, width: int, hidden: int, layers: int, rewards: int, temperature: float) -> None:
        super().__init__()
        widths = [width, *[hidden] * layers, rewards]
        self.layers = nn.ModuleList(nn.Linear(one, next_one) for one, next_one in pairwise(widths))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, width] to [rows, K]."""
        for place, layer in enumerate(self.layers):
            hidden = layer(hidden.relu() if place else hidden)
        weights: Tensor = (hidden / self.temperature).softmax(-1) * self.logit_scale
        return weights


class GatedRewardModel(LlamaPreTrainedModel):  # type: ignore[no-untyped-call]
    """A body, K rewards and the gate between them; called like a classifier of transformers."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        rewards = int(getattr(config, "num_objectives", 19))
        self.model: Any = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, rewards, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(rewards), requires_grad=False)
        self.gating = Gating(
            config.hidden_size,
            int(getattr(config, "gating_hidden_dim", 1024)),
            int(getattr(config, "gating_n_hidden", 3)),
            rewards,
            float(getattr(config, "gating_temperature", 10)),
        )
        self.header: list[int] = []
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> GatedOutput:
        """Token ids [rows, time], padded on the right, and their mask; needs ``header``, the ids of ``HEADER``."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        starts = torch.tensor([last_place(ids, self.header) for ids in input_ids.tolist()], device=input_ids.device)
        gate = self.gating(hidden[rows, starts])
        rewards = self.regression_layer(hidden[rows, attention_mask.sum(1) - 1]) @ self.reward_transform_matrix
        return GatedOutput((gate * rewards).sum(1))


def last_place(ids: list[int], pattern: list[int]) -> int:
    """Where ``pattern`` begins for the last time; raises ``UserError`` when it does not occur."""
    for start in range(len(ids) - len(pattern), -1, -1):
        if ids[start : start + len(pattern)] == pattern:
            return start
    raise UserError(
        f"a conversation holds no {HEADER!r}, before which the gate of {ARCHITECTURE} reads; leave scorer.template at "
        "null (the model's own), or write llama3"
    )
