"""`python -m src.reproduce paper=amapo table=2`: a table from its grid to the printed and reproduced numbers."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from src.benchmark_schema import ReproduceConfig
from src.cli import entry_point
from src.config import STOPPED, problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.experiments.experiment import Experiment
    from src.experiments.jobs import Job
    from src.experiments.progress import Progress
    from src.experiments.results import Results

FLAGS = {
    f"--{name}": f"action={name.replace('-', '_')}" for name in ("dry-run", "missing", "submit", "status", "table")
}


def main(config: DictConfig) -> int:
    if problems := problems_of(config, ReproduceConfig):
        raise Problems([with_choices(problem, config) for problem in problems])
    checked = cast(ReproduceConfig, config)
    refuse_unread(checked, sys.argv[1:])
    if (checked.cell is not None) != (checked.action == "trace"):
        raise UserError("a cell is traced by --trace LABEL/LABEL/COLUMN, such as --trace Llama3-8B-Base/AMaPO/ae2_lc")
    from src.experiments.experiment import find, load
    from src.experiments.progress import trace

    if (experiment := load(find(checked.paper, str(checked.table)))).kind == "settings":
        return compared(checked, experiment)
    results, progress = opened(checked)
    results.index.refresh()
    for damage in results.index.damaged.values():
        print(f"note: {damage}", file=sys.stderr)
    if checked.action == "dry_run":
        print("\n".join([*progress.forecast(), *costs_of(progress)]))
    elif checked.action == "missing":
        print("\n".join(progress.missing()))
    elif checked.action == "status":
        print("\n".join(progress.status()))
    elif checked.action == "trace":
        print("\n".join(trace(progress.plan, results, str(checked.cell))))
    elif checked.action == "submit":
        return submitted(checked, progress)
    elif checked.action == "table":
        written(checked, results)
    else:
        return run(checked, results, progress)
    return 0


def compared(config: ReproduceConfig, experiment: Experiment) -> int:
    """Write and print a table of hyper-parameters, which nothing needs to be run for."""
    from src.reporting.settings_tables import write_settings

    if config.action not in ("run", "table"):
        print(f"{experiment.path.name} compares printed settings with conf/: nothing is trained, measured or traced")
        return 0
    command = f"python -m src.reproduce paper={config.paper} table={config.table}"
    paths, text = write_settings(experiment, Path(config.tables_root), command)
    print(text)
    print("\n".join(map(str, paths)), file=sys.stderr)
    return 0


def refuse_unread(config: ReproduceConfig, arguments: list[str]) -> None:
    """Raise ``UserError`` for keys of a cluster that this table's jobs would not be submitted by."""
    given = [argument for argument in arguments if argument.startswith("cluster.")]
    if given and "cluster" not in config.launcher:
        raise UserError(f"{' '.join(given)} would not be read without launcher=slurm; add that, or leave it out")
    for key in ("nodes", "gpus_per_node"):
        if any(argument.startswith(f"cluster.{key}=") for argument in given):
            raise UserError(
                f"cluster.{key} is not read here: trainings of a table take what experiments/scale/{config.scale}.yaml "
                f"says (resources), evaluations one node, judging no GPU; write launcher.{key}=... for the trainings"
            )


def with_choices(problem: str, config: DictConfig) -> str:
    """What is wrong with the configuration, with the papers or tables there are where one is missing."""
    from src.experiments.experiment import tables_of
    from src.experiments.published import papers

    if problem.startswith("paper has no value"):
        return f"{problem} (one of {', '.join(papers())})"
    paper = OmegaConf.select(config, "paper", throw_on_missing=False)
    if problem.startswith("table has no value") and paper in papers():
        return f"{problem} (one of {', '.join(tables_of(paper))})"
    return problem


def opened(config: ReproduceConfig) -> tuple[Results, Progress]:
    """What is known of the table, and how far its jobs are."""
    from src.build import build
    from src.experiments.experiment import find, load
    from src.experiments.jobs import JOBS
    from src.experiments.plan import Places, plan_of
    from src.experiments.progress import Progress
    from src.experiments.results import RecordIndex, Results, done
    from src.experiments.scale import read_scale

    settings = build(cast(Any, config).launcher, "launcher")
    experiment, scale = load(find(config.paper, str(config.table))), read_scale(config.scale)
    cache_root = getattr(settings, "cache_root", None) or config.cache_root
    roots = (config.output_root, cache_root, config.records_root, config.evaluations_root)
    places = Places(*roots, mirroring(config, experiment.table))
    plan = plan_of(experiment, scale, range(config.seeds), places)
    index = RecordIndex(Path(config.records_root))
    launcher = settings.open(Path(config.output_root) / JOBS, lambda job: done(job, index))
    return Results(plan, index), Progress(plan, launcher, settings.at_a_time)


def mirroring(config: ReproduceConfig, table: str) -> tuple[str, ...]:
    """``logging=`` of this command as overrides of trainings, labelled by what they are for; () for none."""
    logging = config.logging
    if logging.backend == "none":
        return ()
    given = {"project": logging.project, "entity": logging.entity, "group": logging.group}
    said = [f"logging.{key}={value}" for key, value in given.items() if value]
    said += [f"logging.tags=[{','.join(map(str, logging.tags))}]"] if logging.tags else []
    labels = (
        f"logging.paper={logging.paper or config.paper}",
        f"logging.table={logging.table or table}",
        f"logging.scale={logging.scale or config.scale}",
    )
    return (f"logging={logging.backend}", *labels, f"logging.samples={logging.samples}", *said)


def costs_of(progress: Progress) -> list[str]:
    """What paid judges will cost for the jobs that are not done."""
    from src.experiments.costs import costs

    states = progress.states()
    return costs([job for job in progress.plan.jobs.values() if states[job.id] != "done"])


def looked_ahead(progress: Progress) -> list[Job]:
    """The jobs that are not done, after a look at everything that could stop them; raises ``Problems``."""
    states = progress.states()
    missing = [job for job in progress.plan.jobs.values() if states[job.id] != "done"]
    if missing:
        from src.experiments.preflight import preflight

        preflight(progress.plan, missing)
    return missing


def run(config: ReproduceConfig, results: Results, progress: Progress) -> int:
    """Everything that is missing, then the table; 1 when a job failed, 130 or 75 when it was asked to stop."""
    from src.experiments.progress import Reporter

    print("\n".join(progress.forecast()), file=sys.stderr)
    missing = looked_ahead(progress)
    complete = True
    with signals() as received:
        if missing:
            reporter = Reporter(progress, received)
            with reporter.shown():
                complete = progress.launcher.run(missing, reporter)
        if received and not complete:
            print(f"stopped; the same command goes on from here: {command_of(config)}", file=sys.stderr)
            return 128 + signal.SIGINT if received[0] == signal.SIGINT else STOPPED
    written(config, results)
    if not complete:
        print(f"\nsome jobs failed; see why: {command_of(config, '--status')}", file=sys.stderr)
    return 0 if complete else 1


@contextmanager
def signals() -> Iterator[list[int]]:
    """The requests to stop that came meanwhile, from the keyboard or a scheduler: they end no process at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def submitted(config: ReproduceConfig, progress: Progress) -> int:
    """Have the launcher run what is missing, without waiting for it."""
    if not (missing := looked_ahead(progress)):
        print(f"nothing is missing; the table: {command_of(config, '--table')}")
        return 0
    overrides = [argument for argument in sys.argv[1:] if argument != "action=submit"]
    print("\n".join(progress.launcher.submit(missing, overrides)))
    print(f"how far it is: {command_of(config, '--status')}")
    return 0


def written(config: ReproduceConfig, results: Results) -> None:
    """Write the table in all formats and print it."""
    from src.reporting.paper_tables import write_table

    paths, text = write_table(results, Path(config.tables_root), command_of(config))
    print(text)
    print("\n".join(map(str, paths)), file=sys.stderr)


def command_of(config: ReproduceConfig, flag: str = "") -> str:
    """The command as one types it."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith(("action=", "cell="))]
    own = {f"{key}={getattr(config, key)}" for key in ("scale", "seeds")}
    return shlex.join(["python", "-m", "src.reproduce", *given, *sorted(own - set(given)), *([flag] if flag else [])])


def translated(arguments: list[str]) -> list[str]:
    """``--dry-run`` and its like as the overrides they stand for."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--trace":
            found += ["action=trace", f"cell='{next(rest, '')}'"]
        else:
            found.append(FLAGS.get(argument, argument))
    return found


if __name__ == "__main__":
    sys.argv[1:] = translated(sys.argv[1:])
    entry_point("reproduce", main)
