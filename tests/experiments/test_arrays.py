"""From jobs to arrays: what starts after what, and which tasks share an array."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.errors import UserError
from src.experiments import arrays
from src.experiments.arrays import Array, arrays_of, dependencies, tasks_of
from src.experiments.experiment import find, load
from src.experiments.files import Node
from src.experiments.jobs import Job, Resources
from src.experiments.scale import read_scale, resources_of


def train(name: str, *needs: Job) -> Job:
    gpus = Resources(2, 8)
    return Job("train", "src.train", (f"run={name}",), Path(name), tuple(need.id for need in needs), "", gpus)


def measure(kind: str, run: Job, evaluation: str = "e") -> Job:
    arguments = (f"checkpoint={run.run}",)
    return Job(kind, f"src.evaluation.{kind}", arguments, run.run, (run.id,), evaluation, Resources(1, 1))


def table() -> list[Job]:
    """Two bases, three trainings on each, of all of them two benchmarks, one of them judged."""
    bases = [train("base0"), train("base1")]
    rows = [train(f"{base.run}-{name}", base) for base in bases for name in ("dpo", "simpo", "amapo")]
    runs = [*bases, *rows]
    return [*runs, *(measure(kind, run) for run in runs for kind in ("ranking", "mt_bench"))]


def told(found: list[Array]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Name, number of tasks and dependencies of arrays, which are called 1, 2, ..."""
    ids = {array: str(number) for number, array in enumerate(found, 1)}
    for number, array in enumerate(found):
        before = [array.pairs, *(other for other, _ in array.behind)]
        assert all(other is None or other in found[:number] for other in before)
    return [(array.name, len(array.tasks), list(dependencies(array, ids))) for array in found]


def test_a_table_is_few_arrays_and_each_task_waits_for_what_it_needs_alone() -> None:
    found = arrays_of(table(), {})
    assert told(found) == [
        ("train", 2, []),
        ("train", 3, [("afterok", "1_0")]),
        ("train", 3, [("afterok", "1_1")]),
        ("ranking-evaluate", 2, [("aftercorr", "1")]),
        ("mt_bench-evaluate", 2, [("aftercorr", "1")]),
        ("ranking-evaluate", 3, [("aftercorr", "2")]),
        ("mt_bench-evaluate", 3, [("aftercorr", "2")]),
        ("ranking-evaluate", 3, [("aftercorr", "3")]),
        ("mt_bench-evaluate", 3, [("aftercorr", "3")]),
        ("mt_bench-judge", 2, [("aftercorr", "5")]),
        ("mt_bench-judge", 3, [("aftercorr", "7")]),
        ("mt_bench-judge", 3, [("aftercorr", "9")]),
    ]
    for array in found:
        if array.pairs is not None:
            assert all(array.pairs.tasks[index].job.run == task.job.run for index, task in array.tasks.items())


def test_answers_take_a_gpu_and_judging_them_takes_none() -> None:
    answers, judging = tasks_of(measure("mt_bench", train("base")))
    assert (answers.role, answers.resources) == ("evaluate", Resources(1, 1))
    assert answers.arguments == ("checkpoint=base", "stage=generate")
    assert (judging.role, judging.resources, judging.arguments) == ("judge", Resources(1, 0), ("checkpoint=base",))
    (scored,) = tasks_of(measure("rm_bench", train("base")))
    assert (scored.role, scored.arguments) == ("evaluate", ("checkpoint=base",))


def test_two_measurements_of_one_run_by_one_benchmark_are_in_two_arrays() -> None:
    base = train("base")
    found = arrays_of([base, measure("ranking", base, "clean"), measure("ranking", base, "noisy")], {})
    assert told(found)[1:] == [("ranking-evaluate", 1, [("aftercorr", "1")])] * 2


def test_what_is_done_is_not_waited_for_and_what_is_queued_is() -> None:
    base = train("base")
    row = train("row", base)
    assert told(arrays_of([measure("ranking", base), row], {})) == [("train", 1, []), ("ranking-evaluate", 1, [])]
    assert told(arrays_of([row, measure("mt_bench", base)], {base.id: ["7_3"]})) == [
        ("train", 1, [("afterok", "7_3")]),
        ("mt_bench-evaluate", 1, [("afterok", "7_3")]),
        ("mt_bench-judge", 1, [("aftercorr", "2")]),
    ]


def test_indices_stay_below_the_largest_that_slurm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LARGEST", 3)
    runs = [train(f"run{number}") for number in range(7)]
    found = arrays_of([*runs, *(measure("ranking", run) for run in runs)], {})
    assert [sorted(array.tasks) for array in found] == [[0, 1, 2], [0, 1, 2], [0]] * 2


def test_a_scale_says_what_jobs_take_and_how_a_method_is_trained() -> None:
    cluster, laptop = read_scale("cluster"), read_scale("laptop")
    assert cluster.resources == {"train": Resources(1, 8), "evaluate": Resources(1, 1)}
    assert laptop.resources == {}
    table = load(find("gapo", "B"))
    engines = {}
    for labels in table.keys:
        given = cluster.training(table, labels, table.column(table.columns[0].name), 0)
        (engines[labels["method"]],) = [text for text in given if text.startswith("engine=")]
    assert engines == dict.fromkeys(engines, "engine=fsdp2") | {"GAPO": "engine=ddp"}
    with pytest.raises(UserError, match="train: nodes=0, gpus=8 are no numbers of nodes"):
        resources_of(Node({"train": {"nodes": 0, "gpus": 8}}, "scale/x.yaml"))
    with pytest.raises(UserError, match="unknown key 'gpu'; did you mean 'gpus'"):
        resources_of(Node({"train": {"gpu": 8}}, "scale/x.yaml"))
