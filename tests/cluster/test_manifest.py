"""Resolved tasks: what was composed at submission is what runs; all that is wrong is said before."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import src.config
from src.cluster import manifest
from src.cluster.batch import Batch
from src.cluster.manifest import combinations, keep_conf, read, task, trainings, write
from src.cluster.options import Options
from src.config import CONF
from src.errors import Problems, UserError
from src.resolved import main
from src.training.rundir import read_status
from tests.cluster.lab import submit
from tests.entry import call
from tests.support import SMALL_RUN

RUN = (*SMALL_RUN, "method=simpo", "training.max_steps=2", "evaluation.every_steps=0", "checkpoint.every_steps=0")


def run(path: Path, index: int = 0) -> int:
    """``python -m src.resolved`` in this process, with the command line put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["src.resolved"])
        return main([str(path), str(index)])


def places(folder: Path, cache: Path | None = None) -> list[str]:
    return [f"output_root={folder / 'runs'}", f"cache_root={(cache or folder) / 'cache'}"]


def test_an_edit_of_conf_after_the_submission_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values, the run directory and the weights are those of the command at the time of the submission; so is the
    SFT base, which training composes for itself."""
    given = [*RUN, "model.init=sft", *places(tmp_path)]
    assert call("src.train", *given, f"output_root={tmp_path / 'plain'}").code == 0
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    for module in (src.config, manifest):
        monkeypatch.setattr(module, "CONF", conf)
    path = write(tmp_path / "submitted", trainings(given))
    submitted = read(path, 0)
    assert submitted.base is not None
    for file, old, new in (
        ("method/simpo.yaml", "beta: ", "beta: 9  # "),
        ("recipe/sft__tiny.yaml", "learning_rate: ", "learning_rate: 1  # "),
    ):
        text = (conf / file).read_text()
        assert old in text
        (conf / file).write_text(text.replace(old, new, 1))
    assert trainings(given)[0].run != submitted.run, "the edit would matter"
    src.training.run.BASES.clear()
    assert run(path) == 0
    assert submitted.run is not None
    frozen = Path(submitted.run)
    (plain,) = (tmp_path / "plain").glob("simpo*")
    assert plain.name == frozen.name
    for file in ("metrics.jsonl", "checkpoints/last/model/model.safetensors"):
        assert (plain / file).read_bytes() == (frozen / file).read_bytes()
    src.training.run.BASES.clear()


READ = """
from src.config import composed_train
from src.evaluation.decoding import published_for
from src.evaluation.harness.suites import read_suite
print(published_for("mt_bench", ("none",))["max_new_tokens"], read_suite("open_llm_v1").source)
print(float(composed_train(["method=simpo", "~recipe"]).method.beta))
"""


def test_programs_of_a_job_read_the_copy_of_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding of the papers, suites and parts of runs are looked up while jobs run."""
    copy = keep_conf(tmp_path / "kept")
    (copy / "left").touch()
    assert keep_conf(tmp_path / "kept") == copy
    assert not (copy / "left").exists()
    for file, old, new in (
        ("decoding/mt_bench.yaml", r"max_new_tokens: \d+", "max_new_tokens: 77"),
        ("evaluation/suites/open_llm_v1.yaml", r"source: .*", "source: ours"),
        ("method/simpo.yaml", r"beta: [\d.]+", "beta: 9"),
    ):
        text, count = re.subn(old, new, (copy / file).read_text())
        assert count, file
        (copy / file).write_text(text)
    batch = Batch("n", "judge.sbatch", ("m",), tmp_path, tmp_path / "%j.out", Options(), conf=copy)
    for name, value in batch.environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", READ], cwd=CONF.parent, capture_output=True, text=True, check=False)
    assert done.stdout == "77 ours\n9.0\n", done.stderr


def test_exit_codes_and_messages_are_those_of_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = trainings([*RUN, *places(tmp_path), "seed=0,1"])
    moved = replace(tasks[0], run=str(tmp_path / "runs" / "elsewhere"))
    foreign = replace(tasks[1], config=tasks[1].config | {"no_such_key": 1})
    ranking = task("src.evaluation.ranking", [f"checkpoint={tmp_path / 'none'}"])
    path = write(tmp_path / "m", [moved, foreign, ranking])
    assert [run(path, index) for index in range(4)] == [2, 2, 2, 2]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"error: these values were submitted for {tmp_path / 'runs' / 'elsewhere'}")
    assert said[1].startswith("error: the stored values do not fit the code")
    assert said[2] + "\n" == call("src.evaluation.ranking", f"checkpoint={tmp_path / 'none'}").err
    assert said[3] == f"error: {path} has no task 3; it has 3, from 0 on"
    assert main(["m"]) == 2
    path.write_text('{"module": 1}\n')
    assert run(path) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_manifest_says_where_its_runs_are(tmp_path: Path) -> None:
    tasks = trainings([*RUN, *places(tmp_path), "model.init=sft", "seed=0,1"])
    path = write(tmp_path / "m", [*tasks, task("src.report", [])])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[1]["config"]["seed"] == 1
    rows = [row.split("\t") for row in (tmp_path / "m" / "runs.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == [tasks[0].run, tasks[1].run, "-"]
    assert rows[0][1] == rows[1][1] != "-" == rows[2][1]
    assert read(path, 1).config == tasks[1].config


def test_a_sweep_is_every_combination() -> None:
    assert combinations(["a=1,2", "b=x", "-m", "c=range(0,2)"]) == [
        ["a=1", "b=x", "c=0"], ["a=1", "b=x", "c=1"], ["a=2", "b=x", "c=0"], ["a=2", "b=x", "c=1"],
    ]  # fmt: skip
    assert combinations(["l=[1,2]", "s='x,y'"]) == [["l=[1,2]", "s='x,y'"]]
    preset = OmegaConf.load(CONF / "sweep" / "tiny_dpo_beta.yaml").params["method.beta"].split(",")
    assert [line[-1] for line in combinations(["sweep=tiny_dpo_beta"])] == [f"method.beta={value}" for value in preset]
    assert combinations(["sweep=tiny_dpo_beta", "method.beta=7"]) == [["method=dpo", "method.beta=7"]]
    with pytest.raises(UserError, match=r"sweep=none_such does not exist. Choose one of: .*tiny_dpo_beta"):
        combinations(["sweep=none_such"])
    with pytest.raises(
        UserError, match=r"method.beta=interval\(0,1\) gives no list of values; write them out: method.beta=1,2"
    ):
        combinations(["method.beta=interval(0,1)"])


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught:
        trainings([*RUN, *places(tmp_path), "training.micro_batch_size=3,4", "training.learning_rate=0,1", "seed=0,1"])
    problems = caught.value.problems
    assert len(problems) == 8
    assert problems[0].startswith("training.micro_batch_size=3 training.learning_rate=0 seed=0: ")
    with pytest.raises(Problems, match=r"engine=single cannot run as 4 processes, which .* gives; choose engine=ddp"):
        trainings([*RUN, *places(tmp_path)], ranks=4)
    with pytest.raises(Problems, match=r"global_batch_size=8 cannot be divided among 3 ranks"):
        trainings([*RUN, *places(tmp_path), "engine=ddp"], ranks=3)
    with pytest.raises(Problems, match="recipe=none_such does not exist"):
        trainings([*RUN[:-5], "recipe=none_such", *places(tmp_path)][-3:])
    with pytest.raises(UserError, match="1 of the 2 runs of this sweep are the same as others"):
        trainings([*RUN, *places(tmp_path), "seed=1,1"])


def test_the_command_says_mistakes_as_training_does(tmp_path: Path) -> None:
    for given, words in (
        (["method.bet=1"], "unknown key method.bet; did you mean method.beta?"),
        (["method=dop"], "method=dop does not exist; did you mean method=dpo?"),
        (["method.gamma=1"], "'method.gamma' is ambiguous"),
    ):
        outcome = submit([], [*given, *places(tmp_path)])
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    outcome = submit(["cluster.nodes=0", "cluster.time=5:00", "cluster.memory=lots"], [])
    assert "3 problems found" in outcome.err
    assert "cluster.time=5:00 ends before work begins" in outcome.err
    outcome = submit(["chain=true", "evaluations=[bench,'ranking stage=score']"], [*RUN, *places(tmp_path)])
    assert "evaluations=[bench] is no benchmark" in outcome.err
    assert "the chain itself sets checkpoint and stage" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_the_dry_run_shows_calls_and_scripts(tmp_path: Path) -> None:
    own = ["action=dry_run", "chain=true", "cluster.nodes=2", "cluster.gpu_type=a100", "cluster.gpus_per_node=2"]
    own += ["cluster.partition=big", "cluster.cpu_partition=small", "cluster.throttle=2", "cluster.modules=[cuda/12]"]
    own += ["evaluations=[ranking,'alpaca_eval benchmark=toy judge=oracle']"]
    outcome = submit(own, [*RUN, "engine=ddp", "training.micro_batch_size=2", "seed=0,1", *places(tmp_path)])
    assert outcome.code == 0, outcome.err
    calls = {
        text.split("--job-name=marginalia-")[1].split()[0]: text
        for text in outcome.out.split("\n\n")
        if "--job-name" in text
    }
    assert list(calls) == [
        "prepare",
        "train",
        "evaluate_ranking",
        "evaluate_alpaca_eval",
        "judge_alpaca_eval",
        "report",
    ]
    for name, words in (
        ("prepare", "--partition=small"),
        ("train", "--nodes=2 --ntasks-per-node=1 --gres=gpu:a100:2 --partition=big"),
        ("train", "--array=0-1%2 --dependency=afterok:PREPARE --kill-on-invalid-dep=yes"),
        ("train", "--signal=B:USR1@300"),
        ("train", "MARGINALIA_MODULES=cuda/12"),
        ("train", f"MARGINALIA_CONF={tmp_path}/runs/.submitted/"),
        ("evaluate_ranking", f"MARGINALIA_CONF={tmp_path}/runs/.submitted/"),
        ("evaluate_alpaca_eval", "--gres=gpu:a100:1"),
        ("evaluate_alpaca_eval", "--dependency=aftercorr:TRAIN"),
        ("judge_alpaca_eval", "--dependency=aftercorr:EVALUATE_ALPACA_EVAL"),
        ("report", "--dependency=afterok:EVALUATE_RANKING,afterok:JUDGE_ALPACA_EVAL"),
    ):
        assert words in calls[name], (name, calls[name])
    assert "--gres" not in calls["judge_alpaca_eval"]
    assert "== sweep.sbatch ==" in outcome.out
    assert "== common.sh ==" in outcome.out
    assert not (tmp_path / "runs").exists()


def test_what_is_prepared_is_found_by_training(tmp_path: Path) -> None:
    given = [*RUN, "method=dpo", "model.init=sft", *places(tmp_path)]
    assert call("src.prepare", *given).code == 0
    assert not list((tmp_path / "cache").glob("reference/*.safetensors"))
    assert call("src.prepare", *given, "reference=true").code == 0
    assert len(list((tmp_path / "cache").glob("reference/*.safetensors"))) == 2
    assert [read_status(path)["state"] for path in (tmp_path / "runs").iterdir()] == ["finished"]
    outcome = call("src.train", *given)
    assert outcome.code == 0
    assert "computing" not in outcome.err
    assert "SFT base: reusing" in outcome.err
