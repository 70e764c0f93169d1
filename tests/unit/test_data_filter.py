"""The score-gap filter: which training pairs stay, what the manifest says, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from src.data.filter import ScoreFilter, refuse_unscored
from src.data.noise import NoNoise, RandomFlip
from src.data.pairs import Demonstration
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.splits import split_of
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.data_tools import Records, byte_tokenizer, pair

PAIRS = [pair(number, chosen_score=number / 10, rejected_score=0.0) for number in range(40)]
"""Gaps 0, 0.1, ..., 3.9."""

TRAIN = [one for one in PAIRS if split_of(one.prompt, 0.25, 0) == "train"]


class WithDemonstrations(Records):
    def demonstrations(self) -> Any:
        return iter([Demonstration(f"d{one.id}", one.prompt, one.chosen) for one in self.items])  # type: ignore[union-attr]


def prepared(
    tmp_path: Path, gap: float, items: Any = tuple(PAIRS), kind: str = "pairs", noise: Any = None
) -> PreparedData:
    template = ChatTemplate(byte_tokenizer("roles"), template="roles")
    options = PrepareOptions(512, 256, validation_fraction=0.25, min_score_gap=gap)
    return prepare(WithDemonstrations(tuple(items)), noise or NoNoise(), template, options, tmp_path, kind)


def test_training_pairs_are_kept_by_their_gap_and_validation_whole(tmp_path: Path) -> None:
    every, some = prepared(tmp_path, 0.0), prepared(tmp_path, 1.0)
    kept = [one.id for one in TRAIN if one.chosen_score >= 1.0]  # type: ignore[operator]
    assert [one.id for one in some.train] == kept
    assert "p10" in kept, "a gap of exactly the limit stays"
    assert [one.id for one in every.train] == [one.id for one in TRAIN]
    assert [one.id for one in some.validation] == [one.id for one in every.validation]
    out = some.manifest["dropped"]["score gap below 1"]
    assert out["count"] == len(TRAIN) - len(kept) > 0
    assert out["examples"][0] == TRAIN[0].id
    assert some.manifest["counts"]["train"] == len(kept)
    assert some.manifest["options"]["min_score_gap"] == 1.0
    assert len(list((tmp_path / "prepared").glob("*/manifest.json"))) == 2, "the limit is part of the key"


def test_the_gap_has_no_sign(tmp_path: Path) -> None:
    turned = [pair(number, chosen_score=0.0, rejected_score=number / 10) for number in range(40)]
    assert [one.id for one in prepared(tmp_path, 1.0, turned).train] == [
        one.id for one in prepared(tmp_path, 1.0).train
    ]
    flipped = prepared(tmp_path, 1.0, noise=RandomFlip(1.0))
    assert [one.id for one in flipped.train] == [one.id for one in prepared(tmp_path, 1.0).train]


def test_demonstrations_are_not_filtered(tmp_path: Path) -> None:
    every = prepared(tmp_path, 0.0, kind="demonstrations")
    assert prepared(tmp_path, 9.0, kind="demonstrations").manifest == every.manifest
    assert len(every.train) == len(TRAIN)


def test_a_filter_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    largest = max(one.chosen_score for one in TRAIN)  # type: ignore[type-var]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, 7.0)
    assert f"keeps none of the {len(TRAIN)} training pairs: the largest score gap among them is {largest:g}" in str(
        caught.value
    )
    assert "give at most that" in str(caught.value)


def test_a_filter_on_pairs_without_scores_is_refused(tmp_path: Path) -> None:
    bare = TRAIN[3]
    items = [pair(int(one.id[1:]), rejected_score=None) if one is bare else one for one in PAIRS]
    with pytest.raises(
        UserError, match=rf"min_score_gap=1 needs both scores .* '{bare.id}' has none; use a scored data"
    ):
        prepared(tmp_path, 1.0, items)
    assert len(prepared(tmp_path, 0.0, items).train) == len(TRAIN)


def test_unscored_pairs_are_named(tmp_path: Path) -> None:
    bare = [pair(number, **{side: None}) for number, side in ((0, "chosen_score"), (1, "rejected_score"))]
    data = prepared(tmp_path, 0.0, [*bare, *PAIRS[2:]])
    assert sorted([*data.train.unscored(), *data.validation.unscored()]) == ["p0", "p1"]
    with pytest.raises(UserError, match=r"method=x needs the scores .* 2 of 40 pairs have none \(p0, p1\); give"):
        refuse_unscored(["p0", "p1"], 40, "method=x")
    refuse_unscored([], 40, "method=x")


def test_no_filter_looks_at_nothing() -> None:
    nothing = ScoreFilter(0.0)
    assert nothing.keeps(pair(0, chosen_score=None))
    nothing.refuse_if_nothing_was_kept()
