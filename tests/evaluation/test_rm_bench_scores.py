"""RM-Bench's matrix and means: levels, pooling, absent domains, ties, NaN, repeated and malformed items."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.benchmark_schema import RMBenchConfig
from src.errors import Problems, UserError
from src.evaluation.benchmark import Scores
from src.evaluation.finish import json_of
from src.evaluation.rmbench.items import OFFICIAL, Kept, Layout, StyleItem, item_of, kept_items, part_in_name
from src.evaluation.rmbench.options import refuse_contradictions
from src.evaluation.rmbench.scores import ScoredItem, cells_of, matrix_of, scores_of
from src.evaluation.rmbench.stored import stored_scores
from tests.entry import assert_says, call

PROGRAM = "src.evaluation.rm_bench"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "rmbench"
PARTS = tuple(OFFICIAL.parts)
ONE = Layout("one", {"chat": "chat"})


def scored(part: str, chosen: Sequence[float], rejected: Sequence[float]) -> ScoredItem:
    return ScoredItem(part, tuple(chosen), tuple(rejected))


def scores(items: list[ScoredItem], layout: Layout = OFFICIAL) -> Scores:
    return scores_of(items, layout, Kept([]))


def values(found: Scores) -> dict[str, Any]:
    return {name: metric["value"] for name, metric in found.metrics.items()}


def random_items(parts: Sequence[str], seed: int = 0) -> list[ScoredItem]:
    """A few items of each part, more of the later ones; small whole numbers, so that many tie."""
    rng = random.Random(seed)
    return [
        scored(part, [rng.randint(0, 3) for _ in range(3)], [rng.randint(0, 3) for _ in range(3)])
        for number, part in enumerate(parts)
        for _ in range(5 + 3 * number)
    ]


def by_hand(items: Sequence[ScoredItem]) -> dict[str, float]:
    """The owners' definition in plain loops over cells."""
    cell = [[sum(item.chosen[i] > item.rejected[j] for item in items) / len(items) for j in range(3)] for i in range(3)]
    hard = (cell[0][1] + cell[0][2] + cell[1][2]) / 3
    easy = (cell[1][0] + cell[2][0] + cell[2][1]) / 3
    normal = (cell[0][0] + cell[1][1] + cell[2][2]) / 3
    return {"hard_acc": hard, "normal_acc": normal, "easy_acc": easy, "": (hard + normal + easy) / 3}


def test_rows_are_right_answers_and_columns_wrong_ones() -> None:
    """One item whose dressed-up right answer beats everything and whose concise one beats nothing."""
    cells = cells_of([scored("chat", [0, 1, 9], [2, 2, 2])])
    assert matrix_of(cells).tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    found = values(scores([scored("chat", [0, 1, 9], [2, 2, 2])], ONE))
    assert found["chat/hard_acc"] == 0
    assert found["chat/normal_acc"] == pytest.approx(1 / 3)
    assert found["chat/easy_acc"] == pytest.approx(2 / 3)
    assert found["chat"] == found["overall"] == pytest.approx(1 / 3)


def test_levels_of_every_part_are_the_owners() -> None:
    items = random_items(PARTS)
    found = values(scores(items))
    for domain in OFFICIAL.domains:
        own = by_hand([item for item in items if OFFICIAL.parts[item.part] == domain])
        for level, value in own.items():
            assert found[f"{domain}/{level}".rstrip("/")] == pytest.approx(value, abs=1e-12)


def test_safety_pools_its_items_and_overall_is_the_mean_of_four_domains() -> None:
    items = random_items(PARTS)
    found = values(scores(items))
    halves = [
        by_hand([item for item in items if item.part == part])[""] for part in ("safety-refuse", "safety-response")
    ]
    assert [found["safety-refuse"], found["safety-response"]] == pytest.approx(halves)
    assert found["safety"] != pytest.approx(sum(halves) / 2, abs=1e-3)
    for level in ("", "/hard_acc", "/normal_acc", "/easy_acc"):
        domains = [found[f"{domain}{level}"] for domain in ("chat", "math", "code", "safety")]
        assert found[f"overall{level}"] == pytest.approx(np.mean(domains))
    assert "mean_of_present_domains" not in found


@pytest.mark.parametrize(("absent", "present"), [("math", "chat, code, safety"), ("safety-refuse", "chat, math, code")])
def test_an_absent_part_leaves_no_overall_score(absent: str, present: str) -> None:
    items = random_items([part for part in PARTS if part != absent])
    found = scores(items)
    number = values(found)
    assert f"missing: {absent}" in found.metrics["overall"]["reason"]
    assert [number[f"overall{level}"] for level in ("", "/hard_acc", "/normal_acc", "/easy_acc")] == [None] * 4
    own = [number[domain] for domain in present.split(", ")]
    assert number["mean_of_present_domains"] == pytest.approx(np.mean(own))
    assert f"mean_of_present_domains is over {present}" in found.notes[0]
    assert found.counts[f"missing/{absent}"] == OFFICIAL.sizes[absent]


def test_ties_and_missing_scores_are_wrong_and_counted() -> None:
    nan = math.nan
    found = scores([scored("chat", [1, 1, 1], [1, 0, 2]), scored("chat", [nan, 5, 5], [0, nan, 0])], ONE)
    assert found.counts["ties"] == 3
    assert found.counts["nan_scores"] == 2
    assert found.counts["nan_comparisons"] == 5
    assert found.counts["comparisons"] == 18
    assert found.details["matrices"]["chat"] == [[0, 0.5, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]


def test_intervals_are_of_items_within_their_domain() -> None:
    """All items of a domain alike: resampling cannot change it, whatever the others do."""
    items = [scored("chat", [3, 2, 1], [2, 2, 2])] * 20 + [
        scored("code", [place % 2] * 3, [0.5] * 3) for place in range(40)
    ]
    found: dict[str, Any] = dict(scores(items, Layout("two", {"chat": "chat", "code": "code"})).metrics)
    assert found["chat"]["low"] == found["chat"]["value"] == found["chat"]["high"]
    low, value, high = (found["code"][key] for key in ("low", "value", "high"))
    assert value == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 / 40), rel=0.15)
    assert found["overall"]["high"] - found["overall"]["low"] == pytest.approx((high - low) / 2)
    lonely = scores([scored("chat", [1, 1, 1], [0, 0, 0])], ONE).metrics["chat"]
    assert (lonely["value"], lonely["low"], lonely["reason"]) == (1.0, None, "one item only: no interval")


def style_item(identity: str, score: float, prompt: str = "p", answers: int = 3, part: str = "chat") -> StyleItem:
    row = {
        "id": identity,
        "prompt": prompt,
        "chosen": ["right"] * answers,
        "rejected": ["wrong"] * 3,
        "score_chosen": [score] * answers,
        "score_rejected": [0.0] * 3,
    }
    return item_of(row, part, OFFICIAL, "m", "line-1")


def test_repeated_items_count_once_and_malformed_ones_never() -> None:
    items = [
        style_item("1", 1),
        style_item("1", 1),
        style_item("1", 2),
        style_item("1", 1, prompt="another question under the same id"),
        style_item("1", 1, part="code"),
        style_item("2", 1, answers=2),
    ]
    kept = kept_items(items, scored=True)
    assert [item.scores[0][0] for item in kept.items if item.scores] == [1, 1, 1]
    assert (kept.duplicates, kept.conflicting, kept.malformed) == (2, 1, ("chat:2",))
    said = scores_of([scored("chat", [1] * 3, [0] * 3)], OFFICIAL, kept)
    assert {key: said.counts[key] for key in ("duplicates", "conflicting_duplicates", "malformed")} == {
        "duplicates": 2, "conflicting_duplicates": 1, "malformed": 1,
    }  # fmt: skip
    assert "2 items came again, 1 of them with other content: the first of each counts" in said.notes
    assert "1 items do not have 3 + 3 answers or scores and are left out: chat:2" in said.notes


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        ("chat_filtered", "chat"),
        ("safety-refuse_filtered", "safety-refuse"),
        ("safety-response_filtered_a-model_ref_free_20250101_120000", "safety-response"),
        ("math", "math"),
        ("codebook", None),
        ("total_dataset", None),
    ],
)
def test_the_part_is_told_from_the_files_name(stem: str, part: str | None) -> None:
    assert part_in_name(stem, OFFICIAL) == part


@pytest.mark.parametrize(
    ("changed", "fragments"),
    [
        ({"score_chosen": [1, "2", 3]}, ["'score_chosen' must be a list of numbers"]),
        ({"score_rejected": [True, 0, 0]}, ["'score_rejected' must be a list of numbers"]),
        ({"chosen": "one text"}, ["'chosen' must be a list of texts"]),
        ({"domain": "poetry"}, ["domain 'poetry' is not known", "chat, math, code"]),
        ({"domain": "list"}, ["benchmark=toy"]),
        ({"domain": "code"}, ["the row says domain 'code', but the file's name says 'chat'"]),
    ],
)
def test_rows_that_are_none_of_the_benchmarks(changed: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(UserError) as error:
        item_of(
            {"id": 1, "prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3} | changed, "chat", OFFICIAL, "", ""
        )
    assert_says(str(error.value), *fragments)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def row(identity: int, chosen: Sequence[float | None] = (), rejected: Sequence[float | None] = ()) -> dict[str, Any]:
    found = {"id": identity, "prompt": f"p{identity}", "chosen": ["a", "bb", "ccc"], "rejected": ["aa", "bb", "c"]}
    return found | ({"score_chosen": list(chosen), "score_rejected": list(rejected)} if chosen else {})


def scored_files(samples: Any = None, benchmark: str = "official", **keys: Any) -> list[dict[str, Any]]:
    found = stored_scores(RMBenchConfig(stage="score", samples=samples, benchmark=benchmark, **keys))
    return [json_of(one, "rm_bench") for one in found]


def test_result_files_of_several_models(tmp_path: Path) -> None:
    """In the owners' format and under their names, the models in the files' order."""
    files = [
        write(tmp_path / "chat_filtered_zeta_ref_free_20250101_120000.json", [row(1, [1, 1, 1], [0, 0, 0])]),
        write(tmp_path / "code_filtered_zeta_ref_free_20250102_120000.json", [row(1, [0, 1, 1], [0, None, 0])]),
        write(tmp_path / "total_dataset_alpha_x.json", [row(7, [0, 0, 0], [1, 1, 1]) | {"domain": "math"}]),
    ]
    first, second = scored_files(files)
    assert (first["model"], second["model"]) == ("zeta_ref_free", "alpha_x")
    assert (first["chat"], first["math"], second["math"]) == (1.0, None, 0.0)
    assert first["code/hard_acc"] == pytest.approx(1 / 3)
    assert first["counts"]["nan_scores"] == 1
    assert first["overall"] is None
    assert "missing: math, safety-refuse, safety-response" in first["overall_reason"]


def test_texts_are_scored_by_their_length(tmp_path: Path) -> None:
    """Answers of 1, 2, 3 characters against 2, 2, 1."""
    file = write(tmp_path / "chat_filtered.json", [row(1)])
    (found,) = scored_files(file, reward="length")
    assert (found["model"], found["judge"]) == ("length", None)
    assert found["chat/hard_acc"] == pytest.approx(1 / 3)  # of 1 > 2, 1 > 1 and 2 > 1
    assert found["counts"]["ties"] == 3


def complaint(samples: str, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        scored_files(samples, **keys)
    return str(error.value)


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    plain = write(tmp_path / "chat_filtered.json", [row(1)])
    assert_says(complaint(plain), "holds items without scores", "reward=length|")
    nameless = write(tmp_path / "results.json", [row(1, [1] * 3, [0] * 3)])
    assert_says(complaint(nameless), "results.json:1", "no telling the item's domain")
    short = write(tmp_path / "code_filtered.json", [row(1, [1, 2], [0, 0])])
    assert_says(complaint(short), "no item has 3 + 3 scores")
    assert_says(complaint(f"{tmp_path}/math_filtered.json", reward="length"), "samples=", "no such file")


@pytest.mark.parametrize(
    ("keys", "fragments"),
    [
        ({}, ["checkpoint has no value", "stage=score samples=[FILES]"]),
        ({"stage": "score"}, ["nothing to score"]),
        ({"stage": "score", "reward": "average"}, ["there is no checkpoint", "length"]),
        ({"stage": "score", "samples": "x", "reward": "best"}, ["reward=best is not known", "average", "length"]),
        ({"checkpoint": "x", "reward": "length"}, ["reads the texts alone"]),
        ({"checkpoint": "x", "samples": "y"}, ["samples=y would not be read without stage=score", "checkpoint=x"]),
        ({"stage": "score", "reward": "oracle"}, ["add benchmark=toy"]),
        ({"checkpoint": "x", "reference": "y"}, ["reference=y would not be read with reward=average"]),
        ({"checkpoint": "x", "benchmark": "toy", "data": "y"}, ["data=y would not be read with benchmark=toy"]),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(Problems) as error:
        refuse_contradictions(RMBenchConfig(**{"stage": "all", "benchmark": "official", **keys}))
    assert_says(str(error.value), *fragments)


def test_the_toy_worlds_truth_beats_its_longest_answer() -> None:
    (truth,) = scored_files(benchmark="toy", reward="oracle", max_items=8)
    (length,) = scored_files(benchmark="toy", reward="length", max_items=8)
    assert truth["overall/normal_acc"] == truth["overall/hard_acc"] == 1.0
    assert truth["overall"] > length["overall"]
    assert length["overall/easy_acc"] > 0.9 > length["overall/hard_acc"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/rmbench")
def test_length_on_the_real_files_is_the_owners_figure() -> None:
    """Computed with the owners' function; also their overall needs math, which is not there."""
    with gzip.open(SHARED / "rmbench_truth.json.gz", "rt") as file:
        truth = json.load(file)["len_chars"]
    files = [str(SHARED / f"{part}_filtered.json.gz") for part in PARTS if part != "math"]
    outcome = call(PROGRAM, "stage=score", f"samples=[{','.join(files)}]", "reward=length", "output=json")
    found = json.loads(outcome.out)
    names = {"safety_pooled": "safety", "three_domain_mean": "mean_of_present_domains"}
    for key, expected in truth.items():
        if key == "official_total_without_math":
            continue
        name = names.get(key, key)
        for level in ("hard_acc", "normal_acc", "easy_acc"):
            assert found[f"{name}/{level}"] == pytest.approx(expected[level], abs=1e-12)
        assert found[name] == pytest.approx(expected["avg"], abs=1e-12)
    assert found["overall"] is None
    assert found["counts"]["items"] == 798
