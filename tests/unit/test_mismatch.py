"""Mismatched pairs: whose responses a prompt gets, what is stored of them, and whole runs of KTO."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.config import compose_train
from src.data.mismatch import MismatchedPairs
from src.data.pairset import TokenizedPair
from src.errors import UserError
from src.evaluation.ranking import rank
from src.model.logps import pair_log_probs
from src.schema import RankingConfig, TrainConfig
from src.training import loop as loop_module
from src.training import run as runs
from src.training.assemble import build_objective
from src.training.loop import Loop
from src.training.step import training_step, validate
from tests.support import SMALL_RUN, metrics, places


def pair(index: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedPair:
    return TokenizedPair(index, f"p{index}", prompt, chosen, rejected, 4.0, 2.0, False)


PAIRS = [
    pair(0, [1, 2], [10, 11, 12], [13]),
    pair(1, [1, 2], [14], [15, 16]),  # the same prompt again: two pairs of one prompt stand together
    pair(2, [3, 4, 5], [20, 21, 22, 23], [24, 25]),
    pair(3, [6], [30], [31, 32, 33, 34, 35]),
    pair(4, [1, 2], [40], [41]),
]


def test_responses_are_those_of_the_next_pair_with_another_prompt() -> None:
    found = list(MismatchedPairs(PAIRS, 100))
    lent = {index: PAIRS[other] for index, other in ((0, 2), (1, 2), (2, 3), (3, 4), (4, 2))}
    assert [one.prompt_ids for one in found] == [one.prompt_ids for one in PAIRS]
    for index, one in enumerate(found):
        assert (one.chosen_ids, one.rejected_ids) == (lent[index].chosen_ids, lent[index].rejected_ids), index
        assert lent[index].prompt_ids != one.prompt_ids
    # 4 wraps over 0 and 1, which share its prompt
    assert found == list(MismatchedPairs(PAIRS, 100)), "nothing is drawn"
    assert MismatchedPairs(PAIRS, 100)[-1] == found[4]


def test_responses_are_cut_to_the_longest_row() -> None:
    found = MismatchedPairs(PAIRS, 5)
    assert found[2].chosen_ids == [30]
    assert found[2].rejected_ids == [31, 32], "3 + 2 tokens"
    assert found[0].chosen_ids == [20, 21, 22]
    assert found[3].prompt_ids == [6], "prompts are never cut"
    assert all(len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids)) <= 5 for one in found)


def test_data_of_one_prompt_is_refused() -> None:
    lone = [replace(one, prompt_ids=[1, 2]) for one in PAIRS]
    with pytest.raises(UserError, match=r"all 5 pairs of a split have the same prompt.*kto_swapped"):
        MismatchedPairs(lone, 100)[3]
    with pytest.raises(UserError, match="have the same prompt"):
        MismatchedPairs(lone, 100).refuse_one_prompt()
    MismatchedPairs(PAIRS, 100).refuse_one_prompt()


def test_data_of_one_prompt_is_refused_before_a_model_is_made(tmp_path: Path) -> None:
    record = {"chosen": "yes", "rejected": "no"}
    prompts = ["lone"] + [f"prompt {index}" for index in range(30)]
    lines = [json.dumps({"id": str(index), "prompt": prompt, **record}) for index, prompt in enumerate(prompts)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    options = ("dataset=local", f"dataset.source.path={tmp_path / 'pairs.jsonl'}", "dataset.validation_fraction=0.01")
    given = [value for value in SMALL_RUN if not value.startswith("dataset")]
    config = compose_train([*given, *places(tmp_path), "method=kto", *options])
    with pytest.raises(UserError, match="pairs of a split have the same prompt"):
        runs.run_data(config, build_objective(config))


def configured(tmp_path: Path, *more: str) -> TrainConfig:
    return compose_train([*SMALL_RUN, *places(tmp_path), "training.max_steps=6", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests below share prepared data and reference log-probs."""
    return tmp_path_factory.mktemp("mismatch")


def assembled(folder: Path, *more: str) -> Loop:
    config = configured(folder, *more)
    directory = folder / str(len(list(folder.iterdir())))
    directory.mkdir()
    return runs.assemble(directory, config, build_objective(config), runs.Base())


def test_batches_carry_mismatched_responses_with_their_reference(folder: Path) -> None:
    loop = assembled(folder, "method=kto")
    batches = [*loop.loader.window(0), *loop.loader.window(5), *loop.loader.validation()]
    for batch in batches:
        assert batch.mismatched is not None
        assert batch.mismatched.reference is not None
        assert len(batch.mismatched) == len(batch)
        assert all(mine.startswith(f"{own} with") for mine, own in zip(batch.mismatched.ids, batch.ids, strict=True))
        with torch.no_grad():
            live = pair_log_probs(loop.engine.model, batch.mismatched)  # type: ignore[attr-defined]
        for side in ("chosen", "rejected"):
            stored, now = getattr(batch.mismatched.reference, side), getattr(live, side)
            torch.testing.assert_close(stored.summed, now.summed, rtol=1e-5, atol=1e-4)
            assert torch.equal(stored.tokens, now.tokens)
    assert not any(batch.mismatched for batch in assembled(folder, "method=dpo").loader.window(0))


def test_a_wrong_store_of_mismatched_pairs_is_refused(tmp_path: Path) -> None:
    assert runs.train(configured(tmp_path, "method=kto", "training.max_steps=1", "model.dtype=bfloat16")) == 0
    own = assembled(tmp_path, "method=dpo", "model.dtype=bfloat16").loader.train_reference  # type: ignore[attr-defined]
    changed = 0
    for path in (tmp_path / "cache" / "reference").iterdir():
        values = load_file(path)
        if values["chosen_tokens"].shape == own.log_probs.chosen.tokens.shape and not torch.equal(
            values["chosen_tokens"], own.log_probs.chosen.tokens
        ):
            save_file({name: value - 5 if "summed" in name else value for name, value in values.items()}, path)
            changed += 1
    assert changed == 1
    with pytest.raises(UserError, match="differ from the untrained policy"):
        runs.train(configured(tmp_path, "method=kto", "training.max_steps=2", "model.dtype=bfloat16"))


def test_untrained_policy_has_no_drift_and_a_trained_one_some(folder: Path) -> None:
    loop = assembled(folder, "method=kto", "training.learning_rate=1e-2", "training.warmup_ratio=0.0")
    points = []
    for step in range(6):
        output = training_step(loop.engine, loop.objective, {}, loop.loader.window(step), 1.0)
        points.append(output.pair_metrics["target/mean"])
    assert points[0].abs().max() < 1e-4
    assert max(float(point.max()) for point in points) > 1e-3
    for point in points:
        for forward in point.split(4):
            assert forward.unique().numel() == 1, "one point per forward"


def test_mismatched_forwards_are_made_once_and_hold_no_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window-wide scope looks at mismatched responses in its first pass alone."""
    for statistics, expected in (("forward", 2), ("window", 2)):
        loop = assembled(folder, "method=kto", f"method.statistics={statistics}")
        calls: list[tuple[bool, bool]] = []
        for name in ("log_probs", "pair_loss"):
            real = getattr(loop.engine, name)

            def counted(batch: Any, *rest: Any, real: Any = real, calls: Any = calls, **options: bool) -> Any:
                calls.append(("with the responses" in batch.ids[0], torch.is_grad_enabled()))
                return real(batch, *rest, **options)

            monkeypatch.setattr(loop.engine, name, counted)
        training_step(loop.engine, loop.objective, {}, loop.loader.window(0), 1.0)
        assert [graph for mismatched, graph in calls if mismatched] == [False] * expected
        assert calls.count((False, True)) == 2


def test_training_lowers_the_loss_and_resumes_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("method=kto", "method.statistics=8", "training.max_pairs=16", "training.learning_rate=1e-2")
    assert runs.train(configured(tmp_path, *options, f"run_dir={tmp_path / 'whole'}")) == 0
    lines = metrics(tmp_path / "whole", "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"] - 1e-3
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    said = capsys.readouterr().err
    assert "mismatched train pairs once" in said
    assert "mismatched validation pairs once" in said
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 4

    config, taken = configured(tmp_path, *options, f"run_dir={tmp_path / 'cut'}"), []

    def stopped_after_three(*given: Any) -> Any:
        taken.append(training_step(*given))
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return taken[-1]

    monkeypatch.setattr(loop_module, "training_step", stopped_after_three)
    assert runs.train(config) == 75
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["step"] == 3
    assert runs.train(config) == 0
    assert len(taken) == 6, "no step was taken twice"
    assert "computing those of" not in capsys.readouterr().err, "reference log-probs are there, mismatched ones too"
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    last = Path("checkpoints") / "last" / "model" / "model.safetensors"
    whole, cut = load_file(tmp_path / "whole" / last), load_file(tmp_path / "cut" / last)
    assert whole
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def worst(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Largest difference of two trajectories; rewards are held against the log-probs they are differences of."""

    def scale(row: dict[str, float], name: str) -> float:
        return abs(row["logps/chosen"]) if name.startswith(("rewards", "target")) else abs(row[name])

    return max(abs(a[name] - b[name]) / scale(a, name) for a, b in zip(one, other, strict=True) for name in a)


def trajectory(folder: Path, *more: str) -> list[dict[str, float]]:
    loop = assembled(folder, "training.learning_rate=1e-2", "training.adam_epsilon=1e-3", *more)
    rows = []
    for step in range(3):
        output = training_step(loop.engine, loop.objective, {}, loop.loader.window(step), 1.0)
        assert output.gradient_norm is not None
        numbers = {name: value.double().mean().item() for name, value in output.pair_metrics.items()}
        numbers.pop("rewards/accuracies")  # in the first window every margin is 0 but for rounding
        rows.append(numbers | {"loss": output.loss.item(), "norm": output.gradient_norm.item()})
    return [*rows, {"validation": validate(loop.engine, loop.objective, {}, loop.loader.validation()).loss.item()}]


@pytest.mark.parametrize("method", ["kto", "kto_swapped"])
def test_a_window_wide_point_does_not_depend_on_the_cut(folder: Path, method: str) -> None:
    options = (f"method={method}", "method.statistics=window")
    whole = trajectory(folder, *options, "training.micro_batch_size=8")
    assert whole[2]["target/mean"] > 1e-3, "there is something to depend on"
    for size in (1, 4):
        cut = trajectory(folder, *options, f"training.micro_batch_size={size}")
        assert worst(whole, cut) < 2e-6, size


def test_a_point_of_the_forward_does_depend_on_the_cut(folder: Path) -> None:
    whole = trajectory(folder, "method=kto", "training.micro_batch_size=8")
    assert worst(whole, trajectory(folder, "method=kto", "training.micro_batch_size=1")) > 1e-3


def test_pairs_have_the_same_partner_in_whatever_window_they_come(folder: Path) -> None:
    found: dict[str, str] = {}
    for seed in (0, 1):
        loop = assembled(folder, "method=kto", f"seed={seed}")
        for step in range(20):
            for batch in loop.loader.window(step):
                assert batch.mismatched is not None
                for own, lent in zip(batch.ids, batch.mismatched.ids, strict=True):
                    assert found.setdefault(own, lent) == lent
    assert len(found) > 50


@pytest.mark.parametrize(
    "options",
    [
        ("method=alphapo_token",),
        ("method=sft", "method.normalization=prompt_and_chosen"),
        ("method=kto_swapped",),
    ],
    ids=lambda options: "-".join(options),
)
def test_further_inputs_reach_their_parts_in_a_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    config = configured(tmp_path, *options, "training.max_pairs=8", "training.learning_rate=1e-2")
    assert runs.train(config) == 0
    lines = metrics(runs.planned_directory(config), "train")
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_prompt_tokens_are_counted_over_the_window(folder: Path) -> None:
    """Forwards of any size add up to cross-entropy over all rows of the window."""
    losses = []
    for size in (8, 2, 1):
        options = ("method=sft", "method.normalization=prompt_and_chosen", f"training.micro_batch_size={size}")
        loop = assembled(folder, *options)
        window = loop.loader.window(0)
        with torch.no_grad():
            parts = [pair_log_probs(loop.engine.model, batch, prompt=True) for batch in window]  # type: ignore[attr-defined]
        sides = [side for part in parts for side in (part.chosen, part.prompt) if side is not None]
        summed, tokens = (sum(getattr(side, name).sum().item() for side in sides) for name in ("summed", "tokens"))
        losses.append(training_step(loop.engine, loop.objective, {}, window, 1.0).loss.item())
        assert losses[-1] == pytest.approx(-summed / tokens, rel=1e-6)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_rewards_of_tokens_rank_too(tmp_path: Path) -> None:
    config = configured(tmp_path, "method=alphapo_token", f"run_dir={tmp_path / 'run'}")
    assert runs.train(config) == 0
    record, *_ = rank(
        RankingConfig(
            checkpoint=str(tmp_path / "run"),
            split="validation",
            which="last",
            micro_batch_size=4,
            device="cpu",
            output_root=str(tmp_path),
        )
    )
    line = metrics(tmp_path / "run", "validation")[-1]
    assert record.metrics["accuracy/reward"]["value"] == pytest.approx(line["rewards/accuracies"])
