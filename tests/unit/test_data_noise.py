"""Noise of lengths and of scores: which pairs it touches, and what becomes of them in prepared data and metrics."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.build import build
from src.config import compose_train
from src.data.noise import LengthFlip, Noise, RandomFlip, ScoreNoise, excess, flip, settled
from src.data.pairs import PreferencePair
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.splits import TRAIN, split_of
from src.data.templates import ChatTemplate
from src.errors import UserError
from src.training import run as runs
from tests.support import SMALL_RUN, metrics, places
from tests.unit.data_tools import Records, byte_tokenizer, pair

COUNT = 2000
PAIRS = [
    pair(number, chosen="yes " * (1 + number % 7), rejected="no, " * (1 + number * number % 5))
    for number in range(COUNT)
]
ELIGIBLE = {found.id for found in PAIRS if len(found.chosen) > len(found.rejected)}
READINGS: list[dict[str, Any]] = [
    {"over": over, "pick": pick} for over in ("eligible", "all") for pick in ("drawn", "longest")
]


def flipped(noise: Noise, pairs: Sequence[PreferencePair] = PAIRS) -> set[str]:
    ready, _ = settled(noise, pairs)
    return {found.id for found in pairs if ready.apply(found).flipped}


def test_the_pairs_of_this_file_are_of_every_kind() -> None:
    assert 800 < len(ELIGIBLE) < 1400
    assert any(excess(found, "shorter") == 0 for found in PAIRS)


def test_the_rule_is_the_drawn_share_of_random_flip_labelled_by_length() -> None:
    for rate in (0.0, 0.1, 0.4, 1.0):
        assert flipped(LengthFlip(rate, seed=3)) == flipped(RandomFlip(rate, seed=3)) & ELIGIBLE
    ready, findings = settled(LengthFlip(1.0), PAIRS)
    assert all(excess(ready.apply(found), "shorter") <= 0 for found in PAIRS), (
        "the shorter response is chosen everywhere"
    )
    assert findings == {"pairs": COUNT, "eligible": len(ELIGIBLE)}


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: "-".join(reading.values()))
def test_rates_are_met_nested_and_order_does_not_matter(reading: dict[str, Any]) -> None:
    base = len(ELIGIBLE) if reading["over"] == "eligible" else COUNT
    sets = [flipped(LengthFlip(rate, **reading)) for rate in (0.0, 0.1, 0.2, 0.4)]
    assert sets[0] == set()
    for rate, small, large in zip((0.1, 0.2, 0.4), sets[:-1], sets[1:], strict=True):
        assert small < large <= ELIGIBLE
        spread = 0.5 if reading["pick"] == "longest" else 4 * math.sqrt(base * rate)
        assert abs(len(large) - rate * base) <= spread
    shuffled = random.Random(1).sample(PAIRS, COUNT)
    assert flipped(LengthFlip(0.2, **reading), shuffled) == sets[2]
    assert flipped(LengthFlip(0.13, seed=1, **reading)) != flipped(LengthFlip(0.13, **reading))


def test_the_longest_are_flipped_first() -> None:
    chosen = flipped(LengthFlip(0.3, pick="longest"))
    by_id = {found.id: excess(found, "shorter") for found in PAIRS}
    assert min(by_id[one] for one in chosen) >= max(by_id[one] for one in ELIGIBLE - chosen)
    assert flipped(LengthFlip(1.0, pick="longest")) == ELIGIBLE
    three = [pair(number, chosen="long" * (2 + number), rejected="no") for number in range(3)]
    assert flipped(LengthFlip(0.5, pick="longest"), three) == {"p1", "p2"}, "one and a half are two"


@pytest.mark.parametrize("reading", [{}, {"over": "all"}, {"pick": "longest"}])
def test_the_other_way_round_the_longer_response_is_chosen(reading: dict[str, Any]) -> None:
    shorter_chosen = {found.id for found in PAIRS if excess(found, "longer") > 0}
    turned = flipped(LengthFlip(0.2, favours="longer", **reading))
    assert set() < turned < shorter_chosen
    assert not turned & ELIGIBLE
    assert flipped(LengthFlip(1.0, favours="longer")) == shorter_chosen
    assert LengthFlip(0.2, favours="longer").describe() != LengthFlip(0.2).describe()


def test_a_flip_by_length_takes_scores_and_writers_along() -> None:
    found = next(one for one in PAIRS if one.id in ELIGIBLE)
    assert LengthFlip(1.0).apply(found) == flip(found)
    assert settled(LengthFlip(1.0, pick="longest"), [found])[0].apply(found) == flip(found)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(READINGS))
def test_any_two_rates_are_nested(one: float, two: float, reading: dict[str, Any]) -> None:
    some = PAIRS[:60]
    most = 1.0 if reading["over"] == "eligible" else sum(found.id in ELIGIBLE for found in some) / len(some)
    small, large = (flipped(LengthFlip(rate * most, **reading), some) for rate in sorted((one, two)))
    assert small <= large


def test_no_eligible_pair_or_too_few_are_refused() -> None:
    short = [replace(found, chosen="a", rejected="bb") for found in PAIRS[:9]]
    with pytest.raises(UserError, match="none of the 9 training pairs is such; use noise=random_flip"):
        settled(LengthFlip(0.1), short)
    assert flipped(LengthFlip(0.0), short) == set()
    few = [*short, pair(9, chosen="long enough", rejected="no")]
    with pytest.raises(UserError, match=r"noise.rate=0.3 of all 10 .* only 1 have .* give noise.rate=0.1 or less"):
        settled(LengthFlip(0.3, over="all"), few)
    assert flipped(LengthFlip(0.1, over="all"), few) == {"p9"}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_score_noise_is_normal_of_the_asked_spread_and_labels_stay() -> None:
    noise = ScoreNoise(0.5)
    moved = [noise.apply(found) for found in PAIRS]
    shifts = [
        after - before
        for one, other in zip(moved, PAIRS, strict=True)
        for after, before in ((one.chosen_score, other.chosen_score), (one.rejected_score, other.rejected_score))
        if after is not None and before is not None
    ]
    assert len(shifts) == 2 * COUNT
    mean = sum(shifts) / len(shifts)
    deviation = math.sqrt(sum(shift * shift for shift in shifts) / len(shifts))
    assert abs(mean) < 4 * 0.5 / math.sqrt(len(shifts))
    assert abs(deviation / 0.5 - 1) < 4 / math.sqrt(2 * len(shifts))
    within = sum(abs(shift) < 0.5 for shift in shifts) / len(shifts)
    assert 0.65 < within < 0.715, "68.3 % of a normal draw lie within one deviation"
    sides = sum(one * other for one, other in zip(shifts[::2], shifts[1::2], strict=True)) / COUNT
    assert abs(sides) < 4 * 0.25 / math.sqrt(COUNT), "the two sides are drawn apart"
    assert not any(found.flipped for found in moved)
    assert [found.chosen for found in moved] == [found.chosen for found in PAIRS]


def test_a_larger_deviation_moves_the_same_way_further() -> None:
    found = PAIRS[4]
    assert found.chosen_score is not None
    small, large = (ScoreNoise(sd).apply(found).chosen_score for sd in (0.1, 0.2))
    assert small is not None
    assert large is not None
    assert large - found.chosen_score == pytest.approx(2 * (small - found.chosen_score), abs=1e-12)
    assert ScoreNoise(0.1, seed=1).apply(found).chosen_score != small
    assert ScoreNoise(0.0).apply(found) == found


def test_the_draw_is_the_documented_hash() -> None:
    """Written out again: a change here changes every run on noisy scores."""
    moved = ScoreNoise(1.0, seed=3).apply(pair(0))
    for side, before, after in (("chosen", 4.0, moved.chosen_score), ("rejected", 2.0, moved.rejected_score)):
        number = hashlib.sha256(f"3\nscore:{side}:p0".encode()).digest()[:8]
        assert after is not None
        below = 0.5 * (1 + math.erf((after - before) / math.sqrt(2)))
        assert below == pytest.approx(int.from_bytes(number, "big") / 2**64, abs=1e-8)


def test_labels_follow_noisy_scores_when_asked() -> None:
    noise, stays = ScoreNoise(2.0, relabel=True), ScoreNoise(2.0)
    turned = 0
    for found in PAIRS[:300]:
        kept, after = stays.apply(found), noise.apply(found)
        assert kept.chosen_score is not None
        assert kept.rejected_score is not None
        contradicted = kept.chosen_score < kept.rejected_score
        assert after == (flip(kept) if contradicted else kept)
        turned += contradicted
    assert 40 < turned < 110, "a lead of 2 against noise of deviation 2√2 is lost by 24 in 100 pairs"


def test_score_noise_refuses_pairs_without_scores_and_impossible_deviations() -> None:
    with pytest.raises(UserError, match="needs both scores of every training pair, but 'p0' has none"):
        ScoreNoise(0.1).apply(pair(0, rejected_score=None))
    for sd in (-0.1, math.nan, math.inf):
        with pytest.raises(UserError, match=f"noise.sd={sd} must be a number from 0 up"):
            ScoreNoise(sd)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"_target_": "src.data.noise.LengthFlip", "rate": 1.5}, "noise.rate=1.5 must be a number from 0 to 1"),
        ({"_target_": "src.data.noise.LengthFlip", "rate": 0.1, "over": "some"}, "wants eligible or all"),
        ({"_target_": "src.data.noise.LengthFlip", "rate": 0.1, "pick": "any"}, "wants drawn or longest"),
        ({"_target_": "src.data.noise.ScoreNoise", "sd": 1.0, "relabel": "maybe"}, "wants true or false"),
        ({"_target_": "src.data.noise.ScoreNoise", "sd": -1}, "noise.sd=-1 must be a number from 0 up"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(given, "noise")


# --- through preparation and into the metrics -------------------------------------------------------------------------


def prepared(cache: Path, noise: Noise, *, gap: float = 0.0) -> PreparedData:
    options = PrepareOptions(max_length=200, max_prompt_length=100, validation_fraction=0.2, min_score_gap=gap)
    template = ChatTemplate(byte_tokenizer("plain"), template="plain")
    return prepare(Records(tuple(PAIRS[:200])), noise, template, options, cache)


@pytest.mark.parametrize("noise", [LengthFlip(0.5), LengthFlip(0.2, over="all", pick="longest"), ScoreNoise(0.3)])
def test_only_training_pairs_change(tmp_path: Path, noise: Noise) -> None:
    clean, noisy = prepared(tmp_path, RandomFlip(0.0)), prepared(tmp_path, noise)
    assert list(noisy.validation) == list(clean.validation)
    assert noisy.manifest["content"]["validation"] == clean.manifest["content"]["validation"]
    assert noisy.manifest["content"]["train"] != clean.manifest["content"]["train"]
    assert noisy.manifest["noise"] == noise.describe()
    used = [found for found in PAIRS[:200] if split_of(found.prompt, 0.2, 0) == TRAIN]
    ready, findings = settled(noise, used)
    assert [row.id for row in noisy.train if row.flipped] == noisy.manifest["flipped"]["ids"]
    assert noisy.manifest["flipped"]["ids"] == [found.id for found in used if ready.apply(found).flipped]
    assert noisy.manifest["flipped"].items() >= findings.items()
    scores = [(row.chosen_score, row.rejected_score) for row in noisy.train]
    assert scores == [(one.chosen_score, one.rejected_score) for one in map(ready.apply, used)]


def test_what_is_filtered_is_the_noisy_gap(tmp_path: Path) -> None:
    noise = ScoreNoise(1.0)
    data = prepared(tmp_path, noise, gap=2.5)
    gaps = [abs((row.chosen_score or 0) - (row.rejected_score or 0)) for row in data.train]
    assert 20 < len(gaps) < 150
    assert min(gaps) >= 2.5


def test_eligible_pairs_are_those_left_by_the_filter(tmp_path: Path) -> None:
    data = prepared(tmp_path, LengthFlip(0.5), gap=2.199)
    left = [found for found in PAIRS[100:200] if split_of(found.prompt, 0.2, 0) == TRAIN]
    assert data.manifest["flipped"]["pairs"] == data.manifest["counts"]["train"] == len(left)
    assert data.manifest["flipped"]["eligible"] == sum(found.id in ELIGIBLE for found in left)


def test_a_run_logs_every_metric_of_clean_and_flipped_pairs_apart(tmp_path: Path) -> None:
    config = compose_train([*SMALL_RUN, *places(tmp_path), "method=gapo", "noise=length_flip", "noise.rate=0.5"])
    assert runs.train(config) == 0
    directory = runs.planned_directory(config)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert 0 < manifest["flipped"]["count"] < manifest["flipped"]["eligible"] < manifest["flipped"]["pairs"]
    line = metrics(directory, "train")[0]
    of_pairs = {"weight/gradient", "weight/mean", "anchor/gap", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    assert of_pairs <= line.keys()
    of_steps = {"step", "split", "epoch", "lr", "loss", "grad_norm"}
    plain = {name for name in line if not name.endswith(("_clean", "_flipped"))} - of_steps
    assert {f"{name}_{part}" for name in plain for part in ("clean", "flipped")} == line.keys() - plain - of_steps
    shares = [
        (line[name] - line[f"{name}_flipped"]) / (line[f"{name}_clean"] - line[f"{name}_flipped"])
        for name in ("logps/chosen", "anchor/gap")
    ]
    assert shares[0] == pytest.approx(shares[1], abs=1e-2), "the whole is the mean of both, by their numbers"
    assert 0 < shares[0] < 1
    validation = metrics(directory, "validation")[0]
    assert not [name for name in validation if name.endswith(("_clean", "_flipped"))]
