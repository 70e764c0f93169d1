"""Split by prompt and label noise: functions of prompt or id alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.noise import Noise, NoNoise, RandomFlip, flip
from src.data.pairs import Message, prompt_hash
from src.data.splits import TRAIN, VALIDATION, split_of, uniform
from src.errors import UserError
from tests.unit.data_tools import pair

TEXT = st.text(max_size=20)
PAIRS = [pair(number) for number in range(2000)]


@given(TEXT, TEXT, st.floats(0, 0.99), st.floats(0, 0.99), st.integers())
def test_a_larger_fraction_holds_out_more(system: str, user: str, one: float, two: float, seed: int) -> None:
    prompt = (Message("system", system), Message("user", user))
    small, large = sorted((one, two))
    if split_of(prompt, small, seed) == VALIDATION:
        assert split_of(prompt, large, seed) == VALIDATION


def test_split_is_by_prompt_and_of_the_asked_size() -> None:
    prompts = [(Message("user", f"prompt {number}"),) for number in range(4000)]
    held_out = [split_of(prompt, 0.1, 0) == VALIDATION for prompt in prompts]
    assert 0.08 < sum(held_out) / len(prompts) < 0.12
    assert held_out != [split_of(prompt, 0.1, 1) == VALIDATION for prompt in prompts]
    assert {split_of(prompt, 0.0, 0) for prompt in prompts} == {TRAIN}


def test_split_is_the_documented_hash() -> None:
    """Written out again: this must never change silently, or yesterday's training prompts are tested on today."""
    prompt = (Message("user", "hello"),)
    number = hashlib.sha256(f"3\nsplit:{prompt_hash(prompt)}".encode()).digest()[:8]
    share = int.from_bytes(number, "big") / 2**64
    assert split_of(prompt, share + 1e-9, 3) == VALIDATION
    assert split_of(prompt, share - 1e-9, 3) == TRAIN


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_cannot_be(fraction: float) -> None:
    with pytest.raises(UserError, match=r"dataset\.validation_fraction"):
        split_of((Message("user", "x"),), fraction, 0)


@given(st.integers(), TEXT)
def test_uniform_is_in_the_unit_interval(seed: int, key: str) -> None:
    assert 0 <= uniform(seed, key) < 1


def test_uniform_fills_the_unit_interval() -> None:
    tenths = [0] * 10
    for number in range(5000):
        tenths[int(10 * uniform(0, str(number)))] += 1
    assert min(tenths) > 400
    assert max(tenths) < 600


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_rates_are_nested(one: float, two: float, seed: int) -> None:
    small, large = (RandomFlip(rate, seed) for rate in sorted((one, two)))
    for found in PAIRS[:50]:
        if small.apply(found).flipped:
            assert large.apply(found).flipped


def test_rate_seed_and_order() -> None:
    noise = RandomFlip(0.3)
    flipped = [noise.apply(found).flipped for found in PAIRS]
    assert 0.27 < sum(flipped) / len(PAIRS) < 0.33
    assert flipped[::-1] == [noise.apply(found).flipped for found in PAIRS[::-1]]
    assert flipped != [RandomFlip(0.3, seed=1).apply(found).flipped for found in PAIRS]
    assert not any(RandomFlip(0.0).apply(found).flipped for found in PAIRS)
    assert all(RandomFlip(1.0).apply(found).flipped for found in PAIRS)


def test_flips_depend_on_the_id_alone() -> None:
    noise = RandomFlip(0.5)
    other = [replace(found, prompt=(Message("user", "same"),), chosen="x", chosen_score=None) for found in PAIRS]
    assert [noise.apply(a).flipped for a in PAIRS] == [noise.apply(b).flipped for b in other]


def test_flips_are_independent_of_the_split() -> None:
    """Prompt and id hashes are salted apart: a prompt-like id is not flipped because it is held out."""
    key = prompt_hash(PAIRS[0].prompt)
    assert uniform(0, "split:" + key) != uniform(0, "flip:" + key)


def test_flipped_pairs_are_those_of_this_list() -> None:
    """Fixed by hash: a change here changes every noisy run there ever was."""
    noise = RandomFlip(0.2, seed=0)
    assert [found.id for found in PAIRS[:40] if noise.apply(found).flipped] == GOLDEN


GOLDEN = ["p4", "p7", "p10", "p22", "p23", "p25", "p33"]


def test_scores_and_writers_travel_with_their_response() -> None:
    before = pair(3)
    after = flip(before)
    assert (after.chosen, after.chosen_score, after.chosen_writer) == (
        before.rejected,
        before.rejected_score,
        before.rejected_writer,
    )
    assert (after.rejected, after.rejected_score, after.rejected_writer) == (
        before.chosen,
        before.chosen_score,
        before.chosen_writer,
    )
    assert (after.id, after.prompt, after.flipped) == (before.id, before.prompt, True)
    assert flip(after) == before


def test_no_noise_changes_nothing() -> None:
    assert NoNoise().apply(PAIRS[0]) is PAIRS[0]


def test_descriptions_tell_noises_apart() -> None:
    noises: list[Noise] = [NoNoise(), RandomFlip(0.1), RandomFlip(0.2), RandomFlip(0.1, seed=1)]
    descriptions = [noise.describe() for noise in noises]
    assert all(descriptions.count(description) == 1 for description in descriptions)
    assert RandomFlip(1).describe() == RandomFlip(1.0).describe()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "many"])
def test_a_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(UserError, match=f"noise.rate={rate} must be a number from 0 to 1"):
        RandomFlip(rate)
