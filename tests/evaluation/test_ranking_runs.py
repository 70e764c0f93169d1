"""Ranking and listwise ranking of a trained run: what is kept, what a kill loses, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.data.splits import split_of
from src.data.toy.source import ToySource
from src.evaluation.rewards import LogProbScorer
from tests.entry import Outcome, assert_says, call, refused
from tests.support import SMALL_RUN, metrics, places

RANKING, LISTWISE = "src.evaluation.ranking", "src.evaluation.listwise"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO run that started from its SFT base."""
    folder = tmp_path_factory.mktemp("ranked")
    outcome = call("src.train", "method=dpo", *SMALL_RUN, "model.init=sft", "noise=random_flip", *places(folder))
    assert outcome.code == 0, outcome.err
    (directory,) = (folder / "runs").glob("dpo__*")
    return directory


def kept(folder: Path) -> list[str]:
    return [f"output_root={folder / 'kept'}", f"records_root={folder / 'records'}", "device=cpu"]


def ranked(program: str, run: Path, folder: Path, *overrides: str) -> Outcome:
    outcome = call(program, f"checkpoint={run}", *kept(folder), *overrides)
    assert outcome.code == 0, outcome.err
    return outcome


def record_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "records").glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts forwards; from number ``last`` on the process is as good as killed."""
    counted = {"made": 0, "last": 10**9}
    whole = LogProbScorer._forward

    def forward(self: LogProbScorer, *arguments: Any, **more: Any) -> Any:
        if counted["made"] >= counted["last"]:
            raise KeyboardInterrupt
        counted["made"] += 1
        return whole(self, *arguments, **more)

    monkeypatch.setattr(LogProbScorer, "_forward", forward)
    return counted


def test_rows_are_kept_and_score_alone_to_the_same_numbers(run: Path, tmp_path: Path) -> None:
    planned = ranked(RANKING, run, tmp_path, "which=last", "dry_run=true")
    assert planned.out == ""
    assert_says(planned.err, "no paid call", "run: 0 of 1 shards are there", "reference: 0 of 1 shards")
    assert not (tmp_path / "records").exists()
    said = ranked(RANKING, run, tmp_path, "output=json", "which=last").out
    found = json.loads(said)
    record = record_of(tmp_path)
    validation = metrics(run, "validation")[-1]
    assert found["accuracy/reward"] == pytest.approx(validation["rewards/accuracies"])
    assert record["counts"] == found["counts"]
    samples = Path(record["sources"]["samples"]["path"])
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == record["data"]["pairs"] == found["counts"]["pairs"]
    ratio = rows[0]["chosen_sum"] - rows[0]["reference_chosen_sum"]
    beta = yaml.safe_load((run / "config.yaml").read_text())["method"]["beta"]
    assert rows[0]["chosen_reward"] == pytest.approx(beta * ratio, rel=1e-4, abs=1e-5)
    alone = call(RANKING, "stage=score", f"samples={samples}", "output=json")
    assert json.loads(alone.out) == found
    assert len(list((tmp_path / "records").glob("*.json"))) == 1


@pytest.mark.parametrize("program", [RANKING, LISTWISE])
def test_a_killed_measurement_goes_on(run: Path, tmp_path: Path, forwards: dict[str, int], program: str) -> None:
    settings = ("micro_batch_size=2", "shard_size=3", "output=json")
    if program == LISTWISE:
        settings = (*settings, "benchmark=toy", "max_items=4", "micro_batch_size=5", "k=[1]", "n=[2]")
    undisturbed = ranked(program, run, tmp_path / "whole", *settings).out
    needed = forwards["made"]
    assert needed > 6
    for last in (1, 3):
        forwards.update(made=0, last=last)
        assert call(program, f"checkpoint={run}", *kept(tmp_path / "cut"), *settings).code == 130
        needed -= forwards["made"]
    forwards.update(made=0, last=10**9)
    assert ranked(program, run, tmp_path / "cut", *settings).out == undisturbed
    assert forwards["made"] == needed


def test_lists_of_held_out_prompts(run: Path, tmp_path: Path) -> None:
    found = json.loads(ranked(LISTWISE, run, tmp_path, "output=json").out)
    samples = Path(record_of(tmp_path)["sources"]["rewards"]["path"])
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    everything = {item.id: item for item in ToySource(prompts=80, demonstration_prompts=80).scored_responses()}
    config = yaml.safe_load((run / "config.yaml").read_text())["dataset"]
    held_out = [
        item.id
        for item in everything.values()
        if split_of(item.prompt, config["validation_fraction"], config["split_seed"]) == "validation"
    ]
    assert [row["prompt_id"] for row in rows] == held_out
    assert found["counts"]["trained_on"] == 80 - len(held_out)
    assert [one["score"] for one in rows[0]["responses"]] == [one.score for one in everything[held_out[0]].responses]
    again = call(LISTWISE, "stage=score", f"samples={samples}", "output=json")
    shared = {name: value for name, value in found.items() if name not in ("counts", "notes")}
    assert shared.items() <= json.loads(again.out).items()
    few = ("split=all", "max_items=12", "reward=reference", "k=[1]", "n=[2]")
    whole = json.loads(ranked(LISTWISE, run, tmp_path / "all", "output=json", *few).out)
    trained = [name for name in list(everything)[:12] if name not in held_out]
    assert (whole["counts"]["prompts"], whole["counts"]["trained_on"]) == (12, len(trained))
    assert f"{len(trained)} prompts that the run was trained on: kept" in whole["notes"]


def test_an_unfinished_run_is_refused_unless_allowed(run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "run"
    shutil.copytree(run, cut, symlinks=True)
    status = json.loads((cut / "status.json").read_text())
    (cut / "status.json").write_text(json.dumps(status | {"state": "stopped", "step": 4}))
    for program, remedy in ((RANKING, "allow_unfinished=true"), (LISTWISE, "let it finish")):
        message = refused(program, f"checkpoint={cut}", *kept(tmp_path))
        assert_says(message, "is not a finished run (state 'stopped', step 4", remedy)
    outcome = ranked(RANKING, cut, tmp_path, "allow_unfinished=true")
    assert "note: the run did not finish" in outcome.out
    assert record_of(tmp_path)["settings"]["allow_unfinished"] is True


def test_a_model_that_is_no_run(run: Path, tmp_path: Path) -> None:
    model = f"checkpoint={run / 'checkpoints' / 'best' / 'model'}"
    assert_says(refused(LISTWISE, model, *kept(tmp_path)), "there are no responses to rank", "benchmark=toy")
    message = refused(LISTWISE, model, *kept(tmp_path), "benchmark=toy", "max_items=1", "reward=method")
    assert_says(message, "reward=method", "is no run, so it has no method; give reward=average")


def test_another_template_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other, symlinks=True)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["template"]["hash"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    for program in (RANKING, LISTWISE):
        assert_says(refused(program, f"checkpoint={other}", *kept(tmp_path)), "trained under the chat template 000000")
