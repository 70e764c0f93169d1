"""Forwards that may have only so many tokens: which pairs share one, over several ranks."""

from __future__ import annotations

from itertools import chain

import pytest

from src.config import compose_train
from src.data.sampler import WindowSampler
from src.errors import Problems, UserError
from src.training.assemble import build_objective, sampler_of
from src.training.checks import refuse_missing_attention
from src.training.needs import refuse_unmet_needs
from tests.support import SMALL_RUN

TOKENS = [30, 5, 60, 10, 10, 25, 40, 5, 80, 15, 20, 35]


def sampler(most: int | None, ranks: int = 1, micro: int = 12) -> WindowSampler:
    return WindowSampler(12, 12, micro, 3, ranks, most, TOKENS)


def test_forwards_have_as_many_pairs_as_fit_in_the_windows_order() -> None:
    whole = sampler(None).window(2)
    assert [len(forward) for forward in whole] == [12]
    cut = sampler(70).window(2)
    assert list(chain(*cut)) == whole[0], "the order is the window's, by which statistics are taken"
    sums = [sum(TOKENS[index] for index in forward) for forward in cut]
    assert all(total <= 70 or len(forward) == 1 for total, forward in zip(sums, cut, strict=True))
    for this, following in zip(sums, cut[1:], strict=False):
        assert this + TOKENS[following[0]] > 70, "another pair would not have fitted"
    assert max(sums) == 80, "a pair that is longer than the budget is a forward of its own"
    assert sampler(70).window(2) == cut


def test_micro_batch_size_is_still_the_most() -> None:
    assert max(len(forward) for forward in sampler(1000, micro=4).window(0)) == 4
    assert [len(forward) for forward in sampler(1, micro=4).window(0)] == [1] * 12


def test_every_rank_has_a_part_of_its_own_that_fits() -> None:
    forwards = sampler(70, ranks=3).window(0)
    assert list(chain(*forwards)) == sampler(None).window(0)[0]
    assert len(forwards) < 4, "more than one pair each"
    for forward in forwards:
        each = len(forward) // 3
        assert len(forward) == 3 * each, "no rank waits for the others"
        parts = [forward[rank * each : (rank + 1) * each] for rank in range(3)]
        assert all(sum(TOKENS[index] for index in part) <= 70 or len(part) == 1 for part in parts)


def test_the_key_reaches_the_sampler() -> None:
    config = compose_train([*SMALL_RUN, "method=simpo", "training.max_tokens_per_forward=70"])
    found = sampler_of(config, 12, ranks=2, lengths=TOKENS)
    assert (found.max_tokens, found.ranks) == (70, 2)
    assert found.micro_batch_size == 2 * config.training.micro_batch_size


def test_statistics_over_a_forward_are_refused() -> None:
    budget = "training.max_tokens_per_forward=70"
    config = compose_train([*SMALL_RUN, "method=amapo", "method.statistics=forward", budget])
    with pytest.raises(Problems, match=r"method\.statistics=forward.*leave it out, or set method\.statistics"):
        refuse_unmet_needs(config, build_objective(config))
    config = compose_train([*SMALL_RUN, "method=amapo", "method.statistics=window", budget])
    refuse_unmet_needs(config, build_objective(config))


def test_an_attention_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_missing_attention(compose_train([*SMALL_RUN]))
    with pytest.raises(UserError, match=r"needs the package flash_attn.*use model\.attention=sdpa"):
        refuse_missing_attention(compose_train([*SMALL_RUN, "model.attention=flash_attention_2"]))
