"""Columns that are models, methods, settings, intervals, times and ranks; rows in groups; rows of SFT; stand-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from src.errors import UserError
from src.evaluation.statistics import Metric
from src.experiments.experiment import Curve, Experiment, Measured, find, groups_of, load
from src.experiments.files import Node
from src.experiments.plan import Places, plan_of
from src.experiments.published import number_of
from src.experiments.results import curve_value, part_of
from src.experiments.scale import read_scale


def table(paper: str, number: str) -> Experiment:
    return load(find(paper, number))


def test_a_column_may_be_a_model_or_a_method() -> None:
    cluster = read_scale("cluster")
    experiment = table("gamma_po", "10")
    found = cluster.training(experiment, {"method": "SimPO"}, experiment.column("llama3"), 3)
    assert {"model=llama3_8b_instruct", "method=simpo", "seed=3"} <= set(found)
    assert "recipe=simpo__llama3_8b_instruct__gamma_po" in found  # the label's own on that model alone
    other = cluster.training(experiment, {"method": "SimPO"}, experiment.column("gemma2"), 3)
    assert not any(text.startswith("recipe=") for text in other)

    times = table("gamma_po", "5")
    assert [key["model"] for key in times.keys][-1] == "Qwen2.5-Instruct-7B"  # the printed averages are left out
    assert "method=gamma_dpo" in cluster.training(times, times.keys[0], times.column("gamma-DPO"), 0)


def test_a_column_of_settings_takes_the_place_of_the_rows() -> None:
    experiment, laptop = table("gapo", "B"), read_scale("laptop")
    labels = {"flip_type": "length_dependent", "method": "GAPO"}
    clean = laptop.training(experiment, labels, experiment.column("flip_0"), 0)
    assert "noise=none" in clean
    assert "noise=length_flip" not in clean
    noisy = laptop.training(experiment, labels, experiment.column("flip_30"), 0)
    assert {"noise=length_flip", "noise.rate=0.3"} <= set(noisy)


def test_stand_ins_may_have_the_recipe_of_the_model_that_they_stand_for() -> None:
    experiment, gpu = table("gamma_po", "2"), read_scale("gpu")
    column = experiment.column("ae2_lc")
    found = gpu.training(experiment, {"model": "Llama3-Instruct-8B", "method": "gamma-SimPO"}, column, 0)
    assert {"model=llama3_2_1b_instruct", "recipe=gamma_simpo__llama3_8b_instruct"} <= set(found)
    named = gpu.training(experiment, {"model": "Llama3-Instruct-8B", "method": "DPO"}, column, 0)
    assert "recipe=dpo__llama3_8b_instruct__gamma_po" in named
    base = gpu.training(experiment, {"model": "Llama3-Instruct-8B", "method": "SFT"}, column, 0)
    assert not any(text.startswith("recipe=") for text in base)


@pytest.mark.parametrize(("scale", "trained"), [("cluster", False), ("laptop", True)])
def test_a_row_of_sft_is_what_the_others_start_from(scale: str, trained: bool, tmp_path: Path) -> None:
    experiment = table("amapo", "2")
    keys = tuple({"model": "Llama3-8B-Instruct", "method": method} for method in ("SFT", "DPO"))
    column = experiment.column("mt_bench")
    plan = plan_of(
        replace(experiment, keys=keys, columns=(column,)), read_scale(scale), (0, 1), Places(cache_root=str(tmp_path))
    )
    of_sft, of_dpo = (plan.of(labels, column) for labels in keys)
    assert len({measurement.run for measurement in of_dpo}) == 2
    if trained:
        needs = [plan.jobs[str(measurement.training)].needs for measurement in of_dpo]
        assert needs == [(measurement.training,) for measurement in of_sft]
    else:
        assert len({measurement.run for measurement in of_sft}) == 1
        assert of_sft[0].training is None
        job = plan.jobs[str(of_sft[0].evaluation)]
        assert "checkpoint=meta-llama/Meta-Llama-3-8B-Instruct" in job.arguments
        assert {"template=llama3", "dtype=bfloat16"} <= set(job.arguments)
        assert job.needs == ()


def test_rows_are_compared_within_their_group() -> None:
    experiment = table("gamma_po", "3")
    row = {"model": "Gemma2-Instruct-9B", "method": "DPO"}
    rivals = [key["method"] for key in experiment.keys if experiment.rivals(row, key, ("model",))]
    assert rivals == ["DPO", "rDPO", "beta-DPO", "gamma-DPO"]
    assert len([key for key in experiment.keys if experiment.rivals(row, key, ())]) == 16
    with pytest.raises(UserError, match="method must name each of"):
        groups_of(Node({"method": [["DPO"]]}, "FILE"), experiment.axes)
    with pytest.raises(UserError, match="must be a list of lists"):
        groups_of(Node({"method": ["DPO"]}, "FILE"), experiment.axes)


def test_an_interval_may_be_a_column() -> None:
    metric: Metric = {"value": 55.0, "low": 52.5, "high": 58.0, "n": 500}
    assert [part_of(metric, part) for part in ("value", "below", "above")] == [55.0, -2.5, 3.0]
    assert part_of({**metric, "low": None}, "below") is None
    laptop, experiment = read_scale("laptop"), table("gamma_po", "2")
    source = laptop.column(experiment.column("ah_ci_low")).source
    assert isinstance(source, Measured)
    assert source.part == "below"


def test_times_are_summed_from_the_run_itself(tmp_path: Path) -> None:
    source = Curve("timings", "seconds", "sum")
    lines = [json.dumps({"step": step, "seconds": 1.5, "pairs_per_second": 2.0}) for step in (1, 2, 3)]
    (tmp_path / "timings.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "seconds": 99.0}\n')
    assert curve_value(tmp_path, source) is None  # not finished
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    assert curve_value(tmp_path, source) == 4.5


def test_printed_times_are_hours() -> None:
    assert number_of("4h54") == pytest.approx(4.9)
    assert (number_of(3), number_of(None), number_of("-"), number_of("cosine")) == (3.0, None, None, None)
