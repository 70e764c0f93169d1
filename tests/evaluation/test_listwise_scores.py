"""Listwise scores of stored rewards: formats, several models, and what each rule counts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.lists.scoring import ListRules, RewardedResponses, score
from src.evaluation.lists.stored import read_lists
from tests.entry import Outcome, assert_says, call, refused

PROGRAM = "src.evaluation.listwise"
SHARED = Path(__file__).resolve().parents[3] / "shared/data/pref/alpaca_pref_24x805.jsonl.gz"
NAN = float("nan")


def line(prompt: object, scores: list[Any], rewards: list[Any], **more: Any) -> dict[str, Any]:
    responses = [
        {"score": s, "reward": r, "text": "x" * place} for place, (s, r) in enumerate(zip(scores, rewards, strict=True))
    ]
    return {"prompt_id": prompt, "responses": responses, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def scored(*overrides: str) -> list[dict[str, Any]]:
    outcome: Outcome = call(PROGRAM, "stage=score", "output=json", *overrides)
    assert outcome.code == 0, outcome.err
    return [json.loads(text) for text in outcome.out.splitlines()]


def test_hand_made_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "rm.jsonl", [line(0, [1, 2, 4], [0.1, 0.3, 0.2]), line(1, [3, 1], [5, -5])])
    (found,) = scored(f"samples={file}", "k=[1]", "n=[2,3]", "gains=linear")
    assert (found["benchmark"], found["model"], found["judge"]) == ("listwise", "rm", None)
    assert found["ndcg@1"] == pytest.approx((2 / 4 + 1) / 2)
    assert found["ndcg@1/random"] == pytest.approx((7 / 3 / 4 + 2 / 3) / 2)
    assert found["kendall_tau_b"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["spearman"] == pytest.approx((0.5 + 1) / 2)
    assert found["best_of_2"] == pytest.approx(((2 + 2 + 4) / 3 + 3) / 2)
    assert found["best_of_2/gain"] == pytest.approx((8 / 3 - 7 / 3 + 1) / (10 / 3 - 7 / 3 + 1))
    assert (found["best_of_3"], found["best_of_3/best"]) == (2.0, 4.0)  # of the only prompt with three
    assert found["counts"]["ranked"] == 2


def test_every_rule_is_counted() -> None:
    items = [
        RewardedResponses("a", (1.0, 2.0, 3.0), (1.0, 2.0, 2.0)),
        RewardedResponses("a", (1.0, 2.0), (9.0, 1.0)),  # the first counts
        RewardedResponses("b", (1.0, 2.0, NAN), (2.0, 1.0, 0.0)),
        RewardedResponses("c", (1.0, 2.0, 5.0), (0.0, NAN, float("inf"))),
        RewardedResponses("d", (2.0, 2.0), (0.0, 1.0)),
        RewardedResponses("e", (1.0, 3.0), (4.0, 4.0)),
        RewardedResponses("f", (), ()),
    ]
    found = score(items, ListRules(k=(1,), n=(1, 2)))
    assert found.counts == {
        "prompts": 6,
        "ranked": 3,
        "responses": 7,
        "duplicates": 1,
        "unscored": 1,
        "not_finite": 2,
        "single": 2,
        "all_tied": 1,
        "constant_rewards": 1,
        "tied_rewards": 1,
    }
    assert len(found.notes) == 6
    taus = [2 / 6**0.5, -1.0, 0.0]  # a: two concordant pairs, one tied in reward; e: constant
    assert found.metrics["kendall_tau_b"]["value"] == pytest.approx(sum(taus) / 3)
    assert found.metrics["best_of_2"]["value"] == pytest.approx(((2.5 + 2 * 2.5) / 3 + 1 + 2) / 3)
    assert found.metrics["best_of_1"]["n"] == 3


def test_several_models_files_and_shapes(tmp_path: Path) -> None:
    """Of the same rows, plain, gzipped and as one list; a prompt that one model lacks is counted."""
    rows = [line(p, [1, 2, 5], r, model=m) for m, r in (("m1", [1, 2, 3]), ("m2", [3, 2, 1])) for p in "pq"]
    plain = write(tmp_path / "two.jsonl", rows[:-1])
    with gzip.open(tmp_path / "two.jsonl.gz", "wt") as file:
        file.write(Path(plain).read_text())
    (tmp_path / "two.json").write_text(json.dumps(rows[:-1]))
    found = [scored(f"samples={tmp_path / name}") for name in ("two.jsonl", "two.jsonl.gz", "two.json")]
    assert found[0] == found[1] == found[2]
    first, second = found[0]
    assert (first["model"], first["kendall_tau_b"], first["counts"]["missing"]) == ("m1", 1.0, 0)
    assert (second["model"], second["kendall_tau_b"], second["counts"]["missing"]) == ("m2", -1.0, 1)
    unnamed = write(tmp_path / "other.jsonl", [line("p", [1, 2], [2, 1])])
    assert [one["model"] for one in scored(f"samples=[{plain},{unnamed}]")] == ["m1", "m2", "other"]


def test_other_rewards_of_the_same_rows(tmp_path: Path) -> None:
    kept = [
        {"score": 1, "reward": 3, "sum": -6, "tokens": 2, "reference_sum": -9, "text": "xx"},
        {"score": 2, "reward": 2, "sum": -8, "tokens": 8, "reference_sum": -8, "text": "xxx"},
    ]
    file = write(tmp_path / "rows.jsonl", [{"prompt_id": "p", "responses": kept}])
    (found,) = scored(f"samples={file}", "reward=length")
    assert (found["model"], found["kendall_tau_b"]) == ("length", 1.0)
    rewards = {"method": (3, 2), "average": (-3, -1), "sum": (-6, -8), "reference": (3, 0), "length": (2, 3)}
    for name, expected in rewards.items():
        ((_, (item,)),) = read_lists([file], name).items()
        assert item.rewards == expected


@pytest.mark.parametrize(
    ("rows", "overrides", "fragments"),
    [
        ([{"prompt_id": 1, "responses": [{"score": "4", "reward": 1}]}], [], ["rows.jsonl:1:", "'score'", "not '4'"]),
        ([{"responses": []}], [], ["rows.jsonl:1:", "'prompt_id' is missing"]),
        ([{"prompt_id": 1, "responses": {}}], [], ["'responses' must be a list of objects"]),
        ([{"prompt_id": 1, "responses": [{"score": 1}]}], [], ["no response has reward", "reward=length"]),
        ([line(1, [2, 2], [1, 2])], ["n=[1]"], ["model 'rows'", "no prompt can be ranked", "all_tied: 1"]),
        ([line(1, [-2, 2], [1, 2])], ["n=[1]"], ["score of -2 lies below zero=0", "zero=prompt"]),
        ([line(1, [1, 2], [1, 2])], ["zero=low"], ["zero=low is no score"]),
        (
            [line(1, [1, 2], [1, 2])],
            ["checkpoint=x", "reward=best"],
            ["checkpoint=x would not be read with stage=score", "reward=best is not known"],
        ),
    ],
)
def test_bad_input(tmp_path: Path, rows: list[Any], overrides: list[str], fragments: list[str]) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    if overrides:
        assert_says(refused(PROGRAM, "stage=score", f"samples={file}", *overrides), *fragments)
        return
    with pytest.raises(UserError) as caught:
        read_lists([file], "method")
    assert_says(str(caught.value), *fragments)


def test_files_that_are_not_there_or_twice() -> None:
    assert_says(refused(PROGRAM, "stage=score"), "samples has no value; give samples=FILE")
    assert_says(refused(PROGRAM, "stage=score", "samples=/no/file"), "samples=/no/file: no such file")
    assert_says(refused(PROGRAM, "stage=score", "samples=[a,a]"), "names a twice")
    assert_says(refused(PROGRAM), "checkpoint has no value", "stage=score samples=FILE")


def test_sizes_of_draws() -> None:
    assert ListRules().draws(24) == [1, 2, 4, 8, 16, "all"]
    assert ListRules(n="every").draws(3) == [1, 2, 3, "all"]
    with pytest.raises(UserError, match="each once"):
        ListRules(k=(1, 1))
    with pytest.raises(UserError, match=r"k holds 0.*numbers from 1 on, or all"):
        ListRules(k=(0,))
    with pytest.raises(UserError, match="n=some is not known"):
        ListRules(n="some")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared preference data is not there")
def test_length_over_24_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer is preferred up to a point: the longest of all is worse than the longest of sixteen."""
    monkeypatch.setattr("src.evaluation.lists.bootstrap.RESAMPLES", 20)
    (found,) = scored(f"samples={SHARED}", "reward=length", "k=[1]")
    assert (found["counts"]["ranked"], found["counts"]["responses"]) == (805, 805 * 24)
    assert found["kendall_tau_b"] == pytest.approx(0.4887549, abs=1e-6)
    assert found["best_of_1"] == pytest.approx(found["best_of_all/random"]) == pytest.approx(0.1859889, abs=1e-6)
    assert found["best_of_16"] > found["best_of_all"] > found["best_of_8"]
