"""AlpacaEval 2's published numbers from GPT-4's own annotations."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.evaluation.alpaca.annotations import Annotations, read_annotations
from src.evaluation.alpaca.benchmark import AlpacaEval
from src.evaluation.alpaca.reference import Reference, read_reference
from src.evaluation.alpaca.scores import PUBLISHED_ROWS, Rules, scores_of
from src.evaluation.alpaca.stored import score_stored
from src.evaluation.judges.base import Judged
from src.generation.client import Completion
from tests.support import ROOT

DATA = ROOT.parent / "shared" / "data" / "alpaca"
FILES = {
    "reference_outputs": str(DATA / "alpaca_eval_gpt4_baseline.json.gz"),
    "gamed_annotations": str(DATA / "df_gamed_reconstructed.csv.gz"),
    "instruction_difficulty": str(DATA / "instruction_difficulty_recovered.csv.gz"),
}
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"GPT-4's annotations are not at {DATA}")


@lru_cache(maxsize=1)
def data() -> tuple[Reference, dict[str, Annotations], dict[str, Any]]:
    reference = read_reference(FILES, Path("unused"))
    found = list(read_annotations([str(DATA / "annotations_slim.jsonl.gz")], reference))
    models = {one.model: one for one in found if isinstance(one, Annotations)}
    with gzip.open(DATA / "alpaca_truth.json.gz") as file:
        truth = json.load(file)["models"]
    assert len(models) == len(found) == len(truth) == 30
    return reference, models, truth


def test_all_models_equal_the_leaderboard_with_its_regularization() -> None:
    reference, models, truth = data()
    rules = Rules({name: one.get("C_published") for name, one in truth.items()})
    for name, stored in models.items():
        scores = scores_of(stored, reference, rules)
        published = truth[name]["published"]
        value = {key: metric["value"] for key, metric in scores.metrics.items()}
        for key in ("win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate", "n_total"):
            assert value[key] == pytest.approx(published[key], abs=1e-6), (name, key)
        for key in ("n_wins", "n_wins_base", "n_draws", "avg_length"):
            assert value[key] == truth[name][key], (name, key)
        assert bool(scores.notes) == (published["n_total"] != 805)


@pytest.mark.parametrize("name", ["gpt-3.5-turbo-1106", "alpaca-7b_concise", "FuseChat-Gemma-2-9B-Instruct"])
def test_cross_validation_chooses_what_the_leaderboard_might_have(name: str) -> None:
    reference, models, truth = data()
    scores = scores_of(models[name], reference, Rules())
    value = scores.metrics["length_controlled_winrate"]["value"]
    assert value == pytest.approx(truth[name]["lc_auto"], abs=1e-6)
    assert value == pytest.approx(truth[name]["published"]["length_controlled_winrate"], abs=0.16)
    assert scores.details["regularization"]["C"] == pytest.approx(truth[name]["C_auto"])


def test_every_stored_preference_follows_from_its_logprobs(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"regularization": None, "missing_rows": "error", "cache_root": "unused", "output": "json"}
    config: Any = SimpleNamespace(**FILES, **own, annotations=str(DATA / "judge_logprobs.jsonl.gz"))
    assert score_stored(config) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["model"]: one["n_total"] for one in found} == {"claude-2.1": 803, "vicuna-13b-v1.5-togetherai": 800}
    assert sum(one["counts"]["reproduced"] for one in found) == 1603
    assert all(one["length_controlled_winrate"] is None for one in found)


def test_the_table_of_incomplete_models_is_the_leaderboard_s() -> None:
    import csv

    with gzip.open(DATA / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv.gz", "rt") as file:
        rows = {row[""]: int(float(row["n_total"])) for row in csv.DictReader(file)}
    assert len(rows) > 200
    assert {name: count for name, count in rows.items() if count != 805} == PUBLISHED_ROWS


def test_stored_answers_and_gpt4_s_own_logprobs_give_the_published_numbers_through_the_live_path() -> None:
    reference, _, truth = data()
    benchmark = AlpacaEval(reference)
    name, outputs = benchmark.read_outputs(DATA / "model_outputs" / "vicuna-13b-v1.5-togetherai.json.gz")
    with gzip.open(DATA / "judge_logprobs.jsonl.gz") as file:
        stored = {row["instr_index"]: row for row in map(json.loads, file) if row["model"] == name}
    requests = benchmark.requests(outputs)
    assert {int(request.id) for request in requests} == set(stored)  # five answers equal the baseline's
    answers = [Completion("m", "length", logprobs=stored[int(one.id)]["logprobs"]["content"]) for one in requests]
    scores = benchmark.score(outputs, [Judged(*one) for one in zip(requests, ((a,) for a in answers), strict=True)])
    assert scores.counts["equal_answers"] == 5
    for key in ("win_rate", "standard_error", "n_draws", "length_controlled_winrate"):
        value = truth[name]["lc_auto"] if key.startswith("length") else truth[name][key]
        assert scores.metrics[key]["value"] == pytest.approx(value, abs=1e-6), key
