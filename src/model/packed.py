"""Where a batch's tokens go in a forward, and which hidden states predict its supervised tokens.

Two ways, which give the same numbers: ``padded``, a row per response as the batch holds them, and ``packed``, one row
in which every pair is [prompt chosen rejected], without padding and with each prompt once (``src/model/segments.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.data.collate import PairBatch, sent
from src.model.segments import SharedPrefixes, Way, attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN = ("llama", "mistral", "gemma2", "qwen2", "gpt_neox", "gemma", "gemma3_text", "olmo2", "phi3", "qwen3")
"""Architectures whose packed rows were compared with padded ones (tests/parity/test_packed.py): their attention looks
at queries, keys, positions, window and soft cap alone, and passes on what it does not know."""

SHARED = "shared_prefix_over_"
"""Names of our attention among those of transformers, before the name of the one that it stands in for."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Hidden states ``hidden`` [m, width] that predict the tokens ``labels`` [m].

    ``owner`` [m]: of n pairs, i for the chosen response of pair i, n + i for its rejected one, 2n + i for its prompt.
    ``column`` [m]: the token's place in its padded row. ``counts`` [3n]: how many tokens each owner has (float32).
    """

    hidden: Tensor
    labels: Tensor
    owner: Tensor
    column: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Indices that lay out one forward; ``source``, ``labels``: into the flattened padded rows.

    ``source``: token by token what the packed row holds, [tokens]; ``predictors`` [m]: into the packed row, or into the
    flattened padded rows. ``owner``, ``counts``: as in ``Predictions``.
    """

    source: Tensor
    predictors: Tensor
    labels: Tensor
    owner: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> Places:
        names = ("source", "predictors", "labels", "owner", "counts")
        return Places(*(sent(getattr(self, name), device) for name in names))


def predictions(
    model: PreTrainedModel, batch: PairBatch, *, prompt: bool, packed: bool, way: Way | None = None
) -> Predictions:
    """The backbone's forward of ``batch``, with gradient. ``prompt``: also what predicts the prompts' own tokens but
    the first, which nothing precedes; a response after an empty prompt lacks its first token for the same reason.
    ``way``: of attention, where rows are packed (``src/model/segments.py``)."""
    ids = batch.layout.input_ids
    lengths = lengths_of(batch)
    places = places_of(lengths, ids.shape[1], prompt=prompt, packed=packed).to(ids.device)
    flat = ids.flatten()
    if packed:
        prefixes = SharedPrefixes(lengths, ids.device, way)
        hidden = packed_hidden(model, flat[places.source], places.source % ids.shape[1], prefixes)
    else:
        hidden = model.base_model(input_ids=ids, use_cache=False)[0].flatten(0, 1)
    return Predictions(
        hidden.index_select(0, places.predictors),
        flat[places.labels],
        places.owner,
        places.labels % ids.shape[1],
        places.counts,
    )


def packed_hidden(model: PreTrainedModel, ids: Tensor, positions: Tensor, prefixes: SharedPrefixes) -> Tensor:
    """Hidden states of a packed row, [tokens, width]."""
    # a mask of four dimensions is passed on as it is, so that transformers makes none of its own; ours is not read
    unread = torch.zeros(1, 1, 1, 1, device=ids.device)
    found: Any = model.base_model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=unread,
        use_cache=False,
        shared_prefixes=prefixes,
    )
    hidden: Tensor = found[0][0]
    return hidden


def lengths_of(batch: PairBatch) -> list[tuple[int, int, int]]:
    """Tokens of (prompt, chosen, rejected) of each pair; rejected is 0 for demonstrations."""
    spans, pairs = batch.layout.spans, len(batch)
    rejected = [response for _, response in spans[pairs:]] if batch.has_rejected else [0] * pairs
    return [(prompt, chosen, last) for (prompt, chosen), last in zip(spans[:pairs], rejected, strict=True)]


def places_of(lengths: Sequence[tuple[int, int, int]], time: int, *, prompt: bool, packed: bool) -> Places:
    """Indices for a batch whose padded rows have ``time`` places."""
    pairs = len(lengths)
    starts = list(accumulate((sum(one) for one in lengths), initial=0))
    source, predictors, labels, owner = [], [], [], []
    for number, (first, chosen, rejected) in enumerate(lengths):
        start, row, other = starts[number], number * time, (pairs + number) * time
        source += [torch.arange(row, row + first + chosen), torch.arange(other + first, other + first + rejected)]
        # of each kind: owner, row, first and last column, and where column 0 would stand in the packed row
        kinds = [
            (number, row, first, first + chosen, start),
            (pairs + number, other, first, first + rejected, start + chosen),
        ]
        if prompt:
            kinds.append((2 * pairs + number, row, 0, first, start))
        for kind, base, begin, end, zero in kinds:
            columns = torch.arange(min(max(begin, 1), end), end)
            before = columns - 1 + (zero if packed else base)
            if packed and kind >= pairs and kind < 2 * pairs and first:
                # the last token of the prompt predicts the first one of both responses
                before[:1] = start + first - 1
            predictors.append(before)
            labels.append(columns + base)
            owner.append(torch.full_like(columns, kind))
    owners = torch.cat(owner)
    counts = torch.bincount(owners, minlength=3 * pairs).float()
    return Places(torch.cat(source), torch.cat(predictors), torch.cat(labels), owners, counts)


def share_prefixes(model: PreTrainedModel) -> bool:
    """Let ``model`` take packed rows from now on; whatever else calls it sees no difference.

    Says once on standard error where its architecture is not among those of which that is known, and is then padded.
    """
    whole: Any = model
    kind = model.config.model_type
    if kind not in KNOWN or not whole._supports_attention_backend:
        say_once(
            f"model.layout=prefix: {kind} is none of the architectures that take packed rows ({', '.join(KNOWN)}); "
            "its batches are padded, which gives the same numbers more slowly"
        )
        return False
    if not shares_prefixes(model):
        model.config._attn_implementation = registered(str(model.config._attn_implementation))
    return True


def shares_prefixes(model: PreTrainedModel) -> bool:
    """Whether ``model`` takes packed rows."""
    return str(getattr(model.config, "_attn_implementation", None)).startswith(SHARED)


SAID: set[str] = set()


def say_once(text: str) -> None:
    """Print ``text`` to standard error unless this process has."""
    if text not in SAID:
        SAID.add(text)
        print(text, file=sys.stderr, flush=True)


def registered(base: str) -> str:
    """The name of our attention standing in for ``base``, known to transformers with the masks of ``base``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = SHARED + base
    AttentionInterface.register(name, attention_over(base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def attention_over(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Attention of a transformers model: of a packed row where the forward was given one, else ``base``.

    It stays in place between forwards: a checkpointed layer is run again in the backward pass, and must find it there.
    """

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        prefixes: SharedPrefixes | None = options.pop("shared_prefixes", None)
        if prefixes is None:
            found: tuple[Tensor, Tensor | None] = own_attention(module, base)(
                module, query, key, value, attention_mask, **options
            )
            return found
        softcap, scale = options.get("softcap"), options.get("scaling")
        # autocast reaches scaled dot products but no kernel of ours: rotated queries come in float32, values do not
        kind = query.device.type
        cast = torch.is_autocast_enabled(kind) and query.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if cast else query.dtype
        parts = [part[0].transpose(0, 1).to(dtype) for part in (query, key, value)]

        def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            mixed: Tensor = own_attention(module, "eager")(module, q, k, v, mask, **options)[0]
            return mixed

        mixed = attend(
            prefixes,
            *parts,
            scale=scale,
            window=options.get("sliding_window"),
            softcap=softcap,
            plain=plain if softcap is not None or base == "eager" else None,
        )
        return mixed[None], None

    return attention


def own_attention(module: torch.nn.Module, base: str) -> Callable[..., Any]:
    """What transformers would call for ``base``: a function of all models, or for ``eager`` that of the model's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base != "eager":
        shared: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[base]
        return shared
    homes = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    own: Callable[..., Any] = next(
        home.eager_attention_forward for home in homes if hasattr(home, "eager_attention_forward")
    )
    return own
