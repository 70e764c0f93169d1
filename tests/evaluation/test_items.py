"""Values of single items: their mean is the metric in every benchmark, and their ids are those of the questions."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import UserError
from src.evaluation.arena.scores import Duel, ModelDuels
from src.evaluation.arena.scores import score as arena_score
from src.evaluation.arena.verdicts import RULES
from src.evaluation.benchmark import Scores
from src.evaluation.harness.items import items_of as harness_items
from src.evaluation.harness.metrics import all_metrics
from src.evaluation.harness.suites import Member, Suite, Wanted
from src.evaluation.items import cluster_of, content_of, mean_of_means, ratio_items, read_items
from src.evaluation.lists.scoring import ListRules, RewardedResponses
from src.evaluation.lists.scoring import score as lists_score
from src.evaluation.mtbench.ratings import Judgment
from src.evaluation.mtbench.ratings import score as mt_bench_score
from src.evaluation.ranks.scoring import score_rows
from src.evaluation.rmbench.items import OFFICIAL, Kept
from src.evaluation.rmbench.scores import ScoredItem, scores_of


def assert_means(scores: Scores, *names: str) -> None:
    """The named metrics have items, and every metric's items have it as their mean."""
    assert set(names) <= set(scores.items)
    for name, items in scores.items.items():
        assert np.mean(list(items.values())) == pytest.approx(scores.metrics[name]["value"], abs=1e-5), name


def test_ratios_and_means_of_means_are_linearized() -> None:
    above, below = np.array([1.0, 0.0, 4.0]), np.array([2.0, 1.0, 5.0])
    values = ratio_items(above, below)
    assert values.mean() == pytest.approx(5 / 8)
    assert ratio_items(above, np.ones(3)) == pytest.approx(above)
    assert np.isnan(ratio_items(above, np.zeros(3))).all()
    groups = [{"a": 1.0, "b": 0.0, "c": 0.0}, {"d": 1.0}]
    assert np.mean(list(mean_of_means(groups).values())) == pytest.approx((1 / 3 + 1) / 2)
    assert mean_of_means([{"a": 1.0}, {}]) == {}
    assert mean_of_means([]) == {}


def test_linearized_items_have_the_spread_of_the_ratio() -> None:
    """The bootstrap of their mean is, to first order, that of the ratio itself."""
    rng = np.random.default_rng(0)
    below = rng.integers(1, 6, 400).astype(float)
    above = rng.binomial(below.astype(int), 0.6).astype(float)
    values = ratio_items(above, below)
    drawn = rng.integers(400, size=(4000, 400))
    ratios = above[drawn].sum(1) / below[drawn].sum(1)
    assert values[drawn].mean(1).std() == pytest.approx(ratios.std(), rel=0.02)


def test_alpaca_eval_has_preferences_and_fitted_values() -> None:
    pytest.importorskip("alpaca_eval")
    from src.evaluation.alpaca.annotations import Annotations, Row
    from src.evaluation.alpaca.scores import Rules
    from src.evaluation.alpaca.scores import scores_of as alpaca_scores
    from src.evaluation.alpaca.toy import toy_reference

    reference, rng = toy_reference().first(60), random.Random(0)
    preferences = [0.0, None, *(rng.uniform(1, 2) for _ in range(58))]
    rows = tuple(Row(place, value, 80, rng.randint(40, 120)) for place, value in enumerate(preferences))
    scores = alpaca_scores(Annotations("m", "m", None, rows, "here"), reference, Rules(regularization=0.2))
    assert_means(scores, "win_rate", "length_controlled_winrate")
    assert scores.items["win_rate"]["000"] == 50.0
    assert "001" not in scores.items["win_rate"]
    assert len(scores.items["length_controlled_winrate"]) == 60


def test_the_length_controlled_win_rate_is_as_uncertain_as_fits_to_drawn_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fitted preferences alone hardly differ: they would make every difference certain."""
    pytest.importorskip("alpaca_eval")
    from alpaca_eval.metrics.glm_winrate import fit_LogisticRegressionCV

    from src.evaluation.alpaca import scores as alpaca
    from src.evaluation.alpaca.annotations import Annotations, Row
    from src.evaluation.alpaca.linear import equal_lengths
    from src.evaluation.alpaca.package import Fit, quiet
    from src.evaluation.alpaca.toy import toy_reference

    fits: list[Fit] = []
    linear_values = alpaca.linear_values
    monkeypatch.setattr(alpaca, "linear_values", lambda *given: fits.append(given[2]) or linear_values(*given))
    reference, rng = toy_reference(), random.Random(1)
    rows = []
    for place in range(count := len(reference.questions)):
        length = rng.randint(20, 160)
        rows.append(Row(place, 1 + 1 / (1 + math.exp(0.6 - math.tanh(length / 40 - 2) - rng.gauss(0, 1))), 80, length))
    scores = alpaca.scores_of(
        Annotations("m", "m", None, tuple(rows), "x"), reference, alpaca.Rules(regularization=1.0)
    )
    values = np.array(list(scores.items["length_controlled_winrate"].values()))
    data, weights, refitted = fits[0].data.reset_index(drop=True), np.asarray(fits[0].weights), []
    gamed, own, draw = np.arange(len(data) - count), np.arange(len(data) - count, len(data)), np.random.default_rng(0)
    for _ in range(60):
        chosen = np.concatenate([gamed, draw.choice(own, count)])
        with quiet():
            again = data.iloc[chosen].reset_index(drop=True)
            model = fit_LogisticRegressionCV(
                again, "preference", is_ytrue_proba=True, sample_weight=weights[chosen], n_splits=0, C=1.0
            )
        refitted.append(100 * (1 / (1 + np.exp(-equal_lengths(again)[-count:] @ model.coef_[0]))).mean())
    error = values.std() / math.sqrt(count)
    assert error == pytest.approx(np.std(refitted), rel=0.3)
    assert error > 3 * (scores.metrics["lc_standard_error"]["value"] or 0.0)


def test_arena_hard_has_the_share_of_each_questions_battles() -> None:
    duels = (Duel("a", (1.0, 1.0, 1.0, 0.0), True), Duel("b", (0.5, 0.0), True), Duel("c", (), False))
    (scores,) = arena_score([ModelDuels("m", None, duels)], RULES["v0.1"], 0, 42, "base")
    assert_means(scores, "score")
    assert set(scores.items["score"]) == {"a", "b"}


def test_mt_bench_has_every_turn_and_draws_turns_of_a_question_together() -> None:
    judgments = [
        Judgment("81", 1, "[[7]]"),
        Judgment("81", 2, "[[4]]"),
        Judgment("82", 1, "[[9]]"),
        Judgment("82", 2, "?"),
    ]
    scores = mt_bench_score(judgments, {"81": "x", "82": "y"}, 2)
    assert scores.items["overall"] == {"81#1": 7.0, "81#2": 4.0, "82#1": 9.0}
    assert_means(scores, "overall", "first_turn", "second_turn")
    assert {cluster_of(item) for item in scores.items["overall"]} == {"81", "82"}


def test_lm_harness_has_documents_groups_and_suites(tmp_path: Path) -> None:
    rng, results, files = random.Random(0), {}, {}
    for task, size in (("easy", 5), ("hard_a", 3), ("hard_b", 9)):
        values = [float(rng.random() < 0.5) for _ in range(size)]
        path = tmp_path / f"{task}.jsonl"
        lines = [
            {"doc_id": n, "doc": {}, "resps": [["x"]], "filter": "none", "metrics": ["acc", "odd"], "acc": v, "odd": v}
            for n, v in enumerate(values)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files[task] = path
        results[task] = {"acc,none": sum(values) / size, "odd,none": 17.0, "sample_len": size}
    pooled = sum(results[task]["acc,none"] * results[task]["sample_len"] for task in ("hard_a", "hard_b")) / 12
    group = {"hard": {"acc,none": pooled, "sample_len": 12}, "hard_a": results["hard_a"], "hard_b": results["hard_b"]}
    members = (Member(Wanted("easy"), ("acc",)), Member(Wanted("hard"), ("acc",)))
    suite = Suite("both", "test", True, members)
    metrics, _ = all_metrics([("easy", {"easy": results["easy"]}), ("hard", group)], [suite])
    asked = {"easy": {"easy": files["easy"]}, "hard": {name: files[name] for name in ("hard_a", "hard_b")}}
    items = harness_items(asked, [suite], metrics)
    assert set(items) == {"easy/acc", "hard/acc", "both/average"}  # "odd" is no mean of its documents
    assert_means(Scores(metrics, items=items))
    assert set(items["both/average"]) == set(items["easy/acc"]) | set(items["hard/acc"])
    assert "easy:0" in items["easy/acc"]


def test_rm_bench_has_the_levels_of_every_item() -> None:
    rng = random.Random(0)
    items = [
        ScoredItem(part, tuple(rng.random() for _ in range(3)), tuple(rng.random() for _ in range(3)), f"i{n}")
        for part in OFFICIAL.parts
        for n in range(rng.randint(2, 9))
    ]
    scores = scores_of(items, OFFICIAL, Kept([]))
    assert_means(
        scores, "overall", "overall/hard_acc", "overall/normal_acc", "overall/easy_acc", "chat", "math/hard_acc"
    )
    assert set(scores.items["chat"]) <= {f"chat:i{n}" for n in range(9)}
    some = [item for item in items if item.part != "math"]
    present = scores_of(some, OFFICIAL, Kept([]))
    assert_means(present, "mean_of_present_domains")
    assert "overall" not in present.items


def test_ranking_has_every_pair_and_draws_pairs_of_a_prompt_together() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt_id": "p", "chosen_reward": 1.0, "rejected_reward": 0.0, "flipped": False},
        {"id": "b", "prompt_id": "p", "chosen_reward": 0.0, "rejected_reward": 0.0, "flipped": True},
        {"id": "c", "prompt_id": "q", "chosen_reward": 2.0, "rejected_reward": 0.0, "flipped": False},
    ]
    scores = score_rows(rows)
    assert scores.items["accuracy/reward"] == {"a#a": 1.0, "a#b": 0.0, "c#c": 1.0}
    assert_means(scores, "accuracy/reward", "accuracy/reward_clean", "accuracy/reward_flipped")
    gaps = [{**row, "chosen_score": gap, "rejected_score": 0.0} for row, gap in zip(rows, (3.0, 1.0, 4.0), strict=True)]
    assert set(score_rows(gaps, 2.0).items["accuracy/reward"]) == {"a#a", "c#c"}


def test_lists_have_every_prompt() -> None:
    rng = random.Random(0)
    lists = []
    for number in range(20):
        truth, rewards = zip(*((float(rng.randint(0, 4)), rng.random()) for _ in range(4)), strict=True)
        lists.append(RewardedResponses(f"p{number}", truth, rewards))
    scores = lists_score(lists, ListRules())
    assert_means(scores, "ndcg@1", "kendall_tau_b", "best_of_2", "best_of_2/gain", "best_of_all")
    assert set(scores.items["kendall_tau_b"]) <= {f"p{n}" for n in range(20)}


def test_ids_do_not_depend_on_the_model() -> None:
    """Two models that rank the same pairs have the same ids, whatever they say."""
    rows = [
        [
            {"id": f"r{n}", "prompt_id": f"{name}{n // 2}", "chosen_reward": sign * n, "rejected_reward": 3.0}
            for n in range(6)
        ]
        for name, sign in (("p", 1), ("other tokenizer ", -1))
    ]
    first, second = (score_rows(own).items["accuracy/reward"] for own in rows)
    assert set(first) == set(second)


def test_items_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        content_of({"m": {"a": float("nan")}})
    with pytest.raises(UserError, match="cannot be read"):
        read_items(tmp_path / "none.json.gz", "0")


def test_scores_without_items_are_scores() -> None:
    assert replace(Scores({}), notes=("x",)).items == {}
