"""Attention of packed rows against attention of each prompt with each response on its own."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.model import segments
from src.model.segments import SharedPrefixes, Way, attend, token_columns

Lengths = list[tuple[int, int, int]]

MIXED: Lengths = [(5, 7, 3), (0, 4, 2), (1, 1, 1), (12, 3, 150), (2, 6, 0), (140, 9, 11), (3, 0, 4)]
"""No prompt, one token, a demonstration, an empty chosen response, and both sides of what shares a block."""
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def parts_of(lengths: Lengths, dtype: torch.dtype = torch.float64, device: str = "cpu", width: int = WIDTH) -> Any:
    draw = torch.Generator().manual_seed(len(lengths))
    tokens = sum(map(sum, lengths))
    return [
        torch.randn(tokens, heads, width, generator=draw, dtype=torch.float64).to(device, dtype).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def one_by_one(
    lengths: Lengths, parts: Any, scale: float, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """Each sequence's attention alone, of which the prompt's part is taken from the first."""
    query, key, value = parts
    found, start = [], 0
    for prompt, chosen, rejected in lengths:
        first, after = list(range(start, start + prompt)), start + prompt + chosen
        for response, kept in ((range(start + prompt, after), 0), (range(after, after + rejected), prompt)):
            places = first + list(response)
            behind = torch.arange(len(places))[:, None] - torch.arange(len(places))
            seen = (behind >= 0) & (behind < (window or len(places)))
            keys, values = (part[places].repeat_interleave(HEADS // KEY_HEADS, 1) for part in (key, value))
            scores = torch.einsum("qhw,khw->hqk", query[places], keys) * scale
            scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
            mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            found.append(torch.einsum("hqk,khw->qhw", mixed, values)[kept:])
        start = after + rejected
    return torch.cat(found)


def compare(found: Tensor, expected: Tensor, parts: Any, atol: float) -> None:
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert (found - expected).abs().max() < atol
    for mine, theirs in zip(
        torch.autograd.grad((found.double() * weights.to(found.device)).sum(), parts),
        torch.autograd.grad((expected * weights).sum(), parts),
        strict=True,
    ):
        assert (mine - theirs).abs().max() < 10 * atol


@pytest.mark.parametrize("window", [None, 1, 4, 145])
def test_blocks_are_each_sequence_alone(window: int | None) -> None:
    parts = parts_of(MIXED)
    expected = one_by_one(MIXED, parts, 0.3, window)
    compare(attend(SharedPrefixes(MIXED), *parts, scale=0.3, window=window), expected, parts, 1e-12)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5),
    st.sampled_from([None, 2, 3]),
)
def test_blocks_of_any_lengths(lengths: Lengths, window: int | None) -> None:
    if sum(map(sum, lengths)):
        parts = parts_of(lengths)
        expected = one_by_one(lengths, parts, 0.5, window)
        compare(attend(SharedPrefixes(lengths), *parts, scale=0.5, window=window), expected, parts, 1e-12)


def test_a_models_own_attention_is_given_the_same_blocks() -> None:
    def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        keys, values = (part.repeat_interleave(HEADS // KEY_HEADS, 1) for part in (key, value))
        scores = torch.tanh(query @ keys.transpose(-1, -2) * 0.7 / 0.9) * 0.9
        return ((scores + mask).softmax(-1) @ values).transpose(1, 2)

    parts = parts_of(MIXED)
    for window in (None, 4):
        expected = one_by_one(MIXED, parts, 0.7, window, softcap=0.9)
        prefixes = SharedPrefixes(MIXED)
        compare(attend(prefixes, *parts, scale=0.7, window=window, plain=plain), expected, parts, 1e-12)


def test_long_segments_stand_where_they_are_and_short_ones_share() -> None:
    long = SharedPrefixes([(200, 50, 60), (150, 80, 90)]).plan
    assert [(block.rows, block.queries, block.keys) for block in long.blocks] == [
        (1, 250, 250),
        (1, 60, 260),
        (1, 230, 230),
        (1, 90, 240),
    ]
    assert long.queries is None, "nothing is copied but the keys, in which each prompt stands twice"
    assert long.keys is not None
    assert len(long.keys) == 250 + 260 + 230 + 240
    short = SharedPrefixes([(20, 10, 9)] * 6).plan
    assert [(block.rows, block.queries, block.keys) for block in short.blocks] == [(6, 30, 30), (6, 9, 29)]
    uneven = SharedPrefixes([(2, 3, 0), (40, 50, 0)]).plan
    assert len(uneven.blocks) == 2, "a short row beside a long one would be padding"


def test_demonstrations_need_no_copy_at_all() -> None:
    plan = SharedPrefixes([(200, 50, 0), (150, 80, 0)]).plan
    assert (plan.queries, plan.keys, plan.results) == (None, None, None)


def test_masks_are_made_once_for_all_layers() -> None:
    prefixes = SharedPrefixes([(200, 50, 60)])
    assert prefixes.mask(0, None) is None
    assert prefixes.mask(0, 250) is None, "a window as long as the row hides nothing"
    assert prefixes.mask(1, None) is prefixes.mask(1, 1000)
    assert prefixes.mask(0, 249) is prefixes.mask(0, 249)
    assert prefixes.mask(0, 249) is not prefixes.mask(0, 248)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_sees_the_same() -> None:
    """Forward alone: on a CPU FlexAttention has no backward."""
    window, softcap = 3, 0.8
    lengths: Lengths = [(5, 7, 3), (0, 4, 2), (1, 1, 1), (2, 6, 0), (30, 9, 11)]
    parts = [part.detach().float() for part in parts_of(lengths)]
    found = attend(SharedPrefixes(lengths, way="flex"), *parts, scale=0.3, window=window, softcap=softcap)
    assert (found - one_by_one(lengths, parts, 0.3, window, softcap)).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 4])
def test_varlen_is_given_the_segments(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in that does what flash attention says it does: queries and keys of a segment end together."""

    def stand_in(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        of_queries, of_keys, longest_queries, longest_keys = rest
        assert of_queries.dtype == of_keys.dtype == torch.int32
        assert longest_queries == max(b - a for a, b in pairwise(of_queries.tolist()))
        assert longest_keys == max(b - a for a, b in pairwise(of_keys.tolist()))
        assert options["enable_gqa"]
        left, right = options["window_size"]
        assert right == 0
        found = []
        for (a, b), (c, d) in zip(pairwise(of_queries.tolist()), pairwise(of_keys.tolist()), strict=True):
            gap = torch.arange(b - a)[:, None] + (d - c) - (b - a) - torch.arange(d - c)
            seen = (gap >= 0) & (gap <= left if left >= 0 else gap >= 0)
            keys, values = (part[c:d].repeat_interleave(HEADS // KEY_HEADS, 1) for part in (key, value))
            scores = torch.einsum("qhw,khw->hqk", query[a:b], keys) * options["scale"]
            found.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
        return torch.cat(found)

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=stand_in))
    parts = parts_of(MIXED)
    expected = one_by_one(MIXED, parts, 0.3, window)
    compare(attend(SharedPrefixes(MIXED, way="varlen"), *parts, scale=0.3, window=window), expected, parts, 1e-12)


def test_the_way_is_chosen_by_device_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(segments, "varlen_ends_together", lambda: True)
    assert segments.way_of(cpu, torch.bfloat16, None) == segments.way_of(cpu, torch.float32, 50.0) == "blocks"
    assert segments.way_of(cuda, torch.bfloat16, None) == "varlen"
    assert segments.way_of(cuda, torch.float32, None) == "blocks"
    assert segments.way_of(cuda, torch.bfloat16, 50.0) == "flex"
    monkeypatch.setattr(segments, "varlen_ends_together", lambda: False)
    assert segments.way_of(cuda, torch.bfloat16, None) == "blocks"


def test_both_responses_count_from_their_prompts_end() -> None:
    pairs, parts, positions = token_columns([(2, 2, 3), (0, 1, 2)])
    assert pairs.tolist() == [0] * 7 + [1] * 3
    assert parts.tolist() == [0, 0, 1, 1, 2, 2, 2, 1, 2, 2]
    assert positions.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; its ways have their CPU tests above")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("way", ["blocks", "varlen", "flex"])
def test_ways_on_a_gpu(way: Way, window: int | None) -> None:
    parts = parts_of(MIXED, torch.bfloat16, width=64)
    moved = [part.detach().cuda().requires_grad_() for part in parts]
    exact = [part.detach().double().requires_grad_() for part in parts]
    found = attend(SharedPrefixes(MIXED, "cuda", way), *moved, scale=0.1, window=window)
    expected = one_by_one(MIXED, exact, 0.1, window)
    assert (found.cpu() - expected).abs().max() < 2e-2
    assert segments.varlen_ends_together()
    for mine, theirs in zip(
        torch.autograd.grad(found.float().square().sum(), moved),
        torch.autograd.grad(expected.square().sum(), exact),
        strict=True,
    ):
        assert (mine.cpu() - theirs).norm() < 2e-2 * theirs.norm()


def test_what_fills_a_row_up_still_sees_something() -> None:
    """A softmax over nothing is NaN on some devices, and so is its gradient, though nobody reads its result."""
    prefixes = SharedPrefixes([(2, 1, 6), (6, 1, 3)])
    block = prefixes.plan.blocks[-1]
    assert (block.rows, block.queries, block.keys) == (2, 6, 9)
    mask = prefixes.mask(len(prefixes.plan.blocks) - 1, 2)
    assert mask is not None
    assert mask.any(-1).all()
