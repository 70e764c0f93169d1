"""`python -m src.reproduce paper=amapo table=2`: a table from its grid to the printed and reproduced numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from src.benchmark_schema import ReproduceConfig
from src.cli import entry_point
from src.config import ROOT, problems_of
from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.experiments.launcher import Launcher
    from src.experiments.plan import Plan
    from src.experiments.results import Results

FLAGS = {
    f"--{name}": f"action={name.replace('-', '_')}" for name in ("dry-run", "missing", "submit", "status", "table")
}


def main(config: DictConfig) -> int:
    if problems := problems_of(config, ReproduceConfig):
        raise Problems(problems)
    checked = cast(ReproduceConfig, config)
    if (checked.cell is not None) != (checked.action == "trace"):
        raise UserError("a cell is traced by --trace LABEL/LABEL/COLUMN, such as --trace Llama3-8B-Base/AMaPO/ae2_lc")
    if checked.action == "submit":
        return submitted(checked)
    from src.experiments import progress

    plan, results, launcher = opened(checked)
    if checked.action == "dry_run":
        print("\n".join(progress.forecast(plan, launcher, workers_of(checked))))
    elif checked.action == "missing":
        print("\n".join(progress.missing(plan, launcher)))
    elif checked.action == "status":
        print("\n".join(progress.status(plan, launcher)))
    elif checked.action == "trace":
        print("\n".join(progress.trace(plan, results, str(checked.cell))))
    elif checked.action == "table":
        written(checked, results)
    else:
        return run(checked, plan, results, launcher)
    return 0


def opened(config: ReproduceConfig) -> tuple[Plan, Results, Launcher]:
    """The plan, what is known of it, and what runs it."""
    from src.experiments.experiment import find, load
    from src.experiments.launcher import LocalLauncher
    from src.experiments.plan import Places, plan_of
    from src.experiments.results import RecordIndex, Results, done
    from src.experiments.scale import read_scale

    experiment, scale = load(find(config.paper, str(config.table))), read_scale(config.scale)
    places = Places(config.output_root, config.cache_root, config.records_root, config.evaluations_root)
    plan = plan_of(experiment, scale, range(config.seeds), places)
    index = RecordIndex(Path(config.records_root))
    launcher = LocalLauncher.below(config.output_root, lambda job: done(job, index), workers_of(config), config.threads)
    return plan, Results(plan, index), launcher


def workers_of(config: ReproduceConfig) -> int:
    """Jobs at a time."""
    return config.workers or max(1, len(os.sched_getaffinity(0)) // config.threads)


def run(config: ReproduceConfig, plan: Plan, results: Results, launcher: Launcher) -> int:
    """Everything that is missing, then the table; 1 when a job failed."""
    from src.experiments import progress

    progress.preflight(plan)
    missing = [job for job in plan.jobs.values() if launcher.state(job) != "done"]
    for line in progress.forecast(plan, launcher, workers_of(config)):
        print(line, file=sys.stderr)
    signal.signal(signal.SIGTERM, interrupted)
    complete = launcher.run(missing, progress.Reporter(plan, launcher, workers_of(config)))
    written(config, results)
    if not complete:
        print(f"\nsome jobs failed; see them by: {command_of(config, '--status')}", file=sys.stderr)
    return 0 if complete else 1


def interrupted(number: int, frame: FrameType | None) -> None:
    """A request to stop ends the program as the keyboard does: jobs are asked to stop and write what they have."""
    raise KeyboardInterrupt


def submitted(config: ReproduceConfig) -> int:
    """Start the same command without --submit in the background; its words go to a file."""
    overrides = [argument for argument in sys.argv[1:] if argument != "action=submit"]
    folder = Path(config.output_root) / ".jobs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"reproduce-{config.paper}-{config.table}-{config.scale}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "src.reproduce", *overrides],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"process {process.pid} is at it; its words: {log}; how far it is: {command_of(config, '--status')}")
    return 0


def written(config: ReproduceConfig, results: Results) -> None:
    """Write the table in all formats and print it."""
    from src.reporting.paper_tables import write_table

    paths, text = write_table(results, Path(config.tables_root), command_of(config))
    print(text)
    print("\n".join(map(str, paths)), file=sys.stderr)


def command_of(config: ReproduceConfig, flag: str = "") -> str:
    """The command as one types it."""
    parts = ["python -m src.reproduce", f"paper={config.paper}", f"table={config.table}", f"scale={config.scale}"]
    return " ".join([*parts, f"seeds={config.seeds}", flag]).strip()


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
