"""What the scaling benchmark counts: collectives wherever they are called, intervals, rings, the longest rank."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.collectives import Counted, covered, moment, sent
from benchmarks.scaling_page import in_turns, pair_lengths, slowest


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone, which calls collectives all the same."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_collectives_are_counted_also_those_of_a_reducer() -> None:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(10, 10, bias=False))
    with Counted() as counted:
        model(torch.ones(1, 10)).sum().backward()
        dist.all_gather_single(torch.empty(2000), torch.empty(2000))
        dist.reduce_scatter_single(torch.empty(1000, dtype=torch.bfloat16), torch.empty(1000, dtype=torch.bfloat16))
    assert counted.calls == {"all-reduce": 1, "all-gather": 1, "reduce-scatter": 1}
    assert counted.whole == {"all-reduce": 400, "all-gather": 8000, "reduce-scatter": 2000}


@pytest.mark.parametrize(("kind", "of_whole"), [("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-reduce", 1.5)])
def test_what_a_ring_of_four_sends(kind: str, of_whole: float) -> None:
    assert sent(kind, 1000, 4) == 1000 * of_whole
    assert sent(kind, 1000, 1) == 0


def test_overlapping_intervals_count_once() -> None:
    assert covered([(5, 9), (0, 3), (2, 4), (6, 7)]) == 8
    assert covered([]) == 0


def test_sleeping_is_waiting_and_computing_is_not() -> None:
    before = moment()
    time.sleep(0.05)
    slept = moment().since(before)
    assert 0.04 < slept["waited"] <= slept["wall"]
    assert slept["cpu"] < 0.04


def test_dealing_by_length_evens_ranks_and_keeps_every_pair() -> None:
    lengths = pair_lengths((50, 8, 4))
    dealt = in_turns(np.sort(lengths.reshape(50, -1), axis=1)[:, ::-1], 8)
    np.testing.assert_allclose(dealt.sum((1, 2)), lengths.sum((1, 2)))
    assert 1 <= slowest(dealt) < 1.1 < slowest(lengths)
    assert slowest(np.array([[[1.0, 2.0], [3.0, 0.0]]])) == 1
