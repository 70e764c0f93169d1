"""`python -m src.submit <overrides of src.train>`: a training, a sweep or a whole chain as jobs of SLURM."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.benchmark_schema import SubmitConfig
from src.cli import entry_point, in_our_words, refuse_bare_gamma, refuse_group_without_name
from src.config import problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.cluster.chain import Submission
    from src.cluster.manifest import Task
    from src.cluster.options import Options
    from src.cluster.states import JobState

FLAGS = {f"--{name}": f"action={name.replace('-', '_')}" for name in ("dry-run", "test-only", "status")}
OWN = {spec.name for spec in fields(SubmitConfig)} - {"debug"}
"""Keys of conf/submit.yaml; every other key is of src.train."""


def main(config: DictConfig, given: Sequence[str] = ()) -> int:
    """``given``: the overrides of src.train."""
    if problems := problems_of(config, SubmitConfig):
        raise Problems(problems)
    from src.build import build
    from src.cluster.batch import SCRIPTS, test_only
    from src.cluster.chain import planned, submitted

    checked, options = cast(SubmitConfig, config), build(cast(Any, config).cluster, "cluster")
    submission = planned(composed(given, options), checked, options)
    if checked.action == "dry_run":
        print("\n\n".join(batch.text for batch in submission.batches()))
        for script in sorted({link.script for link in submission.links}):
            print(f"\n== {script} ==\n{(SCRIPTS / script).read_text(encoding='utf-8')}", end="")
        print(f"\n== common.sh ==\n{(SCRIPTS / 'common.sh').read_text(encoding='utf-8')}", end="")
    elif checked.action == "test_only":
        for link in submission.links:
            print(f"{link.name}: {test_only(submission.batch(link))}")
    elif checked.action == "status":
        print("\n".join(status(submission, options.timeout)))
    else:
        refuse_twice(submission, options.timeout)
        for name, job in submitted(submission).items():
            count = len(next(link.tasks for link in submission.links if link.name == name))
            print(f"{name}: job {job}" + (f", {count} tasks" if count > 1 else ""))
        print(
            f"how far they are: the same command with --status; to end them: scancel JOB; kept in {submission.folder}"
        )
    return 0


def composed(given: Sequence[str], options: Options) -> list[Task]:
    """The trainings that the command line asks for; raises ``UserError`` as src.train says it."""
    from src.cluster.manifest import trainings

    asked = [*given, *([f"cache_root={options.cache_root}"] if options.cache_root else [])]
    try:
        refuse_bare_gamma(asked)
        refuse_group_without_name(asked)
        return trainings(asked, options.nodes * options.ranks)
    except (HydraException, OmegaConfBaseException) as error:
        sys.argv[1:] = asked  # from which the words take what was chosen
        raise UserError(in_our_words(error, "train")) from error


def refuse_twice(submission: Submission, timeout: int) -> None:
    """Raise ``UserError`` when jobs of the same submission are still under way."""
    from src.cluster.chain import known_jobs
    from src.cluster.states import states

    jobs = known_jobs(submission.folder)
    if active := sorted(
        {state.id.split("_")[0] for state in states(list(jobs.values()), timeout).values() if state.active}
    ):
        raise UserError(
            f"this is submitted already, as job {', '.join(active)}; see how far it is with --status, or end it first: "
            f"scancel {' '.join(active)}"
        )


def status(submission: Submission, timeout: int) -> list[str]:
    """How far each link is, and each training, from SLURM and from what the runs write themselves."""
    from src.cluster.chain import known_jobs
    from src.cluster.states import of_job, states

    jobs = known_jobs(submission.folder)
    if not jobs:
        return ["not submitted yet; the same command without --status does it"]
    try:
        found = states(list(jobs.values()), timeout)
    except UserError as error:
        found = {}
        print(f"note: {error}", file=sys.stderr)
    lines = []
    for link in submission.links:
        job = jobs.get(link.name, "")
        lines.append(f"{link.name}: job {job}: {counted(of_job(found, job))}")
        lines += [f"  {told(Path(task.run))}" for task in link.tasks if task.run is not None]
    return lines


def counted(found: list[JobState]) -> str:
    """3 RUNNING, 9 PENDING (JobArrayTaskLimit)."""
    if not found:
        return "SLURM has forgotten it"
    counts = Counter(f"{one.state} ({one.reason})" if one.reason else one.state for one in found)
    return ", ".join(f"{count} {state}" if len(found) > 1 else state for state, count in counts.items())


def told(run: Path) -> str:
    """What a run says of itself."""
    from src.training.rundir import read_status

    said = read_status(run)
    steps = f" at step {said['step']} of {said['total_steps']}" if "step" in said else ""
    why = f": {said['message']}" if said.get("message") else ""
    return f"{run.name} {said.get('state', 'not started')}{steps}{why}"


VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p")
"""Hydra's flags whose value is the next argument."""


def separated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own keys and Hydra's flags, and the overrides of src.train."""
    own: list[str] = []
    given: list[str] = []
    before = ""
    for argument in (FLAGS.get(argument, argument) for argument in arguments):
        before, flag = argument, before
        if flag in VALUED:
            own.append(argument)
            continue
        if argument in ("-m", "--multirun"):  # a sweep needs no flag here
            continue
        key = argument.lstrip("+~").split("=")[0].split(".")[0].split("/")[0]
        (own if key in OWN or argument.startswith("-") else given).append(argument)
    return own, given


if __name__ == "__main__":
    sys.argv[1:], asked = separated(sys.argv[1:])
    entry_point("submit", partial(main, given=asked))
