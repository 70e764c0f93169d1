"""Benchmarks of steps at a size of nothing: the same work is compared, and what is reported is what was measured."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import (
    against_trl,
    end_to_end,
    gapo_fidelity,
    gpu_8b,
    growth,
    paired,
    startup,
    step_cost,
    step_cost_variants,
)
from benchmarks.workloads import SHAPES, Lengths, drawn, model_of, own
from src.config import ROOT
from src.data.pairs import prompt_from_json
from src.data.splits import split_of
from src.model.compiled import compile_blocks


def test_each_repetition_begins_with_another_step_on_new_pairs() -> None:
    seen: list[tuple[str, int]] = []

    def step(name: str) -> paired.Step:
        def run(seed: int) -> float:
            seen.append((name, seed))
            return float(seed)

        return run

    samples = paired.interleaved({name: step(name) for name in "abc"}, lambda seed: seed, 2, warm=-1)
    assert seen == [*((name, -1) for name in "abc"), *((name, 0) for name in "abc"), ("b", 1), ("c", 1), ("a", 1)]
    assert [sample.loss for sample in samples["b"]] == [0.0, 1.0]


def test_a_ratio_is_the_median_of_repetitions() -> None:
    def samples(*seconds: float) -> list[paired.Sample]:
        return [paired.Sample(second, 2 * second, 0.0) for second in seconds]

    found = paired.ratio({"a": samples(2, 9, 4), "b": samples(1, 3, 1)}, "a", "b")
    assert (found.median, found.low, found.high) == (3, 2, 4)


def test_techniques_switched_off_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost_variants, "compile_blocks", partial(compile_blocks, backend="eager"))  # in no time
    size = step_cost.Size(("nano",), False, (), (), (8, 4, 16), 1)
    found = step_cost.techniques(size)["by"]
    assert set(found) == {"simpo, nano", "dpo, nano"}
    assert set(found["simpo, nano"]["ratios"]) > {
        "program",
        "no shared prefix",
        "no fused head",
        "nothing (papers' code)",
    }
    assert all(one["loss_difference"] < 1e-5 for one in found.values())
    assert "no shared prefix" in step_cost.page({"techniques": {"made": paired.report("step_cost", []), "by": found}})


def test_methods_are_compared_on_the_same_pairs() -> None:
    found = step_cost.relative(["simpo", "simpo again", "amapo", "kto", "sft"], "nano", 2, 1, step_cost.QUICK)
    assert found["samples"]["simpo"]["loss"] == found["samples"]["simpo again"]["loss"]
    assert found["ratios"]["simpo"] == [1, 1, 1]


def test_agreement_of_gaps_follows_from_products_of_gradients() -> None:
    torch.manual_seed(0)
    own, mine, other = torch.randn(5, 30).double(), torch.rand(5), torch.rand(5)
    products, mean = own @ own.t(), own.mean(0)
    slopes = own @ mean / mean.norm()
    assert torch.allclose(gapo_fidelity.slopes_of(products), slopes)
    assert float(gapo_fidelity.streamed_slopes(products)[-1]) == pytest.approx(float(slopes[-1]))
    updates = mine.double() @ own, other.double() @ own
    wanted = float(torch.cosine_similarity(*updates, dim=0))
    assert gapo_fidelity.cosine(mine, other, products) == pytest.approx(wanted)


def test_trl_computes_the_same_losses() -> None:
    case = against_trl.QUICK["quick"]
    found = against_trl.times(case, 1)
    assert found["loss_difference"] < 1e-4
    assert found["samples"]["trl_dpo"]["loss"][0] == pytest.approx(0.693147, abs=1e-4)
    one = {"case": {"prompt": 8, "shortest": 4, "longest": 16}, "time": found, "targets": {}}
    assert "| quick | 8 : 4–16 | 1 |" in against_trl.page({"cases": {"quick": one}})


def test_targets_say_what_was_missed() -> None:
    case = against_trl.Case("S32k", faster=(("trl_cpo", 1.9), ("trl_dpo", 2.3)), memory=0.4)
    ratios = {"cpu": {"trl_cpo": [1.95, 1.9, 2.0], "trl_dpo": [2.2, 2.0, 2.5]}}
    shares = {"trl_cpo": 0.41, "trl_dpo": 0.1, "trl_dpo_precomputed": 0.4}
    found = against_trl.targets(case, {"time": {"ratios": ratios}, "memory": {"share": shares}})
    assert {name for name, target in found.items() if not target["met"]} == {"time/trl_dpo", "memory/trl_cpo"}


def test_a_line_is_found() -> None:
    found = growth.fitted([1, 2, 4, 8, 16], [0.5 + 0.25 * size for size in (1, 2, 4, 8, 16)])
    assert (found["fixed_s"], found["each_s"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert found["explained"] == pytest.approx(1)
    assert growth.fitted([1, 2, 4], [3, 6, 12])["power"] == pytest.approx(1)


def test_growth_is_measured_at_every_size(tmp_path: Path) -> None:
    found = {
        part: {"made": paired.report("growth", []), **growth.series(part, 1, True)} for part in ("pairs", "prompt")
    }
    assert found["pairs"]["lines"]["packed"]["sizes"] == [1, 2, 4, 8, 16]
    assert set(found["prompt"]["lines"]) == {"packed", "padded"}
    paired.write("growth", found, growth.page(found), tmp_path)
    growth.draw(found, tmp_path)
    assert json.loads((tmp_path / "growth.json").read_text())["pairs"]["lines"]
    assert "</svg>" in (tmp_path / "growth.svg").read_text()


def test_the_head_holds_no_more_for_more_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.model.head.chunk_tokens", lambda *_: 32)
    monkeypatch.setattr(growth, "FACTORS", (2, 4, 8))
    found = growth.head(True)
    assert found["ratio"] < 1.5 < found["logits_of_all_mib"][-1] / found["logits_of_all_mib"][0]


def test_weights_stay_where_nothing_is_updated() -> None:
    shape, draw = SHAPES["nano"], drawn(2, SHAPES["nano"], Lengths(4, 2, 4))
    for updates in (False, True):
        model = model_of(shape)
        before = model.lm_head.weight.detach().clone()
        own("simpo", model, "training.learning_rate=0.1", updates=updates)(draw(0))
        assert torch.equal(before, model.lm_head.weight) is not updates
        assert model.lm_head.weight.grad is None


def test_gpu_pairs_fit_their_rows_and_budgets() -> None:
    pairs = gpu_8b.chat_pairs(64, 128, 0)
    assert all(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) <= gpu_8b.LONGEST for p in pairs)
    parts = gpu_8b.within_budget(pairs, 7168)
    assert sorted(pair.id for part in parts for pair in part) == sorted(pair.id for pair in pairs)
    assert all(sum(map(gpu_8b.tokens_of, part)) <= 7168 for part in parts if len(part) > 1)
    # 6 FLOPs for each of 8.03B parameters but the embedding's and each token, were all of them responses' tokens
    tokens = sum(map(gpu_8b.tokens_of, pairs))
    assert 0.9 < gpu_8b.useful_flops(pairs, 32) / (6 * 7.5e9 * tokens) < 1.1


def test_gpu_benchmark_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_8b"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_8b.main() == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_gpu_targets_compare_the_best_of_each() -> None:
    def entry(side: str, rate: float, updates: bool = False) -> dict[str, object]:
        return {"side": side, "method": "dpo", "updates": updates, "pairs_per_second": rate, "utilisation": rate / 20}

    found = gpu_8b.reached(
        [
            entry("own", 6),
            entry("own", 9, True),
            entry("trl", 3),
            entry("trl", 4),
            {"side": "trl", "method": "dpo", "updates": False, "failed": ["out of memory"]},
        ]
    )
    assert found["dpo, times TRL at its best"]["measured"] == 1.5
    assert found["full fine-tune fits"]
    assert found["utilisation"]["measured"] == 0.45


def test_start_ups_are_compared_between_checkouts(tmp_path: Path) -> None:
    assert paired.report("startup", [])["environment"]["commit"].startswith(startup.commit_of(ROOT))
    sample = startup.started("help", ROOT, tmp_path, 80)
    assert 0 < sample["cpu_s"] < sample["wall_s"] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "EXIT_CODES", {})
        with pytest.raises(RuntimeError, match=r"refused in .* failed:\nerror: unknown key"):
            startup.started("refused", ROOT, tmp_path, 80)
    seconds = {case: {"a": [sample | {"cpu_s": 2.0}], "b": [sample | {"cpu_s": 1.0}]} for case in startup.CASES}
    seconds["sweep"]["b"] = [sample | {"cpu_s": 4.0}]
    page = startup.page({"made": paired.report("startup", []), "prompts": 80, "roots": ["a", "b"], "seconds": seconds})
    assert "| plan | b | 1.00 |" in page
    assert "0.50 [0.50–0.50] |" in page
    assert "One more run of a sweep costs 1.50 s" in page


def test_whole_programs_are_given_the_same_task(tmp_path: Path) -> None:
    end_to_end.make_task(tmp_path, "nano", 3)
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["train-0", "train-1", "train-2", "validation-0"]
    fraction = f"dataset.validation_fraction={end_to_end.HELD_OUT}"
    ours, theirs = (
        end_to_end.command(name, tmp_path, tmp_path / "out", 3) for name in ("own dpo", "trl dpo precomputed")
    )
    assert {f"dataset.source.path={tmp_path}/pairs.jsonl", fraction} <= set(ours)
    splits = [split_of(prompt_from_json(line["prompt"]), end_to_end.HELD_OUT, 0) for line in lines]
    assert splits == ["train", "train", "train", "validation"]
    assert theirs[2:5] == ["benchmarks.end_to_end_trl", "dpo", "precomputed"]
