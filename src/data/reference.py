"""The reference's log-probs of every prepared pair, computed once and found again by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.objective.types import PairLogProbs, ResponseLogProbs


def reference_key(manifest_hash: str, split: str, weights_hash: str, dtype: str) -> str:
    """Name of a store: changes with the prepared data (and so with template, span and lengths), weights and dtype."""
    text = json.dumps([manifest_hash, split, weights_hash, dtype])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, types, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceStore:
    """Log-probs of the pairs of one split, in the order of the prepared set."""

    log_probs: PairLogProbs

    def rows(self, indices: Sequence[int]) -> PairLogProbs:
        """Those of the pairs at ``indices``."""
        index = torch.tensor(indices)

        def pick(side: ResponseLogProbs) -> ResponseLogProbs:
            return ResponseLogProbs(side.summed[index], side.tokens[index])

        return PairLogProbs(pick(self.log_probs.chosen), pick(self.log_probs.rejected))

    def save(self, path: Path) -> None:
        """Write aside, then rename, so that a file of this name is always whole."""
        chosen, rejected = self.log_probs.chosen, self.log_probs.rejected
        tensors = {
            "chosen_summed": chosen.summed,
            "chosen_tokens": chosen.tokens,
            "rejected_summed": rejected.summed,
            "rejected_tokens": rejected.tokens,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, aside)
        os.replace(aside, path)

    @classmethod
    def load(cls, path: Path) -> ReferenceStore:
        """Read what ``save`` wrote."""
        tensors = load_file(path)
        return cls(
            PairLogProbs(
                ResponseLogProbs(tensors["chosen_summed"], tensors["chosen_tokens"]),
                ResponseLogProbs(tensors["rejected_summed"], tensors["rejected_tokens"]),
            )
        )
