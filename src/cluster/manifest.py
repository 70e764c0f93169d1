"""Tasks with all their values resolved: what was composed at submission is what runs, whatever becomes of conf/.

A manifest is JSONL, one task a line: index, module (an entry point), overrides (as typed), config (plain values), base
(those of the SFT run that a training starts from, or null), run (its directory, or null).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from src.config import CONF, SCHEMAS, composed, problems_of, register_schema
from src.errors import Problems, UserError

MANIFEST = "manifest.jsonl"
TRAIN = "src.train"


@dataclass(frozen=True)
class Task:
    """One line of a manifest. ``module``: an entry point; ``overrides``: its command line; ``config``: all values."""

    module: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    run: str | None = None
    base: dict[str, Any] | None = None
    index: int = 0

    @property
    def program(self) -> str:
        """The name of the module's configuration in conf/, which is its own last name."""
        return self.module.rpartition(".")[2]


def write(folder: Path, tasks: Sequence[Task]) -> Path:
    """Number ``tasks`` and write ``folder``/manifest.jsonl; beside it runs.txt, each task's run directory and that of
    its base on a line, for the scripts. The path of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(replace(task, index=index)), sort_keys=True) for index, task in enumerate(tasks)]
    path = folder / MANIFEST
    for name, rows in ((MANIFEST, lines), ("runs.txt", [places(task) for task in tasks])):
        aside = folder / f".{name}.{os.getpid()}"
        aside.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        os.replace(aside, folder / name)
    return path


def keep_conf(folder: Path) -> Path:
    """Copy conf/ into ``folder``, in place of an earlier copy: some programs look things up there as they run (decoding
    of the papers, suites, parts of runs that they measure). The path of the copy."""
    copy = folder / "conf"
    if copy != CONF:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(CONF, copy)
    return copy


def places(task: Task) -> str:
    """A line of runs.txt: two absolute paths, separated by a tab; - for none."""
    run = "-" if task.run is None else str(Path(task.run).absolute())
    return f"{run}\t{'-' if task.base is None else base_directory(task.base).absolute()}"


def base_directory(base: dict[str, Any]) -> Path:
    """The run directory of the SFT base with these values."""
    from src.config import frozen, run_directory

    return run_directory(frozen(OmegaConf.create(base)))


def read(path: Path, index: int) -> Task:
    """Task ``index`` (from 0) of a manifest; raises ``UserError`` when there is none, or the file is damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UserError(f"the manifest {path} cannot be read ({error.strerror}); give one of src.submit") from error
    if not 0 <= index < len(lines):
        raise UserError(f"{path} has no task {index}; it has {len(lines)}, from 0 on")
    try:
        values = json.loads(lines[index])
        return Task(**values | {"overrides": tuple(values["overrides"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"task {index} of {path} is damaged ({error}); submit again, which writes it again") from error


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The command lines of a sweep: the product of what every override gives, the last varying fastest.

    ``a=1,2``, ``a=range(1,4)`` and presets (``sweep=NAME``, whose keys the others win over) are swept. Raises
    ``UserError`` for a sweep that has no end, and Hydra's error for what cannot be read.
    """
    given = [override for override in overrides if override not in ("-m", "--multirun")]
    parsed = OverridesParser.create().parse_overrides(given)
    said = {override.get_key_element().lstrip("+") for override in parsed}
    preset = [f"{key}={value}" for key, value in presets(given).items() if key not in said]
    axes = []
    for override in [*OverridesParser.create().parse_overrides(preset), *parsed]:
        if override.key_or_group == "sweep":
            continue
        if not override.is_sweep_override():
            axes.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            raise UserError(
                f"{override.input_line} gives no list of values; write them out: {override.key_or_group}=1,2"
            )
    return [list(line) for line in itertools.product(*axes)]


def presets(overrides: Sequence[str]) -> dict[str, Any]:
    """The ranges of ``sweep=NAME``; {} without it."""
    names = [override.removeprefix("sweep=") for override in overrides if override.startswith("sweep=")]
    if not names or names[-1] == "none":
        return {}
    file = CONF / "sweep" / f"{names[-1]}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise UserError(f"sweep={names[-1]} does not exist. Choose one of: {known}")
    loaded = cast(DictConfig, OmegaConf.load(file))
    return {str(key): value for key, value in loaded.get("params", {}).items()}


def trainings(overrides: Sequence[str], ranks: int = 1) -> list[Task]:
    """The trainings of a command line of ``src.train``, sweeps included, each checked as ``src.preflight`` checks it,
    and that ``ranks`` processes can share it.

    Raises ``Problems`` that list what is wrong with any of them, and Hydra's errors for what does not compose.
    """
    lines = combinations(overrides)
    common = set.intersection(*(set(line) for line in lines))
    tasks, problems = [], []
    for line in lines:
        try:
            tasks.append(training(line, ranks))
        except Problems as error:
            own = " ".join(override for override in line if override not in common)
            problems += [f"{own}: {problem}" if own else problem for problem in error.problems]
    if problems:
        raise Problems(problems)
    twins = len(tasks) - len({task.run for task in tasks})
    if twins:
        raise UserError(f"{twins} of the {len(tasks)} runs of this sweep are the same as others; leave values out")
    return tasks


def training(overrides: Sequence[str], ranks: int = 1) -> Task:
    """One training with its resolved values; raises ``Problems``."""
    from src.training.checks import checked
    from src.training.run import planned_directory, sft_base

    with as_job(overrides) as config:
        # a login node has no GPU, so its absence here says nothing
        asked = OmegaConf.select(config, "engine.device")
        OmegaConf.update(config, "engine.device", "auto")
        ready = checked(config, strict=False)
    refuse_other_ranks(ready, ranks)
    ready = with_device(ready, asked)
    base = sft_base(ready)
    values = plain(ready)
    return Task(TRAIN, tuple(overrides), values, str(planned_directory(ready)), None if base is None else plain(base))


def refuse_other_ranks(config: Any, ranks: int) -> None:
    """Raise ``Problems`` when so many processes cannot share this training."""
    from src.engine.create import refuse_uneven_batch

    name = config.engine.name
    if (name == "single") == (ranks > 1):
        remedy = "choose engine=ddp, fsdp2, zero2 or zero3" if ranks > 1 else "choose engine=single, or more GPUs"
        asked = "cluster.nodes × cluster.gpus_per_node (or cluster.ranks_per_node)"
        raise Problems([f"engine={name} cannot run as {ranks} processes, which {asked} gives; {remedy}"])
    try:
        refuse_uneven_batch(config, ranks)
    except UserError as error:
        raise Problems([str(error)]) from error


def with_device(config: Any, device: str) -> Any:
    """The frozen configuration with the device that was asked for."""
    if config.engine.device != device:
        OmegaConf.set_readonly(config, False)
        config.engine.device = device
        OmegaConf.set_readonly(config, True)
    return config


@contextmanager
def as_job(overrides: Sequence[str]) -> Iterator[DictConfig]:
    """The training configuration, composed; within the block Hydra says of it what it says in ``src.train``."""
    register_schema("train")
    before = HydraConfig.instance().cfg
    outside = not GlobalHydra.instance().is_initialized()
    if outside:
        initialize_config_dir(str(CONF), version_base="1.3")
    try:
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        yield config
    finally:
        HydraConfig.instance().cfg = before
        if outside:
            GlobalHydra.instance().clear()


def measurement(module: str, overrides: Sequence[str]) -> Task:
    """Any other program's task, checked by its schema alone: what it measures need not exist yet."""
    name = module.rpartition(".")[2]
    if name not in SCHEMAS:
        raise UserError(f"{module} is no program of ours that can be submitted")
    config = composed(name, list(overrides))
    if problems := problems_of(config, SCHEMAS[name]):
        raise Problems([f"{name}: {problem}" for problem in problems])
    return Task(module, tuple(overrides), plain(config))


def task(module: str, overrides: Sequence[str]) -> Task:
    """The task of ``python -m module overrides``."""
    return training(overrides) if module == TRAIN else measurement(module, overrides)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain, resolved data."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
