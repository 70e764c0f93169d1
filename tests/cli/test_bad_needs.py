"""A method that needs what data, batch or model cannot give, and constants out of range: refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.entry import assert_says, call, refused, refused_after_run_directory
from tests.support import SMALL_DATA, SMALL_MODEL, places

PREFLIGHT, TRAIN = "src.preflight", "src.train"
BATCH = ("training.global_batch_size=4", "training.micro_batch_size=4", "~recipe")


def small(folder: Path, *more: str) -> list[str]:
    return [*SMALL_MODEL, *SMALL_DATA, *BATCH, *places(folder), *more]


def on_file(folder: Path, scored: int, *more: str) -> list[str]:
    """A small run on forty pairs, of which the last ``scored`` have scores 1.5 and 1."""
    records: list[dict[str, Any]] = [
        {"id": f"p{number}", "prompt": f"question {number}?", "chosen": f"good {number}", "rejected": f"bad {number}"}
        for number in range(40)
    ]
    for record in records[40 - scored :]:
        record |= {"chosen_score": 1.5, "rejected_score": 1}
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ["dataset=local", f"dataset.source.path={path}", "dataset.validation_fraction=0.3"]
    return [*SMALL_MODEL, *data, *BATCH, *places(folder), *more]


@pytest.mark.parametrize(
    ("program", "overrides", "fragments"),
    [
        (TRAIN, ["method=rdpo_unbiased", "method.label_smoothing=0.5"], ["method.link: ", "label_smoothing=0.5"]),
        (PREFLIGHT, ["method=rsimpo_unbiased", "method.label_smoothing=0.6"], ["method.link: ", "label_smoothing=0.6"]),
        (TRAIN, ["method=ipo", "method.tau=0"], ["method.target: tau=0"]),
        (PREFLIGHT, ["method=gamma_simpo", "method.tau=-1"], ["method.target: tau=-1"]),
        (TRAIN, ["method=gapo", "method.rho=0"], ["method.perturbation: rho=0"]),
        (PREFLIGHT, ["method=simpo_sam", "method.rho=-0.1"], ["method.perturbation: rho=-0.1"]),
    ],
)
def test_constants_out_of_range(program: str, overrides: list[str], fragments: list[str], tmp_path: Path) -> None:
    assert_says(refused(program, *small(tmp_path, *overrides)), *fragments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("program", [PREFLIGHT, TRAIN])
def test_scores_that_no_pair_has(program: str, tmp_path: Path) -> None:
    message = refused(program, *on_file(tmp_path, 0, "method=gappo", "evaluation.every_steps=-1"))
    assert_says(
        message,
        "2 problems found",
        "method=gappo (weight=ScoreGap) needs the scores of both responses, but pair 'p0' of dataset=local (LocalPairs)"
        " has none; use a scored data set (dataset=ultrafeedback_binarized,",
    )


def test_scores_that_some_pairs_lack(tmp_path: Path) -> None:
    overrides = on_file(tmp_path, 40, "method=gappo")
    path = tmp_path / "pairs.jsonl"
    lines = path.read_text().splitlines()
    bare = {key: value for key, value in json.loads(lines[7]).items() if "score" not in key}
    path.write_text("\n".join([*lines[:7], json.dumps(bare), *lines[8:]]) + "\n")
    fragments = ("method=gappo (weight=ScoreGap) needs the scores", "1 of 40 pairs have none (p7); give chosen_score")
    assert_says(refused(PREFLIGHT, *overrides), *fragments)
    assert_says(refused_after_run_directory(overrides), *fragments)


def test_scores_are_asked_of_no_other_method(tmp_path: Path) -> None:
    outcome = call(PREFLIGHT, *on_file(tmp_path, 0, "method=simpo"))
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method=amapo", "training.micro_batch_size=1"], "training.micro_batch_size=1"),
        (["method=amapo", "evaluation.micro_batch_size=1"], "evaluation.micro_batch_size=1"),
        (
            ["method=dr_dpo_global", "training.micro_batch_size=1", "training.global_batch_size=1"],
            "training.global_batch",
        ),
        (
            ["method=gappo_normalized", "method.statistics=forward", "training.micro_batch_size=1"],
            "training.micro_batch",
        ),
    ],
)
def test_statistics_of_one_pair(overrides: list[str], key: str, tmp_path: Path) -> None:
    message = refused(PREFLIGHT, *small(tmp_path, *overrides))
    assert_says(message, "1 problem found", f"{key}", "leaves one pair for the statistics of method=", "=2 or more")


def test_statistics_beyond_the_forward_take_any_micro_batch(tmp_path: Path) -> None:
    fine = ["method=amapo", "method.statistics=4", "training.micro_batch_size=1", "evaluation.micro_batch_size=1"]
    assert call(PREFLIGHT, *small(tmp_path, *fine)).code == 0
    message = refused(PREFLIGHT, *small(tmp_path, "method=amapo", "method.statistics=1"))
    assert_says(message, "method.target: statistics=1", "needs at least 2 pairs")


@pytest.mark.parametrize(("donor", "wanted"), [("dpo", "reference"), ("amapo", "statistics"), ("gappo", "scores")])
def test_demonstrations_have_no_pairs(donor: str, wanted: str, tmp_path: Path) -> None:
    slot = {"dpo": "reward", "amapo": "target", "gappo": "weight"}[donor]
    message = refused(PREFLIGHT, *small(tmp_path, "method=sft", f"parts.{slot}={donor}"))
    assert_says(
        message, f"method.{slot}=", f"needs {wanted}", "trains on demonstrations", "src.objective.links.Logistic"
    )


# --- the filter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", ["dataset.min_score_gap=0.75", "method=gappo_hard_filter"])
def test_a_filter_that_keeps_nothing(gap: str, tmp_path: Path) -> None:
    overrides = on_file(tmp_path, 40, gap)
    fragments = ("keeps none of the", "training pairs: the largest score gap among them is 0.5; give at most that")
    assert_says(refused(PREFLIGHT, *overrides), *fragments)
    assert_says(refused_after_run_directory(overrides), *fragments)


def test_a_filter_is_checked_before_the_base_is_trained(tmp_path: Path) -> None:
    overrides = on_file(
        tmp_path, 40, "method=gappo_hard_filter", "model.init=sft", "debug=smoke", "debug.traceback=false"
    )
    assert_says(refused(TRAIN, *overrides), "dataset.min_score_gap=1 keeps none")
    assert not (tmp_path / "runs").exists()


def test_a_filter_that_keeps_some_is_counted(tmp_path: Path) -> None:
    outcome = call(PREFLIGHT, *small(tmp_path, "method=gappo_hard_filter"))
    assert outcome.code == 0, outcome.err
    assert_says(outcome.out, "x score gap below 1 (toy-0-")


def test_a_filter_without_scores_or_without_pairs(tmp_path: Path) -> None:
    message = refused(PREFLIGHT, *on_file(tmp_path, 0, "method=gappo_hard_filter"))
    assert_says(
        message, "1 problem found", "dataset.min_score_gap=1 needs both scores", "'p0' has none", "min_score_gap=0"
    )
    message = refused(PREFLIGHT, *small(tmp_path, "method=sft", "dataset.min_score_gap=1"))
    assert_says(message, "dataset.min_score_gap=1 filters preference pairs", "nothing would be filtered; leave it out")


# --- what is trained, and by what -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["adapter=lora", "model.trainable=mlp"], ["model.trainable=mlp contradicts adapter=lora", "adapter=none"]),
        (["adapter=lora", "adapter.dropout=0.1"], ["adapter.dropout=0.1 cannot work", "give 0"]),
        (["adapter=lora", "adapter.r=0"], ["adapter.r=0 is too small; give at least 1"]),
        (["adapter=lora", "adapter.target_modules=[nope]"],
         ["adapter.target_modules=[nope] is not found in a llama model", "all-linear", "gate_proj, k_proj"]),
        (["adapter.r=4", "adapter.alpha=8"],
         ["adapter.r=4, adapter.alpha=8 would not be read with adapter=none; write adapter=lora"]),
        (["model.trainable=attention"], ["model.trainable=attention is not known; choose one of: full, mlp"]),
        (["training.optimizer=rmsprop", "training.adam_beta1=0.8"],
         ["training.adam_beta1=0.8 would not be read with training.optimizer=rmsprop"]),
        (["training.rmsprop_alpha=0.9"], ["rmsprop_alpha=0.9 would not be read with training.optimizer=adamw"]),
        (["adapter=lora", "adapter.target_modules=3"], ["adapter.target_modules=3 names no layers; give all-linear"]),
        (["training.optimizer=sgd"], ["training.optimizer=sgd is not known; choose one of: adamw, rmsprop"]),
        (["training.warmup_steps=-1"], ["training.warmup_steps=-1 is too small; give at least 0"]),
    ],
)  # fmt: skip
def test_keys_of_model_adapter_and_optimizer(overrides: list[str], fragments: list[str], tmp_path: Path) -> None:
    assert_says(refused(PREFLIGHT, *small(tmp_path, "method=simpo", *overrides)), "1 problem found", *fragments)


def test_preflight_says_what_is_trained(tmp_path: Path) -> None:
    rows = {
        "model.trainable=full": "18,400 of 18,400 parameters (100.00 %): all of the model",
        "model.trainable=mlp": "4,608 of 18,400 parameters (25.04 %): feed-forward projections",
        "adapter=lora": "3,968 of 22,368 parameters (17.74 %): adapters of rank 8",
    }
    for key, row in rows.items():
        outcome = call(PREFLIGHT, *small(tmp_path, "method=simpo", key))
        assert outcome.code == 0, outcome.err
        assert_says(outcome.out, row)
