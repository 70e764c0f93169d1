"""`python -m src.resolved MANIFEST INDEX`: run one task of a manifest from its stored values.

conf/ is not read: what was composed at submission runs, by the same function, with the same exit codes and messages as
the plain command. Its hash and run directory are that command's.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.cli import register_schemas, tell
from src.config import SCHEMAS, frozen, problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.cluster.manifest import Task
    from src.schema import TrainConfig

USAGE = "python -m src.resolved MANIFEST INDEX runs one task of a manifest that src.submit wrote, by its number from 0"


def main(arguments: list[str]) -> int:
    """Run the task that the command line names; its exit code."""
    if {"--help", "-h"} & set(arguments):
        print(f"{__doc__}\n{USAGE}")
        return 0
    try:
        if len(arguments) != 2 or not arguments[1].isdigit():
            raise UserError(f"{' '.join(arguments) or 'nothing'} was given; {USAGE}")
        from src.cluster.manifest import read

        task = read(Path(arguments[0]), int(arguments[1]))
    except UserError as error:
        return tell(error, "train", False)
    return guarded(task)


def guarded(task: Task) -> int:
    """Run ``task``; a mistake of the user is said in a sentence, as the entry point itself says it."""
    wanted = os.environ.get("HYDRA_FULL_ERROR") == "1" or bool(task.config.get("debug", {}).get("traceback"))
    sys.argv = [task.module, *task.overrides]  # records name the command that made them
    try:
        return run(task)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return tell(error, task.program, wanted)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("error: the program failed; the traceback above says where", file=sys.stderr)
        return 1


def run(task: Task) -> int:
    """What the entry point of ``task`` does with these values; raises ``UserError``."""
    if task.program not in SCHEMAS:
        raise UserError(f"{task.module} is no program of ours; submit again, which writes task {task.index} again")
    config = typed(task)
    if task.program == "train":
        from src.engine.join import together
        from src.training.run import train

        return together(lambda: train(ready(task, config)))
    if task.program == "prepare":
        from src.engine.join import together
        from src.training.preparing import prepare, separated

        training, reference = separated(config)
        return together(lambda: prepare(ready(task, training), reference=reference))
    register_schemas()  # programs compose configurations of the runs that they measure
    return importlib.import_module(task.module).main(config) or 0


def typed(task: Task) -> DictConfig:
    """The stored values, with the types of the program's schema; raises ``Problems``."""
    try:
        schema = OmegaConf.structured(SCHEMAS[task.program])
        config = cast(DictConfig, OmegaConf.merge(schema, OmegaConf.create(task.config)))
    except OmegaConfBaseException as error:
        raise UserError(
            f"the stored values do not fit the code ({str(error).splitlines()[0]}): it has changed since they were "
            "submitted; submit again"
        ) from error
    if problems := problems_of(config, SCHEMAS[task.program]):
        raise Problems(problems)
    return config


def ready(task: Task, config: DictConfig) -> TrainConfig:
    """The frozen configuration of a training, checked as ``src.train`` checks it, but for what composing alone shows.

    Raises ``Problems``, and ``UserError`` when the code has come to mean another run by these values.
    """
    from src.training.checks import further_problems
    from src.training.run import planned_directory, sft_base

    found = frozen(config)
    sft_base(found, None if task.base is None else frozen(OmegaConf.create(task.base)))
    if problems := further_problems(found, strict=True):
        raise Problems(list(dict.fromkeys(problems)))
    meant = str(planned_directory(found))
    if task.run not in (None, meant):
        raise UserError(
            f"these values were submitted for {task.run}, and the code now means {meant} by them: it has changed "
            "since. Submit again, or check out the commit of the submission"
        )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
