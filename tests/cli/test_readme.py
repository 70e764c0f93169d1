"""Every command of README.md runs: as printed but for places, and with runs made small."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from src.methods import main as methods
from tests.entry import PROGRAMS, Outcome, call
from tests.support import ROOT, SMALL_MODEL, metrics, run

COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m src.")
]
SMALL = (*SMALL_MODEL, "dataset.source.prompts=120", "dataset.source.demonstration_prompts=120")
SMALL_TRAINING = ("debug=smoke", "engine.device=cpu", "training.max_steps=2", "training.global_batch_size=32")


def test_readme_has_the_commands() -> None:
    modules = {shlex.split(command)[2] for command in COMMANDS}
    assert modules >= {"src.train", "src.preflight", "src.methods", "src.evaluation.ranking", "src.report"}
    assert modules >= {"src.evaluation.alpaca_eval", "src.evaluation.rm_bench"}
    assert modules >= {"src.data.gaps", "src.data.show", "src.generate", "src.annotate"}
    assert len(COMMANDS) >= 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the names that README uses."""
    place: Path = tmp_path_factory.mktemp("readme")
    with gzip.open(place / "harmless-base.jsonl.gz", "wt") as file:
        for index in range(80):
            start = f"\n\nHuman: question {index}?\n\nAssistant:"
            file.write(json.dumps({"chosen": f"{start} yes {index}", "rejected": f"{start} no {index}"}) + "\n")
    with gzip.open(place / "responses.jsonl.gz", "wt") as file:
        for index in range(80):
            responses = [
                {"model": name, "text": f"{name} {index}", "score": score} for name, score in (("a", 1), ("b", 2))
            ]
            file.write(json.dumps({"prompt_id": index, "prompt": f"question {index}?", "responses": responses}) + "\n")
    return place


def overrides_for(module: str, folder: Path) -> list[str]:
    """What keeps a command small and inside ``folder``."""
    if module in ("src.train", "src.preflight"):
        return [*SMALL_TRAINING, f"output_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]
    if module == "src.methods":
        return []
    if module == "src.data.show":
        return ["dataset.source.prompts=100", f"cache_root={folder / 'cache'}"]
    if module == "src.generate":
        return ["max_prompts=60", "max_new_tokens=32"]
    if module == "src.annotate":
        return []
    if module == "src.report":
        return [f"runs={folder / 'runs'}", f"records={folder / 'records'}", f"output={folder / 'report'}"]
    places = [f"records_root={folder / 'records'}", f"output_root={folder / 'evaluations'}"]
    if module == "src.evaluation.ranking":
        return places
    small = ["max_items=8", *(["decoding.max_new_tokens=16"] if module == "src.evaluation.alpaca_eval" else [])]
    return [*places, f"cache_root={folder / 'cache'}", *small]


def done(module: str, *arguments: str) -> Outcome:
    """``python -m module arguments``: in this process where it is an entry point, since the libraries take seconds."""
    if module in PROGRAMS:
        return call(module, *arguments)
    if module == "src.methods":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = methods([*arguments])
        return Outcome(code, out.getvalue(), "")
    process = run(module, *arguments)
    return Outcome(process.returncode, process.stdout, process.stderr)


def carried_out(command: str, folder: Path) -> Outcome:
    """A command as README prints it, but for places and sizes, after those whose output it reads."""
    _, _, module, *arguments = shlex.split(command)
    for needed in re.findall(r"(?<!output)=((?:generations|annotations)/\w+)", " ".join(arguments)):
        if not (folder / needed).exists():
            (producer,) = (other for other in COMMANDS if f"output={needed}" in shlex.split(other))
            assert carried_out(producer, folder).code == 0
    arguments = [re.sub(r"=(\w[\w-]*\.(?:jsonl\.gz|html))$", rf"={folder}/\1", argument) for argument in arguments]
    arguments = [re.sub(r"=(generations|annotations)/", rf"={folder}/\1/", argument) for argument in arguments]
    if any("=RUN" in argument for argument in arguments):
        arguments = [re.sub(r"=RUN\b", f"={a_run(folder)}", argument) for argument in arguments]
    small: list[str] = []
    if "model.init=pretrained" in arguments:  # on the few pairs that a model so small gets
        small = ["dataset.validation_fraction=0.3", "dataset.max_length=128", "dataset.max_prompt_length=64"]
    elif module == "src.train" and "model=llama3_8b_base" not in arguments:
        small = list(SMALL_MODEL if any(argument.startswith("dataset=") for argument in arguments) else SMALL)
    place = overrides_for(module, folder)
    if module == "src.data.gaps":
        place = [] if any("checkpoint=" in argument for argument in arguments) else [f"cache_root={folder / 'cache'}"]
    if "-m" in arguments:
        place = [f"output_root={folder / 'sweep'}" if "output_root" in override else override for override in place]
    flags = [argument for argument in arguments if argument in ("-m", "--cfg", "job")]
    return done(module, *flags, *(argument for argument in arguments if argument not in flags), *small, *place)


def a_run(folder: Path) -> Path:
    """A run on the toy world."""
    made = sorted((folder / "runs").glob("simpo__tiny__toy__*"))
    if not made:
        assert call("src.train", "method=simpo", *SMALL, *overrides_for("src.train", folder)).code == 0
        made = sorted((folder / "runs").glob("simpo__tiny__toy__*"))
    return made[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, folder: Path) -> None:
    ended = carried_out(command, folder)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    if "--cfg" in command:
        assert "learning_rate" in ended.out
    if " -m " in command.removeprefix("python -m "):
        made = [path for path in (folder / "sweep").iterdir() if path.name.count("__") == 4]
        assert len(made) == 12, "2 methods x 3 betas x 2 seeds"
        assert all(len(metrics(path, "train")) == 2 for path in made)
