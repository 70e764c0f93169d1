"""Drawing tokens: the noise is what it should be, belongs to its sequence alone, and draws from the distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.generation.base import Request
from src.generation.sampling import GOLDEN, gumbel, mixed, next_tokens, only_nucleus, only_top

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def keys(count: int) -> Tensor:
    return torch.tensor([Request(f"p{number}", (), 0, 7, 1.0).key for number in range(count)])


def shares(temperature: float = 1.0, rows: int = 20_000, **options: float) -> Tensor:
    """How often each token is drawn for ``LOGITS``, over sequences and steps."""
    drawn = [
        next_tokens(
            LOGITS.expand(rows // 4, -1), torch.full((rows // 4,), temperature), keys(rows // 4), step, **options
        )  # type: ignore[arg-type]
        for step in range(4)
    ]
    return torch.bincount(torch.cat(drawn), minlength=len(LOGITS)).double() / rows


def chi_square(observed: Tensor, expected: Tensor, rows: int = 20_000) -> float:
    kept = expected > 0
    assert float(observed[~kept].sum()) == 0
    return float((rows * (observed - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    expected = (LOGITS.double() / temperature).softmax(-1)
    assert chi_square(shares(temperature), expected) < 20.5  # 5 degrees of freedom: exceeded once in a thousand
    assert chi_square(shares(temperature), LOGITS.double().softmax(-1)) > 1000 or temperature == 1.0


@pytest.mark.parametrize(
    ("options", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"top_p": 0.55}, 1), ({"top_p": 0.9, "top_k": 2}, 2)]
)
def test_what_is_cut_off_is_never_drawn_and_the_rest_keeps_its_odds(options: dict[str, float], kept: int) -> None:
    """Softmax of LOGITS: 0.56, 0.21, 0.13, 0.08, 0.03, 0.004; the two first alone: 0.73, 0.27."""
    expected = LOGITS.double().softmax(-1)
    expected[kept:] = 0
    assert chi_square(shares(**options), expected / expected.sum()) < 13.9 or kept == 1
    assert int((shares(**options) > 0).sum()) == kept


def test_the_nucleus_holds_the_token_that_crosses_and_needs_no_order() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    for top_p, kept in ((0.5, {1}), (0.51, {1, 3}), (0.76, {1, 2, 3}), (0.999, {0, 1, 2, 3}), (1e-9, {1})):
        assert set(only_nucleus(logits, top_p).isfinite().nonzero()[:, 1].tolist()) == kept
    assert only_nucleus(logits, 1.0) is logits
    assert set(only_top(logits, 2).isfinite().nonzero()[:, 1].tolist()) == {1, 3}
    assert only_top(logits, 9) is logits


def test_temperature_zero_is_greedy_beside_rows_that_draw() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.99], [0.0, 1.0, 0.99]])
    mixed_rows = [next_tokens(logits, torch.tensor([0.0, 5.0]), keys(2), step).tolist() for step in range(60)]
    assert {row[0] for row in mixed_rows} == {1}
    assert {row[1] for row in mixed_rows} == {0, 1, 2}
    assert next_tokens(logits, torch.zeros(2), keys(2), 0).tolist() == [1, 1]


def test_a_very_low_temperature_is_the_greedy_limit() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.99]]).expand(50, -1)
    assert next_tokens(logits, torch.full((50,), 1e-300), keys(50), 0).tolist() == [1] * 50


def test_the_mixer_is_splitmix64() -> None:
    """First outputs of the published generator for seed 0."""
    outputs = mixed(torch.arange(1, 4) * GOLDEN)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % (1 << 64) for value in outputs.tolist()] == published


def test_noise_belongs_to_key_and_step_alone() -> None:
    many = keys(5)
    noise = gumbel(many, 3, 100)
    assert torch.equal(gumbel(many[[4, 1]], 3, 100), noise[[4, 1]])
    assert torch.equal(gumbel(many, 3, 60), noise[:, :60])
    for other in (gumbel(many, 4, 100), gumbel(many + 1, 3, 100)):
        assert not (other == noise).any()


def test_noise_is_standard_gumbel_and_uncorrelated() -> None:
    noise = gumbel(keys(200), 0, 1000)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert bool(noise.isfinite().all())
    neighbours = torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()])
    steps = torch.stack([noise.flatten(), gumbel(keys(200), 1, 1000).flatten()])
    for pair in (neighbours, steps):
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.01


def test_every_part_of_a_request_changes_its_stream() -> None:
    base = Request("p1", (), 0, 13, 0.8)
    others = [Request("p2", (), 0, 13, 0.8), Request("p1", (), 1, 13, 0.8), Request("p1", (), 0, 21, 0.8)]
    assert len({base.key, *(other.key for other in others)}) == 4
    assert Request("p1", (), 0, 13, 0.1).key == base.key
    assert all(-(1 << 63) <= request.key < 1 << 63 for request in (base, *others))
