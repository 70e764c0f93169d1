"""Manners of the entry points: quick answers, exit codes, sweeps, the plan, and what a run says of itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig

from src.errors import UserError
from tests.entry import PROGRAMS, call
from tests.support import ROOT, SMALL_RUN, metrics, places, run

QUICK = 1.5
"""Seconds that --help and --cfg job may take."""
HEAVY = ("torch", "transformers", "datasets", "accelerate", "matplotlib", "wandb", "pyarrow", "pandas")
LLAMA = ("method=amapo", "model=llama3_8b_base")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HYDRA_FULL_ERROR": "0"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# --- quick answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--help",), (*LLAMA, "--cfg", "job")])
def test_training_answers_at_once(arguments: tuple[str, ...]) -> None:
    """The best of a few tries, since the machine may be busy."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = command("-m", "src.train", *arguments)
        seconds.append(time.monotonic() - started)
        assert (done.returncode, done.stderr) == (0, "")
        if seconds[-1] < QUICK:
            break
    assert min(seconds) < QUICK


ANSWERS = """
import contextlib, io, json, runpy, sys
programs, heavy = json.loads(sys.argv[1])
for program in programs:
    for arguments in (["--help"], ["--cfg", "job"]):
        sys.argv, out = [program, *arguments], io.StringIO()
        code = None
        try:
            with contextlib.redirect_stdout(out):
                runpy.run_module(program, run_name="__main__", alter_sys=False)
        except SystemExit as ending:
            code = ending.code
        found = [name for name in heavy if name in sys.modules]
        print(json.dumps([program, arguments, code, bool(out.getvalue()), found]))
"""
"""Every program's answers in one process: what one imports is there for the next, so nothing heavy may come at all."""


def test_answers_import_nothing_heavy() -> None:
    done = command("-c", ANSWERS, json.dumps([sorted(PROGRAMS), HEAVY]))
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == 2 * len(PROGRAMS)
    assert [one for one in ended if one[2:] != [0, True, []]] == []
    assert done.stderr == ""


def test_help_lists_groups_and_examples() -> None:
    shown = call("src.train", "--help").out
    assert "python -m src.train -m method=amapo,simpo method.beta=1,2,3 seed=0,1" in shown
    for line in (
        "model: gemma2_2b, ",
        "selection@checkpoint: by_accuracy, by_loss\n",
        "noise: length_flip, none, random_flip, score_noise\n",
    ):
        assert f"\n{line}" in shown
    assert re.search(r"\nrecipe: <method>__<model>, taken where there is one \(\d{3}\)\n", shown)
    assert "$" not in shown
    ranking = call("src.evaluation.ranking", "-h").out
    assert "which: best  # checkpoint of it: best or last\n" in ranking
    assert "defaults" not in ranking
    assert "hydra" not in ranking


def test_configuration_of_a_model_that_is_not_here() -> None:
    shown = call("src.train", *LLAMA, "--cfg", "job")
    assert shown.code == 0
    assert "path: princeton-nlp/Llama-3-Base-8B-SFT\n" in shown.out
    assert "hydra:" not in shown.out


# --- how a call ends --------------------------------------------------------------------------------------------------


def refuse(config: DictConfig) -> int:
    raise UserError("given, reason, remedy")


def test_errors_end_without_a_traceback_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = call("src.train", task=refuse)
    assert (plain.code, plain.err) == (2, "error: given, reason, remedy\n")
    for shown in (
        call("src.train", "debug=smoke", task=refuse),
        call("src.train", "debug.traceback=true", task=refuse),
    ):
        assert shown.code == 2
        assert "Traceback" in shown.err
        assert shown.err.endswith("error: given, reason, remedy\n")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in call("src.train", task=refuse).err
    assert "Traceback" in call("src.train", "nonsense=1").err


def test_errors_end_with_their_own_code() -> None:
    def task(config: DictConfig) -> int:
        raise UserError("no", exit_code=3)

    assert call("src.train", task=task).code == 3


def test_a_defect_shows_its_traceback_and_nothing_of_hydra() -> None:
    def task(config: DictConfig) -> int:
        raise ZeroDivisionError("a defect")

    outcome = call("src.train", task=task)
    assert outcome.code == 1
    assert "ZeroDivisionError: a defect" in outcome.err
    assert outcome.err.endswith("error: the program failed; the traceback above says where\n")
    assert "Error executing job" not in outcome.err


def test_interruption_from_the_keyboard_is_said_in_a_line() -> None:
    def task(config: DictConfig) -> int:
        raise KeyboardInterrupt

    outcome = call("src.train", task=task)
    assert (outcome.code, outcome.err) == (130, "interrupted; the same command goes on from the last checkpoint\n")


def test_a_real_process_says_a_mistake_in_a_line() -> None:
    done = command("-m", "src.train", "training.epoch=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown key training.epoch; did you mean training.epochs?")
    assert done.stderr.count("\n") == 1


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_after_a_refused_job_and_ends_with_its_code() -> None:
    seeds = []

    def task(config: DictConfig) -> int:
        seeds.append(config.seed)
        if config.seed == 1:
            raise UserError("not this one")
        return 0

    outcome = call("src.train", "-m", "seed=0,1,2", task=task)
    assert (outcome.code, seeds) == (2, [0, 1, 2])
    assert outcome.err == "error: not this one\n"


def test_a_sweep_that_is_asked_to_stop_starts_no_other_job() -> None:
    seeds = []

    def task(config: DictConfig) -> int:
        seeds.append(config.seed)
        return 75

    assert call("src.train", "-m", "seed=0,1,2", task=task).code == 75
    assert seeds == [0]


def test_sweep_makes_a_directory_per_job_and_skips_finished_ones(tmp_path: Path) -> None:
    tiny = [*SMALL_RUN, "training.max_steps=2", "evaluation.every_steps=0", "evaluation.max_pairs=4", *places(tmp_path)]
    sweep = ("-m", "method=amapo,simpo", "method.beta=1,2", *tiny)
    first = call("src.train", *sweep)
    assert first.code == 0, first.err
    runs = sorted((tmp_path / "runs").glob("*__tiny__*"))
    assert [path.name.split("__")[0] for path in runs] == ["amapo", "amapo", "simpo", "simpo"]
    for path in runs:
        assert json.loads((path / "status.json").read_text())["state"] == "finished"
        assert [line["step"] for line in metrics(path, "train")] == [1, 2]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}

    again = call("src.train", *sweep)
    assert again.code == 0
    assert sorted(again.err.splitlines()) == [f"finished already: {path}" for path in runs]
    ours = {path: time for path, time in written.items() if ".multirun" not in path.parts}
    assert {path: path.stat().st_mtime_ns for path in ours} == ours
    assert sorted((tmp_path / "runs").glob("*__tiny__*")) == runs


# --- the SFT base -----------------------------------------------------------------------------------------------------


def test_sft_base_is_trained_once_and_reused(tmp_path: Path) -> None:
    tiny = [*SMALL_RUN, "model.init=sft", "training.max_steps=2", *places(tmp_path)]
    first = call("src.train", *tiny, "method=simpo")
    assert first.code == 0, first.err
    (base,) = (tmp_path / "runs").glob("sft__*")
    assert first.err.startswith(f"SFT base: training it once, later runs reuse {base}\nrun directory: {base}\n")
    weights = (base / "checkpoints" / "best" / "model" / "model.safetensors").stat().st_mtime_ns
    planned = call("src.preflight", *tiny, "method=amapo")
    assert str(base) in planned.out.replace("\n", "")

    second = call("src.train", *tiny, "method=amapo")
    assert second.err.startswith(f"SFT base: reusing {base}\nrun directory: {tmp_path}/runs/amapo__")
    assert (base / "checkpoints" / "best" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    other = call("src.train", *tiny, "method=amapo", "model.sft_seed=1")
    assert other.err.startswith("SFT base: training it once")
    assert len(list((tmp_path / "runs").glob("sft__*"))) == 2


# --- what a run says --------------------------------------------------------------------------------------------------


UNNEEDED = (
    "datasets",
    "matplotlib",
    "peft",
    "sklearn",
    "transformers.trainer_utils",
    "wandb",
)
"""What a training without adapter or mirror must not import: each costs tenths of a second."""


def test_a_run_in_a_file_is_a_few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real process, where no library has been told before to be quiet; it imports nothing for other runs."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # a line for each module, between those of the program
    done = run("src.train", *SMALL_RUN, "method=simpo", *places(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    imports, said, before = r"import time: .*\| +(.+)", list[str](), list[str]()
    for line in done.stderr.splitlines():
        if not (imported := re.fullmatch(imports, line)):
            said.append(line)
        elif not any(shown.startswith("  step ") for shown in said):
            before.append(imported[1])
    assert {"torch", "transformers", "src.training.loop"} <= set(before)
    assert sorted({*UNNEEDED, "deepspeed"} & set(before)) == []  # transformers asks for DeepSpeed where it saves
    trained = r"training 18,400 of 18,400 parameters \(100.00 %\): all of the model"
    known = r"run directory: \S+|  step \d+/8  loss .*|  validation at step \d+: loss .*|finished: best rewards/.*"
    assert [line for line in said if not re.fullmatch(f"{known}|{trained}", line)] == []


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_plan_of_a_model_that_is_not_here() -> None:
    done = command("-m", "src.preflight", *LLAMA)
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    for fragment in (
        "recipe conf/recipe/amapo__llama3_8b_base.yaml",
        "model llama3_8b_base, 8,030.3 M parameters, init=pretrained",
        "data toy: about ",
        "batch 128 pairs = 8 a forward x 16 accumulated x 1 rank",
        "memory about 13",
        "(weights 29.92, gradients 29.92, optimizer 59.83, activations ",
        "lengths are estimated from characters, since there is no tokenizer here: tokenizer of 'princeton-nlp/",
        "GPUs A100-40 does not fit, 13",
        "nearest that does: engine=",
        "Launch python -m src.train method=amapo model=llama3_8b_base",
    ):
        assert fragment in shown, fragment
    assert re.search(
        r"steps \d+ optimizer steps, 1 epochs, lr 6e-07 tokens about [\d,]+ in all; longest row about", shown
    )
    assert shown.count("<|start_header_id|>assistant<|end_header_id|> ⟦") == 3
    assert shown.count("<|eot_id|>⟧") == 3


def test_plan_counts_what_training_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    overrides = [*SMALL_RUN, *places(tmp_path), "method=simpo", "training.max_steps=null", "training.epochs=2"]
    planned = call("src.preflight", *overrides)
    assert planned.code == 0
    bare = re.sub(r"\x1b\[[\d;]*m", "", planned.out)
    assert "8 pairs = 4 a forward x 2 accumulated x 1 rank" in bare
    assert planned.out.count("\x1b[32m⟦") == 3  # the supervised span is green
    counted = re.search(r"data +toy: (\d+) training, (\d+) held out", bare)
    stepped = re.search(r"steps +(\d+) optimizer steps, 2 epochs, lr 0.001", bare)
    lengths = re.search(r"tokens +([\d,]+) in all; longest row (\d+)", bare)
    assert counted
    assert stepped
    assert lengths
    steps = int(stepped[1])
    assert int(counted[1]) + int(counted[2]) == 80
    assert steps == 2 * int(counted[1]) // 8
    launch = bare[bare.index("Launch") :].splitlines()[1]
    assert shlex.split(launch) == ["python", "-m", "src.train", *overrides]

    trained = call("src.train", *overrides)
    (directory,) = (tmp_path / "runs").iterdir()
    assert f"run directory: {directory}\n" in trained.err
    assert str(directory) in bare
    assert metrics(directory, "train")[-1]["step"] == steps
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["counts"] == {"train": int(counted[1]), "validation": int(counted[2])}
    assert int(lengths[1].replace(",", "")) == pytest.approx(2 * manifest["tokens"]["train"]["total"], rel=0.1)


@pytest.mark.parametrize(
    ("choice", "shown"), [("~recipe", "none: the defaults of"), ("recipe=dpo__pythia_2_8b", "dpo__pythia_2_8b.yaml")]
)
def test_plan_names_the_recipe_that_was_composed(choice: str, shown: str, tmp_path: Path) -> None:
    small = [override for override in SMALL_RUN if override != "~recipe"]
    lengths = ("dataset.max_length=256", "dataset.max_prompt_length=128")
    planned = call("src.preflight", "method=dpo", *small, *places(tmp_path), choice, *lengths)
    assert planned.code == 0, planned.err
    assert re.search(rf"recipe +(conf/recipe/)?{re.escape(shown)}", planned.out)
