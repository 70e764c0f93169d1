"""From tokenized pairs to a batch.

``PairBatch`` says nothing of how tokens lie in memory: its ``layout`` is for ``model/logps.py`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from src.data.pairset import TokenizedPair
from src.objective.types import PairLogProbs


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; to a GPU by way of pinned memory, from where it is copied while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class PaddedLayout:
    """One row per response, right-padded: rows 0..n-1 are chosen, n..2n-1 rejected (absent for demonstrations).

    ``input_ids`` (int64) and ``supervised`` (bool): [rows, time]. A token is supervised by its position, never by its
    id, so a stop token that is also the padding token still counts. ``starts`` (int64, [rows]): where the response
    begins, so all before it is prompt. ``spans``: tokens of (prompt, response) of each row, known without asking the
    device. There is no attention mask: with causal attention no token sees the padding on its right.
    """

    input_ids: Tensor
    supervised: Tensor
    starts: Tensor
    spans: tuple[tuple[int, int], ...]

    def __getitem__(self, rows: Tensor) -> PaddedLayout:
        """The rows ``rows`` (int64), as wide as before."""
        spans = tuple(self.spans[row] for row in rows.tolist())
        return PaddedLayout(self.input_ids[rows], self.supervised[rows], self.starts[rows], spans)

    def to(self, device: torch.device) -> PaddedLayout:
        return PaddedLayout(
            sent(self.input_ids, device),
            sent(self.supervised, device),
            sent(self.starts, device),
            self.spans,
        )


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The pairs of one forward, with what else is known of each.

    ``flipped`` (bool), scores (float32) and the reference's log-probs are [n]; scores are ``None`` when any pair of
    the batch is unscored, ``reference`` unless it was looked up. ``tokens`` counts real tokens (no padding),
    ``chosen_tokens`` the supervised ones of the chosen responses, ``prompt_tokens`` those of the prompts that have a
    token before them, once per pair. ``mismatched``: these prompts with another pair's responses, where asked for.
    """

    layout: PaddedLayout
    ids: tuple[str, ...]
    has_rejected: bool
    flipped: Tensor
    chosen_scores: Tensor | None
    rejected_scores: Tensor | None
    reference: PairLogProbs | None
    tokens: int
    chosen_tokens: int
    prompt_tokens: int = 0
    mismatched: PairBatch | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> PairBatch:
        """Some of the pairs, in rows as wide as before."""
        chosen = torch.arange(len(self))[index]
        rows = torch.cat([chosen, chosen + len(self)]) if self.has_rejected else chosen
        layout = self.layout[rows]

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return PairBatch(
            layout=layout,
            ids=self.ids[index],
            has_rejected=self.has_rejected,
            flipped=self.flipped[index],
            chosen_scores=cut(self.chosen_scores),
            rejected_scores=cut(self.rejected_scores),
            reference=None if self.reference is None else self.reference[index],
            tokens=sum(map(sum, layout.spans)),
            chosen_tokens=sum(response for _, response in layout.spans[: len(chosen)]),
            prompt_tokens=sum(max(prompt - 1, 0) for prompt, _ in layout.spans[: len(chosen)]),
            mismatched=None if self.mismatched is None else self.mismatched[index],
        )

    def to(self, device: torch.device) -> PairBatch:
        """The batch with its tensors on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else sent(tensor, device)

        return replace(
            self,
            layout=self.layout.to(device),
            flipped=sent(self.flipped, device),
            chosen_scores=move(self.chosen_scores),
            rejected_scores=move(self.rejected_scores),
            reference=None if self.reference is None else self.reference.to(device),
            mismatched=None if self.mismatched is None else self.mismatched.to(device),
        )


def collate(pairs: Sequence[TokenizedPair], reference: PairLogProbs | None = None) -> PairBatch:
    """Lay out ``pairs`` for one forward; when none has a rejected response (demonstrations) only chosen rows exist."""
    has_rejected = all(pair.rejected_ids for pair in pairs)
    responses = [pair.chosen_ids for pair in pairs] + ([pair.rejected_ids for pair in pairs] if has_rejected else [])
    prompts = [pair.prompt_ids for pair in pairs] * (2 if has_rejected else 1)
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    starts = torch.tensor([len(prompt) for prompt in prompts])
    lengths = torch.tensor([len(row) for row in rows])
    columns = list(zip_longest(*rows, fillvalue=0))
    input_ids = torch.tensor(columns, dtype=torch.int64).T.contiguous()
    time = torch.arange(input_ids.shape[1])
    present = time < lengths[:, None]
    return PairBatch(
        layout=PaddedLayout(
            input_ids,
            present & (time >= starts[:, None]),
            starts,
            tuple((len(prompt), len(response)) for prompt, response in zip(prompts, responses, strict=True)),
        ),
        ids=tuple(pair.id for pair in pairs),
        has_rejected=has_rejected,
        flipped=torch.tensor([pair.flipped for pair in pairs]),
        chosen_scores=scores([pair.chosen_score for pair in pairs]),
        rejected_scores=scores([pair.rejected_score for pair in pairs]),
        reference=reference,
        tokens=int(lengths.sum()),
        chosen_tokens=sum(len(pair.chosen_ids) for pair in pairs),
        prompt_tokens=sum(max(len(pair.prompt_ids) - 1, 0) for pair in pairs),
    )


def scores(values: Sequence[float | None]) -> Tensor | None:
    """[n] float32, or ``None`` when any value is missing."""
    present = [value for value in values if value is not None]
    return torch.tensor(present, dtype=torch.float32) if len(present) == len(values) else None
