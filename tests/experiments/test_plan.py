"""From a grid to jobs: what is shared, what stands on what, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import src.config
from src.config import compose_train, composed, evaluation_hash
from src.errors import Problems
from src.experiments.experiment import find, load
from src.experiments.facts import Composer
from src.experiments.jobs import HowFar, Job, how_far
from src.experiments.plan import Places, Plan, plan_of
from src.experiments.preflight import preflight
from src.experiments.scale import read_scale
from src.training.run import planned_directory, sft_base
from tests.entry import assert_says
from tests.experiments.small import here, scale_of, write

__all__ = ["here"]
SEEDED = scale_of().replace("every: [", "every: ['model.sft_seed=${seed}', ")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where answers are kept from test to test, so that few configurations are composed."""
    return tmp_path_factory.mktemp("cache")


def plan(cache: Path, seeds: Sequence[int] = (0,)) -> Plan:
    """The plan of the small table."""
    places = Places("runs", str(cache), "records", "evaluations")
    return plan_of(load(find("amapo", "small")), read_scale("laptop"), seeds, places)


def trainings(made: Plan, method: str) -> list[Job]:
    return [job for job in made.jobs.values() if job.is_training and f"method={method}" in job.arguments]


def test_the_row_of_sft_is_the_run_that_the_others_start_from(here: Path, cache: Path) -> None:
    made = plan(cache)
    (sft,), (dpo,) = trainings(made, "sft"), trainings(made, "dpo")
    assert dpo.needs == (sft.id,)
    config = compose_train(list(dpo.arguments))
    base = sft_base(config)
    assert base is not None
    assert sft.run == planned_directory(base) == planned_directory(compose_train(list(sft.arguments)))
    assert dpo.run == planned_directory(config)
    assert [job.kind for job in made.jobs.values()] == ["train", "mt_bench", "train", "mt_bench"]
    by_row = {m.labels["method"]: m for m in made.measurements if m.column.name == "rating"}
    assert by_row["SFT"].training == sft.id
    assert by_row["DPO"].run == dpo.run
    measured = made.jobs[str(by_row["DPO"].evaluation)]
    assert measured.needs == (dpo.id,)
    own = [argument for argument in measured.arguments if not argument.startswith("checkpoint=")]
    assert measured.evaluation == evaluation_hash("mt_bench", composed("mt_bench", own))


def test_every_row_has_the_same_seeds_and_bases_are_shared_unless_the_scale_seeds_them(here: Path, cache: Path) -> None:
    made = plan(cache, (0, 1))
    assert len(made.measurements) == 8
    seeds = [{m.seed for m in made.of(key, c)} for key in made.experiment.keys for c in made.experiment.columns]
    assert seeds == [{0, 1}] * 4
    (sft,) = trainings(made, "sft")
    assert {job.needs for job in trainings(made, "dpo")} == {(sft.id,)}
    write(here, scale=SEEDED)
    made = plan(cache, (0, 1))
    bases, dpo = trainings(made, "sft"), trainings(made, "dpo")
    assert [job.needs[0] for job in dpo] == [job.id for job in bases]
    assert [compose_train(list(job.arguments)).seed for job in bases] == [0, 1]
    assert len({job.run for job in (*bases, *dpo)}) == 4
    assert not preflight_problems(made, bases[1:])


def test_what_is_the_runs_own_is_not_its_bases(here: Path, cache: Path) -> None:
    own = ["model.trainable=mlp", "dataset.min_score_gap=0.5", "model.sft_seed=4"]
    write(here, scale=scale_of().replace("every: [", f"every: [{', '.join(own)}, "))
    made = plan(cache)
    (sft,), (dpo,) = trainings(made, "sft"), trainings(made, "dpo")
    assert set(own) <= set(dpo.arguments)
    assert not set(own) & set(sft.arguments)
    base = sft_base(compose_train(list(dpo.arguments)))
    assert base is not None
    assert sft.run == planned_directory(base)
    assert not preflight_problems(made, [sft])


def test_a_plan_is_kept_until_the_configuration_tree_changes(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(cache)

    def never(*arguments: object) -> object:
        raise AssertionError("composed again")

    with monkeypatch.context() as patched:
        patched.setattr(src.config, "compose_train", never)
        patched.setattr("src.experiments.facts.composed", never)
        assert plan(cache).jobs == made.jobs
        assert plan(cache).measurements == made.measurements
        patched.setattr("src.experiments.facts.fingerprint", lambda: "another tree")
        with pytest.raises(AssertionError, match="composed again"):
            plan(cache)
    (kept,) = (cache / "plans").glob("*.json")
    whole = kept.read_text()
    kept.write_text("{half of")
    assert plan(cache).jobs == made.jobs
    kept.write_text(whole)


def test_answers_that_cannot_be_kept_cost_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    composer = Composer(str(tmp_path / "file"))
    assert composer.evaluation_hash("mt_bench", ("benchmark=toy",))
    composer.keep()


def test_every_cell_that_does_not_compose_is_named(here: Path, cache: Path) -> None:
    write(here, scale=scale_of().replace("training.max_steps=2", "training.max_stebs=2"))
    with pytest.raises(Problems) as caught:
        plan(cache)
    assert_says(str(caught.value), "One / DPO, rating", "max_stebs", "One / DPO, accuracy")


def preflight_problems(made: Plan, jobs: Sequence[Job]) -> list[str]:
    """What preflight says of ``jobs``."""
    try:
        preflight(made, jobs)
    except Problems as error:
        return error.problems
    return []


def test_a_method_without_a_tuned_recipe_is_refused(here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.training.checks.recipe_exists", lambda recipe: recipe != "dpo__tiny")
    made = plan(cache)
    (problem,) = preflight_problems(made, list(made.jobs.values()))
    assert_says(problem, "dpo__tiny", "there is no tuned recipe", "add conf/recipe/dpo__tiny.yaml")
    (dpo,) = trainings(made, "dpo")
    assert problem.startswith(f"{dpo.run.name}: ")


def test_a_recipe_that_does_not_exist_is_refused(here: Path, cache: Path) -> None:
    path = here / "amapo" / "paper.yaml"
    path.write_text(path.read_text().replace("[method=dpo]", "[method=dpo, recipe=dpo__tyni]"))
    with pytest.raises(Problems, match="One / DPO, rating: recipe=dpo__tyni does not exist"):
        plan(cache)


def test_all_that_is_wrong_is_said_once_with_those_it_concerns(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    scale = scale_of().replace("engine.device=cpu", "engine.device=cuda")
    write(here, scale=scale.replace("benchmark=toy, judge=oracle, ", ""))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = plan(cache)
    problems = preflight_problems(made, list(made.jobs.values()))
    device = [problem for problem in problems if "engine.device=cuda" in problem]
    assert len(device) == 1
    assert_says(device[0], *(job.run.name for job in made.jobs.values() if job.is_training))
    assert any(problem.startswith("mt_bench: ") and "OPENAI_API_KEY" in problem for problem in problems)


def test_how_far_a_training_is_follows_from_its_own_files(tmp_path: Path) -> None:
    job = Job("train", "src.train", (), tmp_path)
    assert how_far(job) is None
    (tmp_path / "status.json").write_text('{"state": "running", "step": 0, "total_steps": 80}')
    assert how_far(job) == HowFar(0, 80, None)
    lines = ['{"step": 9, "pairs_per_second": 12.5}', '{"step": 10, "pairs_per_second": 14.5}', '{"step": 11, "pa']
    (tmp_path / "timings.jsonl").write_text("\n".join(lines))
    assert how_far(job) == HowFar(10, 80, 14.5)
    assert how_far(Job("mt_bench", "src.evaluation.mt_bench", (), tmp_path)) is None
