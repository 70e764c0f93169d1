"""Split masters and 8-bit moments by themselves: bits, error bounds, and updates equal to those of torch's AdamW."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from src.engine import chunked_adamw
from src.engine.chunked_adamw import ChunkedAdamW
from src.engine.moments8 import (
    BLOCK,
    decoded_mean,
    decoded_square,
    encoded_mean,
    encoded_square,
    ratios,
)
from src.engine.split_master import joined, low_half, master_of, split_into, split_weights

SHAPES = ((70, 100), (5,), (3, 7, 11), (1,))


def halves(master: Tensor) -> tuple[Tensor, Tensor]:
    high, low = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    split_into(master.clone(), high, low)
    return high, low


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- split masters ----------------------------------------------------------------------------------------------------


def test_halves_join_to_every_bit_pattern() -> None:
    bits = torch.arange(-(2**31), 2**31, 9973).to(torch.int32)
    high, low = halves(bits.view(torch.float32))
    assert torch.equal(joined(high, low).view(torch.int32), bits)


def test_upper_half_is_the_weight_rounded_to_nearest_ties_away_from_zero() -> None:
    step = 2.0**-7  # distance of bfloat16 numbers from 1 on
    master = torch.tensor([1.0, 1 + 0.49 * step, 1 + 0.5 * step, 1 + 0.51 * step, -1 - 0.5 * step, -1 - 1.49 * step, 0])
    wanted = [1, 1, 1 + step, 1 + step, -1 - step, -1 - step, 0]
    high, low = halves(master)
    assert high.tolist() == wanted
    assert low.tolist()[::6] == [0, 0]
    many = torch.randn(10_000, generator=seeded(0))
    assert torch.equal(halves(many)[0], many.to(torch.bfloat16)), "as torch rounds, but for ties"


def grouped(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]


def optimizer(parameters: list[torch.nn.Parameter], *, int8: bool = False) -> ChunkedAdamW:
    return ChunkedAdamW(grouped(parameters), lr=1e-6, betas=(0.9, 0.95), eps=1e-8, int8=int8)


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    draw = seeded(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw) * 0.02) for shape in SHAPES]


def stepped(one: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], step: int, kind: torch.dtype) -> None:
    """A step whose gradients and rate are functions of its number; one parameter has no gradient now and then."""
    draw = seeded(100 + step)
    for place, parameter in enumerate(parameters):
        gradient = (torch.randn(parameter.shape, generator=draw) * 1e-3).to(kind)
        wanted = torch.float32 if parameter.dtype is torch.float32 else kind
        parameter.grad = None if place == 2 and step % 3 == 0 else gradient.to(wanted)
    for group in one.param_groups:
        group["lr"] = 1e-6 * (1 + step % 7)
    one.step()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [BLOCK, 2**22])
def test_masters_are_those_of_adamw_bit_for_bit(kind: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_adamw, "CHUNK", chunk)
    usual, own = weights(), weights()
    split_weights(own, kind)
    theirs = torch.optim.AdamW(grouped(usual), lr=1e-6, betas=(0.9, 0.95), eps=1e-8, fused=True)
    mine = optimizer(own)
    for step in range(40):
        stepped(theirs, usual, step, kind)
        stepped(mine, own, step, kind)
    for before, reference, parameter in zip(weights(), usual, own, strict=True):
        assert not torch.equal(before, reference)
        assert torch.equal(master_of(parameter), reference.detach())
        assert torch.equal(parameter.detach(), halves(reference.detach())[0])


def test_rounded_weights_alone_would_stand_still() -> None:
    """What the master is for: at these rates an update is below the distance of two bfloat16 numbers."""
    own = weights()
    split_weights(own, torch.float32)
    before, one = [parameter.detach().clone() for parameter in own], optimizer(own)
    for step in range(5):
        stepped(one, own, step, torch.float32)
    still = torch.cat([(a == b).view(-1) for a, b in zip(before, own, strict=True)]).double().mean()
    assert still > 0.75
    assert all(low_half(parameter).count_nonzero() for parameter in own)  # type: ignore[union-attr]


def test_gradients_accumulate_in_the_declared_type() -> None:
    """A thousandth added 300 times to 1: float32 sums it, bfloat16 loses all of it."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(1))
        split_weights([weight], kind)
        weight.sum().backward()
        for _ in range(300):
            (weight * 0.001).sum().backward()
        assert weight.grad is not None
        assert weight.grad.dtype is kind
        found[kind] = float(weight.grad)
    assert found[torch.float32] == pytest.approx(1.3, rel=1e-2)
    assert found[torch.bfloat16] == 1


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(int8: bool, split: bool) -> None:
    runs = []
    for stop in (None, 4):
        own = weights()
        if split:
            split_weights(own, torch.float32)
        one = optimizer(own, int8=int8)
        for step in range(8):
            if step == stop:
                state = copy.deepcopy(one.state_dict())
                one = optimizer(own, int8=int8)
                one.load_state_dict(state)
                kinds = {value.dtype for value in one.state[own[0]].values() if isinstance(value, Tensor)}
                assert kinds == ({torch.int8, torch.uint8, torch.float32} if int8 else {torch.float32})
            stepped(one, own, step, torch.float32)
        runs.append((own, one.state_dict()))
    (whole, state), (resumed, again) = runs
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert state["param_groups"] == again["param_groups"]
    for place, saved in state["state"].items():
        assert saved.keys() == again["state"][place].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(again["state"][place][k])) for k, v in saved.items())


# --- 8-bit moments ----------------------------------------------------------------------------------------------------


def test_mean_gradients_are_off_by_little_of_their_block() -> None:
    values = torch.randn(5000, generator=seeded(0)) * 10 ** torch.empty(5000).uniform_(-8, -2, generator=seeded(1))
    codes, scale = encoded_mean(values)
    found = decoded_mean(codes, scale)
    assert (codes.dtype, codes.numel(), scale.numel()) == (torch.int8, 5000, 20)
    off = (found - values).abs().view(-1)
    ratio = ratios(values)[0].view(-1)[:5000].abs()
    scales = scale.repeat_interleave(BLOCK)[:5000]
    # half the distance of two neighbouring cubes
    bound = 1.5 * (ratio ** (1 / 3) + 0.5 / 127) ** 2 / 127
    assert bool((off <= bound * scales * 1.001).all())
    assert float((off / scales).max()) > 0.005, "the bound is no empty one"


def test_mean_squares_are_right_on_average_and_never_lost() -> None:
    values = 10 ** torch.empty(3000).uniform_(-20, -12, generator=seeded(0))
    values[::7] = 0
    draws = seeded(2)
    found = torch.stack([decoded_square(*encoded_square(values, draws)) for _ in range(300)])
    positive = values > 0
    assert torch.equal(found > 0, positive.expand_as(found))
    share = found[:, positive] / values[positive]
    assert 0.91 < float(share.min()) < float(share.max()) < 1.1
    assert torch.allclose(share.mean(0), torch.ones(int(positive.sum())), atol=0.01)
    tiny = torch.tensor([1.0, 1e-30])
    assert decoded_square(*encoded_square(tiny, draws)).tolist() == pytest.approx([1, 2 ** (-254 / 8)])


def test_blocks_of_zeros_stay_zero() -> None:
    values = torch.zeros(BLOCK + 3)
    for codes, scale, decoded in (
        (*encoded_mean(values), decoded_mean),
        (*encoded_square(values, seeded(0)), decoded_square),
    ):
        assert not codes.count_nonzero()
        assert not scale.count_nonzero()
        assert torch.equal(decoded(codes, scale), values)


def test_a_mean_square_follows_gradients_whose_size_changes() -> None:
    """Rounded to nearest it would stand still, since a step moves it by a thousandth."""
    draw = seeded(0)
    codes, scale = torch.zeros(1024, dtype=torch.uint8), torch.zeros(4)
    exact = torch.zeros(1024)
    for step in range(1500):
        size = 1.0 if step < 300 else torch.where(torch.arange(1024) % 2 == 0, 0.1, 3.0)
        squared = (torch.randn(1024, generator=draw) * size).square() * 0.001
        exact = exact * 0.999 + squared
        codes, scale = encoded_square(decoded_square(codes, scale) * 0.999 + squared, seeded(step))
    off = (decoded_square(codes, scale) / exact).sqrt().log()
    assert float(off.abs().mean()) < 0.2
    assert abs(float(off[::2].mean())) < 0.1, "neither too large nor too small where gradients became small"


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_8_bit_moments_solve_a_quadratic_as_float32_does(split: bool) -> None:
    """Minimise Σ c_i (w_i − t_i)²/2 with noisy gradients, curvatures c over three decades."""
    losses = {}
    for int8 in (False, True):
        draw = seeded(0)
        curvature = 10 ** torch.empty(8192).uniform_(-3, 0, generator=draw)
        target, weight = torch.randn(8192, generator=draw), torch.nn.Parameter(torch.zeros(8192))
        if split:
            split_weights([weight], torch.float32)
        one = ChunkedAdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-8, int8=int8)
        for step in range(400):
            one.param_groups[0]["lr"] = 0.01 * (1 - step / 400)
            noise = torch.randn(8192, generator=draw) * curvature * 0.1
            weight.grad = curvature * (weight.detach().float() - target) + noise
            one.step()
        final = master_of(weight) if split else weight.detach()
        losses[int8] = float((curvature * (final - target).square()).sum() / (curvature * target.square()).sum())
    assert losses[False] < 0.06
    assert losses[True] == pytest.approx(losses[False], rel=0.1)
