"""Ranking of stored rows alone: formats, several models, and what each rule counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.ranks.scoring import score_rows
from src.evaluation.ranks.stored import stored_scores
from tests.entry import assert_says, call, refused

PROGRAM = "src.evaluation.ranking"
NAN = float("nan")


def row(chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"chosen_reward": chosen, "rejected_reward": rejected, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def scored(*overrides: str) -> list[dict[str, Any]]:
    outcome = call(PROGRAM, "stage=score", "output=json", *overrides)
    assert outcome.code == 0, outcome.err
    return [json.loads(text) for text in outcome.out.splitlines()]


def test_rewards_alone_suffice(tmp_path: Path) -> None:
    """A tie is wrong; what needs more than rewards has no value, and says why."""
    (found,) = scored(f"samples={write(tmp_path / 'rm.jsonl', [row(2, 1), row(1, 1), row(0, 3), row(5, -1)])}")
    assert (found["benchmark"], found["model"], found["accuracy/reward"]) == ("ranking", "rm", 0.5)
    assert found["accuracy/reward_low"] <= 0.5 <= found["accuracy/reward_high"]
    assert (found["accuracy/sum"], found["accuracy/sum_reason"]) == (None, "no log-probs given")
    assert found["counts"] == {
        "rows": 4,
        "duplicates": 0,
        "not_finite": 0,
        "pairs": 4,
        "below_gap": 0,
        "unscored": 4,
        "flipped": 0,
        "ties_reward": 1,
        "missing": 0,
    }


def test_every_rule_is_counted() -> None:
    rows = [
        row(2.0, 1.0, id="a", chosen_score=4, rejected_score=1, flipped=True),
        row(0.0, 1.0, id="a"),  # the first counts
        row(NAN, 1.0, id="b", chosen_score=4, rejected_score=1),
        row(None, 1.0, id="c"),
        row(3.0, float("inf"), id="d"),
        row(1.0, 1.0, id="e", chosen_score=3, rejected_score=2),
        row(3.0, 1.0, id="f"),
    ]
    found = score_rows(rows)
    assert found.metrics["accuracy/reward"]["value"] == pytest.approx(2 / 3)
    assert found.metrics["accuracy/reward_flipped"]["n"] == 1
    assert found.metrics["spearman/reward"]["n"] == 4
    expected = {"rows": 7, "duplicates": 1, "not_finite": 3, "pairs": 3, "unscored": 1, "flipped": 1, "ties_reward": 1}
    assert found.counts == expected | {"below_gap": 0}
    assert [note.split(" ")[0] for note in found.notes] == ["1", "3", "tied"]
    gap = score_rows(rows, min_score_gap=2)
    assert gap.metrics["accuracy/reward"] == {
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 1,
        "reason": "one prompt only: no interval",
    }
    assert (gap.counts["pairs"], gap.counts["below_gap"], gap.counts["ties_reward"]) == (1, 2, 0)


def test_log_probs_give_every_other_reward() -> None:
    values = {"chosen_sum": -6.0, "chosen_tokens": 2, "rejected_sum": -8.0, "rejected_tokens": 8}
    reference = {"reference_chosen_sum": -5.0, "reference_rejected_sum": -9.0}
    metrics = score_rows([{**values, **reference}]).metrics
    assert [metrics[f"accuracy/{name}"]["value"] for name in ("average", "sum", "reference")] == [0.0, 1.0, 0.0]
    assert metrics["accuracy/reward"]["value"] is None
    assert metrics["lengths/chosen_mean"]["value"] == 2


def test_pairs_of_a_prompt_are_drawn_together() -> None:
    """A hundred copies of two prompts are two draws, not two hundred."""
    rows = [row(place % 2, 0.5, prompt_id=place % 2) for place in range(200)]
    apart = score_rows([{**one, "prompt_id": None} for one in rows]).metrics["accuracy/reward"]
    together = score_rows(rows).metrics["accuracy/reward"]
    assert (together["low"], together["high"]) == (0.0, 1.0)
    assert 0.4 < apart["low"] < apart["high"] < 0.6


def test_several_models_in_files(tmp_path: Path) -> None:
    rows = [row(1, 0, id=place, model=model) for model in ("m1", "m2") for place in range(3)]
    file = write(tmp_path / "two.jsonl", rows[:-1])
    other = write(tmp_path / "more.jsonl", [row(0, 1, id=0)])
    found = scored(f"samples=[{file},{other}]")
    assert [(one["model"], one["counts"]["missing"]) for one in found] == [("m1", 0), ("m2", 1), ("more", 2)]
    assert "1 pairs that other models of these files have are missing: left out" in found[1]["notes"]


@pytest.mark.parametrize(
    ("rows", "overrides", "fragments"),
    [
        ([row("1", 0)], [], ["rows.jsonl:1:", "'chosen_reward' must be a number or null, not '1'"]),
        ([row(1, 0, flipped="no")], [], ["'flipped' must be true or false"]),
        ([{"id": 1}], [], ["model 'rows'", "no row has chosen_reward and rejected_reward"]),
        ([row(NAN, 1), row(1, NAN)], [], ["none of 2 rows has a finite number"]),
        ([row(1, 0, reference_chosen_sum=-1, reference_rejected_sum=-2)], [], ["without chosen_sum"]),
        ([row(1, 0)], ["checkpoint=x"], ["checkpoint=x would not be read with stage=score"]),
        ([row(1, 0)], ["stage=all"], ["checkpoint has no value", "samples="]),
    ],
)
def test_bad_input(tmp_path: Path, rows: list[Any], overrides: list[str], fragments: list[str]) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    if overrides:
        given = overrides if "stage=all" in overrides else ["stage=score", *overrides]
        assert_says(refused(PROGRAM, f"samples={file}", *given), *fragments)
        return
    with pytest.raises(UserError) as caught:
        stored_scores(file, 0.0)
    assert_says(str(caught.value), *fragments)


def test_no_scores_far_enough_apart(tmp_path: Path) -> None:
    (found,) = scored(f"samples={write(tmp_path / 'rm.jsonl', [row(2, 1)])}", "min_score_gap=1")
    assert found["accuracy/reward"] is None
    assert "needs scores" in found["accuracy/reward_reason"]
