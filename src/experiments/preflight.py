"""Everything that can stop a job of a plan, found before the first is started, all of it at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, cast

from src.build import build
from src.config import SCHEMAS, composed, problems_of
from src.errors import Problems, UserError
from src.experiments.jobs import Job
from src.experiments.plan import Plan

PACKAGES = {"alpaca_eval": "alpaca_eval", "lm_harness": "lm_eval"}
"""Benchmark -> the package that it needs besides those of training."""


def preflight(plan: Plan, jobs: Iterable[Job]) -> None:
    """Look at every configuration of ``jobs``; raises ``Problems`` with all that is wrong, each once, and of whom."""
    found: dict[str, list[str]] = {}
    seen: set[tuple[str, ...]] = set()
    for job in jobs:
        of_itself = job.arguments if job.is_training else tuple(a for a in job.arguments if not of_the_run(a))
        if (key := (job.kind, *of_itself)) not in seen:
            seen.add(key)
            for problem in training_problems(plan, job) if job.is_training else evaluation_problems(job, of_itself):
                found.setdefault(problem, []).append(job.name if job.is_training else job.kind)
    if found:
        raise Problems([f"{', '.join(names[:3])}{more(names[3:])}: {problem}" for problem, names in found.items()])


def more(names: list[str]) -> str:
    """`` and 4 more``."""
    return f" and {len(names)} more" if names else ""


def of_the_run(argument: str) -> bool:
    """Whether an evaluation's argument says which run it measures."""
    return argument.startswith("checkpoint=")


def training_problems(plan: Plan, job: Job) -> list[str]:
    """What ``python -m src.preflight`` would say of a training, and a row that would be made with defaults."""
    from src.training.checks import further_problems, recipe_exists, usual_recipe

    try:
        config = plan.composer.config(job.arguments)
    except Problems as error:
        return error.problems
    except UserError as error:
        return [str(error)]
    problems = further_problems(config, strict=True)
    recipe = usual_recipe(config)
    if not recipe_exists(recipe) and not any(argument.startswith("recipe=") for argument in job.arguments):
        problems.insert(
            0,
            f"there is no tuned recipe {recipe}, so the row would be made with defaults; add conf/recipe/{recipe}.yaml"
            ", or name another in the experiment: recipe=NAME",
        )
    return problems


def evaluation_problems(job: Job, arguments: tuple[str, ...]) -> list[str]:
    """Keys that cannot work, a judge without its key, a package that is not installed."""
    config = composed(job.kind, list(arguments))
    problems = problems_of(config, SCHEMAS[job.kind])
    if "judge" in config:
        judge = cast(Any, build(config.judge, "judge"))
        problems += judge.problems()
    package = PACKAGES.get(job.kind)
    if package is not None and importlib.util.find_spec(package) is None:
        problems.append(f"{job.kind} needs the package {package}; install it by `make setup-evaluation`")
    return problems
