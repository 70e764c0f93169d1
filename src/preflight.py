"""`python -m src.preflight <overrides of src.train>`: every problem at once, or the plan of the run and its launch."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import cast

from omegaconf import DictConfig, OmegaConf

from src.cli import entry_point
from src.config import bound_problems, gaps
from src.errors import Problems
from src.schema import PreflightConfig, TrainConfig


def main(config: DictConfig) -> int:
    from src.training.checks import checked
    from src.training.plan import plan_of
    from src.training.plan_sizes import Machines, launch_problems
    from src.training.plan_text import print_plan

    problems = bound_problems(config, PreflightConfig, "")
    training = OmegaConf.masked_copy(config, [spec.name for spec in fields(TrainConfig)])
    machines = Machines(config.nodes, config.gpus_per_node, None if config.gpu == "all" else config.gpu)
    if not problems and not gaps(training):
        problems += launch_problems(cast(TrainConfig, training), machines)
    try:
        ready = checked(training, strict=False)
    except Problems as error:
        raise Problems(list(dict.fromkeys([*error.problems, *problems]))) from error
    if problems:
        raise Problems(problems)
    print_plan(plan_of(ready, machines), sys.argv[1:])
    return 0


if __name__ == "__main__":
    entry_point("preflight", main)
