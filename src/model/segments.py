"""Attention over a row of packed pairs in which each prompt stands once: [prompt chosen rejected | prompt chosen …].

A pair is two segments. Queries of prompt and chosen see prompt and chosen; queries of the rejected response see the
prompt and the rejected response. In both, the last query sees the last key and each earlier one a key less. That is
attention of several lengths at once, for which there are three ways behind one function (``attend``):

* ``blocks``: scaled dot products segment by segment, short segments of alike length together; any device and type.
* ``varlen``: flash attention with separate boundaries of queries and keys; CUDA, bfloat16 or float16.
* ``flex``: FlexAttention with a block mask; CUDA, where scores are soft-capped.

Only ``varlen`` and ``blocks`` write the prompt's keys and values twice; no way computes anything of a prompt twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from src.data.collate import sent

Way = Literal["blocks", "varlen", "flex"]

SHORT = 128
"""Keys up to which segments share a block: below it the calls cost more than the padding (measured on a CPU)."""
WASTE = 1.5
"""How many times the scores of its segments a block of short ones may have."""


class Segment(NamedTuple):
    """Queries ``start``..``start + queries`` of the row; their keys are the ``shared`` tokens from ``prompt`` on (of a
    rejected response: its prompt), then the queries' own."""

    start: int
    queries: int
    prompt: int
    shared: int

    @property
    def keys(self) -> int:
        return self.shared + self.queries

    def key_places(self) -> Tensor:
        """Where the keys are in the row, [keys]."""
        own = torch.arange(self.start, self.start + self.queries)
        return torch.cat([torch.arange(self.prompt, self.prompt + self.shared), own]) if self.shared else own


@dataclass(frozen=True)
class Block:
    """Segments that are attended in one call, as ``rows`` rows of ``queries`` and ``keys`` places.

    ``offsets`` [rows]: how many keys each row's first query has before its own; ``None`` where that is 0 for all.
    """

    rows: int
    queries: int
    keys: int
    offsets: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Blocks, where in the row their queries and keys are taken from (``None``: as they stand), and from where in the
    blocks' results each token takes its own."""

    blocks: tuple[Block, ...]
    queries: Tensor | None
    keys: Tensor | None
    results: Tensor | None


class Boundaries(NamedTuple):
    """Segments as flash attention wants them: cumulative lengths (int32, [segments + 1]) and the longest of each."""

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    key_places: Tensor


class SharedPrefixes:
    """The segments of a packed row, and what each way of attention makes of them once for all layers.

    ``lengths``: tokens of (prompt, chosen, rejected) of each pair, in the row's order; rejected is 0 for a
    demonstration. ``way``: ``None`` chooses by device and type.
    """

    def __init__(
        self, lengths: Sequence[tuple[int, int, int]], device: torch.device | str = "cpu", way: Way | None = None
    ) -> None:
        self.lengths, self.device, self.way = tuple(lengths), torch.device(device), way
        self.tokens = sum(map(sum, self.lengths))
        self.segments = segments_of(self.lengths)
        self._masks: dict[Any, Any] = {}

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.segments, self.tokens, self.device)

    @cached_property
    def boundaries(self) -> Boundaries:
        queries, keys = ([0, *(getattr(one, name) for one in self.segments)] for name in ("queries", "keys"))

        def cumulative(lengths: list[int]) -> Tensor:
            return sent(torch.tensor(lengths).cumsum(0, dtype=torch.int32), self.device)

        places = sent(torch.cat([one.key_places() for one in self.segments]), self.device)
        return Boundaries(cumulative(queries), cumulative(keys), max(queries), max(keys), places)

    def mask(self, number: int, window: int | None) -> Tensor | None:
        """Which keys the queries of block ``number`` see, bool, [rows or 1, 1, queries, keys]; ``None``: all before
        and at their own place. ``window``: how many keys a query sees at most, its own among them."""
        block = self.plan.blocks[number]
        reaches = window is None or window >= block.keys
        if block.offsets is None and reaches:
            return None
        key = (number, None if reaches else window)
        if key not in self._masks:
            self._masks[key] = visible(block, None if reaches else window, self.device)
        return cast(Tensor, self._masks[key])

    def block_mask(self, window: int | None) -> BlockMask:
        """The same of the whole row, for FlexAttention."""
        if (key := ("flex", window)) not in self._masks:
            self._masks[key] = block_mask_of(self.lengths, window, self.device)
        return cast(BlockMask, self._masks[key])


def segments_of(lengths: Sequence[tuple[int, int, int]]) -> tuple[Segment, ...]:
    """Two segments per pair, in the row's order; those without queries are left out."""
    found, start = [], 0
    for prompt, chosen, rejected in lengths:
        after = start + prompt + chosen
        found += [Segment(start, prompt + chosen, start, 0), Segment(after, rejected, start, prompt)]
        start = after + rejected
    return tuple(one for one in found if one.queries)


def plan_of(segments: Sequence[Segment], tokens: int, device: torch.device) -> Plan:
    """Blocks of ``segments``: long ones alone and in place, short ones with those of alike length."""
    groups = grouped(segments)
    alone = all(len(group) == 1 for group in groups)
    if alone:
        groups = [[one] for one in segments]
    queries, keys, blocks, results, base = [], [], [], torch.zeros(tokens, dtype=torch.int64), 0
    for group in groups:
        wide, long = max(one.queries for one in group), max(one.keys for one in group)
        for one in group:
            own = torch.arange(one.start, one.start + one.queries)
            # what fills a row up is the row's first token: it is seen by no query whose result is read
            queries.append(torch.nn.functional.pad(own, (0, wide - one.queries)))
            keys.append(torch.nn.functional.pad(one.key_places(), (0, long - one.keys)))
            results[own] = torch.arange(base, base + one.queries)
            base += wide
        offsets = torch.tensor([one.shared for one in group]) if any(one.shared for one in group) else None
        blocks.append(Block(len(group), wide, long, None if offsets is None else sent(offsets, device)))
    shared = any(one.shared for one in segments)
    return Plan(
        tuple(blocks),
        None if alone else sent(torch.cat(queries), device),
        sent(torch.cat(keys), device) if shared or not alone else None,
        None if alone else sent(results, device),
    )


def grouped(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Which segments share a block. One that has keys before its own queries never shares with one that has none,
    which needs no mask."""
    groups: list[list[Segment]] = []
    real = 0
    for one in sorted(segments, key=lambda one: (one.shared > 0, one.keys, one.queries, one.start)):
        area = one.queries * one.keys
        if groups and one.keys <= SHORT and (one.shared > 0) == (groups[-1][0].shared > 0):
            wide = max(one.queries, *(other.queries for other in groups[-1]))
            if wide * one.keys * (len(groups[-1]) + 1) <= WASTE * (real + area):
                groups[-1].append(one)
                real += area
                continue
        groups.append([one])
        real = area
    return groups


def visible(block: Block, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query of ``block`` sees, bool, [rows or 1, 1, queries, keys]."""
    last = torch.arange(block.queries, device=device)[None, :, None]
    if block.offsets is not None:
        last = last + block.offsets[:, None, None]
    # beyond the end of a row there is still something to see: a softmax over nothing has no gradient but NaN
    last = last.clamp(max=block.keys - 1)
    keys = torch.arange(block.keys, device=device)
    seen = keys <= last
    return (seen if window is None else seen & (keys > last - window))[:, None]


def attend(
    prefixes: SharedPrefixes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
    plain: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Attention of the packed row: query [tokens, heads, width], key and value [tokens, key heads, width] → as query.

    ``window``: how many tokens of its own prompt and response a token sees at most, itself among them. ``softcap`` c
    makes scores s to c·tanh(s/c). ``plain``: a model's own attention, from query, key and value [rows, heads, places,
    width] and an additive mask to [rows, places, heads, width]; where given, blocks are attended by it.
    """
    way = prefixes.way or way_of(query.device, query.dtype, softcap)
    if way == "varlen":
        return by_varlen(prefixes, query, key, value, scale, window)
    if way == "flex":
        return by_flex(prefixes, query, key, value, scale, window, softcap)
    return by_blocks(prefixes, query, key, value, scale, window, plain)


def way_of(device: torch.device, dtype: torch.dtype, softcap: float | None) -> Way:
    """The quickest way that this device and type can go."""
    if device.type != "cuda":
        return "blocks"
    if softcap is not None:
        return "flex"
    return "varlen" if dtype in (torch.bfloat16, torch.float16) and varlen_ends_together() else "blocks"


def by_blocks(
    prefixes: SharedPrefixes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    plain: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """``attend`` block by block."""
    plan, found, start, stop = prefixes.plan, [], 0, 0
    queries, keys, values = taken(query, plan.queries), taken(key, plan.keys), taken(value, plan.keys)
    for number, block in enumerate(plan.blocks):
        end, last = start + block.rows * block.queries, stop + block.rows * block.keys
        q, k, v = (
            part.reshape(block.rows, -1, *part.shape[1:]).transpose(1, 2)
            for part in (queries[start:end], keys[stop:last], values[stop:last])
        )
        mask = prefixes.mask(number, window)
        if plain is None:
            mixed = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            ).transpose(1, 2)
        else:
            seen = visible(block, None, query.device) if mask is None else mask
            mixed = plain(q, k, v, torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min))
        found.append(mixed.flatten(0, 1))
        start, stop = end, last
    return taken(torch.cat(found), plan.results)


def taken(tokens: Tensor, places: Tensor | None) -> Tensor:
    """The rows ``places`` of ``tokens``, or all as they stand."""
    return tokens if places is None else tokens.index_select(0, places)


def by_varlen(
    prefixes: SharedPrefixes, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """``attend`` by flash attention, in which queries and keys of a segment end together."""
    # imported where it is used: it takes seconds
    from torch.nn.attention.varlen import varlen_attn

    ends = prefixes.boundaries
    mixed: Any = varlen_attn(
        query.contiguous(),
        key.index_select(0, ends.key_places),
        value.index_select(0, ends.key_places),
        ends.queries,
        ends.keys,
        ends.longest_queries,
        ends.longest_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, mixed)


@lru_cache(maxsize=1)
def varlen_ends_together() -> bool:
    """Whether flash attention here lets the last query see the last key where there are fewer queries than keys.

    Its documentation does not say, and older kernels began together instead; so it is tried once.
    """
    query, key, value = (torch.randn(5, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    prefixes = SharedPrefixes([(3, 0, 2)], "cuda")
    try:
        found = by_varlen(prefixes, query, key, value, None, None)
    except (RuntimeError, ValueError):
        return False
    expected = by_blocks(prefixes, query, key, value, None, None, None)
    return bool(torch.allclose(found, expected, atol=0.05))


def by_flex(
    prefixes: SharedPrefixes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """``attend`` by FlexAttention."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    mixed = flexible(query.device.type)(
        *(part.transpose(0, 1)[None] for part in (query, key, value)),
        score_mod=None if softcap is None else capped,
        block_mask=prefixes.block_mask(window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, mixed)[0].transpose(0, 1)


@lru_cache(maxsize=2)
def flexible(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled where it would otherwise make all scores at once."""
    whole: Callable[..., Any] = flex_attention
    return torch.compile(whole, dynamic=True) if device == "cuda" else whole


def block_mask_of(lengths: Sequence[tuple[int, int, int]], window: int | None, device: torch.device) -> BlockMask:
    """Who sees whom in the packed row, in blocks."""
    pairs, parts, positions = (column.to(device) for column in token_columns(lengths))

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        together = (pairs[query] == pairs[key]) & ((parts[key] == 0) | (parts[query] == parts[key]))
        found = together & (query >= key)
        return found if window is None else found & (positions[query] - positions[key] < window)

    return create_block_mask(sees, None, None, len(pairs), len(pairs), device=device)


def token_columns(lengths: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of the packed row, int64, [tokens]: its pair, its part (0 prompt, 1 chosen, 2 rejected), and its
    position, which both responses count from their prompt's end."""
    counts = torch.tensor(lengths, dtype=torch.int64).reshape(-1, 3)
    flat = counts.flatten()
    places = torch.arange(int(flat.sum())) - torch.repeat_interleave(flat.cumsum(0) - flat, flat)
    before = torch.stack([torch.zeros_like(counts[:, 0]), counts[:, 0], counts[:, 0]], 1).flatten()
    pairs = torch.arange(len(lengths)).repeat_interleave(counts.sum(1))
    parts = torch.arange(3).repeat(len(lengths)).repeat_interleave(flat)
    return pairs, parts, places + torch.repeat_interleave(before, flat)
