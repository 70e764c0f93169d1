"""Log-probs of all ranks' pairs on every rank, with the gradient of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.engine.ranks import Ranks


def gathered_rows(mine: Sequence[Tensor], pairs: int, ranks: Ranks) -> list[Tensor]:
    """The rows of all ``pairs`` pairs, [pairs, ...] each, from this rank's tensors [k, ...] by one collective.

    ``mine`` holds the rows of ``ranks.share(pairs)``, or of one stand-in where that is empty. Values are the same on
    every rank; only own rows carry gradient. A stand-in counts for nothing, but stays part of the graph, so that
    engines whose backward is collective find every rank in it.
    """
    own = ranks.share(pairs)
    each = -(-pairs // ranks.size)
    widths = [tensor[0].numel() for tensor in mine]
    packed = torch.cat([tensor.detach().reshape(len(tensor), -1) for tensor in mine], dim=1)[: len(own)]
    padded = torch.nn.functional.pad(packed, (0, 0, 0, each - len(own)))
    columns = torch.split(ranks.gathered(padded)[:pairs], widths, dim=1)
    found = []
    for tensor, column in zip(mine, columns, strict=True):
        everything = column.reshape(pairs, *tensor.shape[1:])
        if tensor.requires_grad:
            middle = tensor[: len(own)]
            everything = torch.cat([everything[: own.start], middle, everything[own.stop :]])
            if not own:
                everything = everything + 0.0 * tensor.sum()
        found.append(everything)
    return found
