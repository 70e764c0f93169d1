"""From trainings to jobs: one alone, a sweep as an array, or the chain from data to report; and what was submitted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.benchmark_schema import JudgedConfig, SubmitConfig
from src.cluster.batch import Batch, Dependency, Kind, cancel, submit
from src.cluster.manifest import Task, keep_conf, measurement, write
from src.cluster.options import Options
from src.config import SCHEMAS, frozen
from src.errors import Problems, UserError

SUBMITTED = ".submitted"
"""Folder below output_root: manifests, logs and ids of what was submitted, by a hash of what it is."""

JOBS = "jobs.json"
PREPARE = "src.prepare"
BENCHMARKS = ("ranking", "alpaca_eval", "arena_hard", "mt_bench", "lm_harness", "rm_bench", "listwise")


@dataclass(frozen=True)
class Link:
    """One job of a submission, or one array. ``script``: of slurm/; ``needs``: links before it, and how."""

    name: str
    script: str
    tasks: tuple[Task, ...]
    options: Options
    needs: tuple[tuple[Kind, str], ...] = ()


@dataclass(frozen=True)
class Submission:
    """Links in an order in which each comes after those it needs, and the folder of what is known of them."""

    folder: Path
    links: tuple[Link, ...]

    def batch(self, link: Link) -> Batch:
        """The call of sbatch for a link, without what it waits for."""
        manifest, alone = self.folder / link.name / "manifest.jsonl", len(link.tasks) == 1
        arguments = (str(manifest.absolute()), *(("0",) if alone else ()))
        run = link.tasks[0].run
        log = (Path(run) if alone and run else self.folder) / "slurm" / f"{link.name}-{'%j' if alone else '%A_%a'}.out"
        tasks = () if alone else tuple(range(len(link.tasks)))
        name, conf = f"marginalia-{link.name}", self.folder / "conf"
        return Batch(name, link.script, arguments, self.folder, log, link.options, tasks, conf=conf)

    def batches(self) -> list[Batch]:
        """The calls, with the names of links in place of the ids of jobs."""
        return [self.after(link, {one.name: one.name.upper() for one in self.links}) for link in self.links]

    def after(self, link: Link, jobs: dict[str, str]) -> Batch:
        """The call for a link, once the links before it have ``jobs``."""
        return self.batch(link).needing(*(Dependency(kind, jobs[name]) for kind, name in link.needs))


def planned(trainings: Sequence[Task], config: SubmitConfig, options: Options) -> Submission:
    """The jobs for ``trainings``: themselves alone, or with ``chain`` all that comes before and after them.

    Raises ``Problems`` for evaluations that are none of ours or that do not compose.
    """
    script = "train.sbatch" if len(trainings) == 1 else "sweep.sbatch"
    train = Link("train", script, tuple(trainings), options)
    links = chained(train, config, options) if config.chain else [train]
    text = json.dumps([[link.name, *((task.module, task.config) for task in link.tasks)] for link in links])
    name = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Submission(Path(trainings[0].config["output_root"]) / SUBMITTED / name, tuple(links))


def chained(train: Link, config: SubmitConfig, options: Options) -> list[Link]:
    """prepare → reference → train → evaluate → judge → report; links that have nothing to do are left out."""
    before = [Link("prepare", "judge.sbatch", before_training(train.tasks, False), options.no_gpu)]
    if reference := before_training([task for task in train.tasks if stands_on_more(task)], True):
        before.append(Link("reference", "train.sbatch", reference, options, (("afterok", "prepare"),)))
    train = replace(train, needs=(("afterok", before[-1].name),))
    after, problems = [], []
    for number, entry in enumerate(config.evaluations):
        try:
            after += measured(train, entry, config, options, [str(other) for other in config.evaluations[:number]])
        except Problems as error:
            problems += error.problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise Problems(problems)
    needed = {name for link in after for _, name in link.needs}
    ends = tuple(("afterok", link.name) for link in [train, *after] if link.name not in needed)
    places = [
        f"runs={train.tasks[0].config['output_root']}",
        f"records={config.records_root}",
        f"output={config.report}",
    ]
    report = Link("report", "judge.sbatch", (measurement("src.report", places),), options.no_gpu, ends)  # type: ignore[arg-type]
    return [*before, train, *after, report]


def measured(train: Link, entry: str, config: SubmitConfig, options: Options, earlier: list[str]) -> list[Link]:
    """The links of one benchmark: all of it on a GPU, or answers there and then the judge without one."""
    name, *own = shlex.split(entry)
    if name not in BENCHMARKS:
        raise UserError(f"evaluations=[{name}] is no benchmark; choose of: {', '.join(BENCHMARKS)}")
    if any(key.startswith(("stage=", "checkpoint=")) for key in own):
        raise UserError(f"'{entry}': the chain itself sets checkpoint and stage; leave them out")
    given = [f"records_root={config.records_root}", f"output_root={config.evaluations_root}", *own]
    again = any(shlex.split(other)[0] == name for other in earlier)
    link = f"{name}_{len(earlier) + 1}" if again else name

    def tasks(*more: str) -> tuple[Task, ...]:
        return tuple(
            measurement(f"src.evaluation.{name}", [f"checkpoint={task.run}", *given, *more]) for task in train.tasks
        )

    trained: tuple[tuple[Kind, str], ...] = (("aftercorr", train.name),)
    if not issubclass(SCHEMAS[name], JudgedConfig):
        return [Link(f"evaluate_{link}", "evaluate.sbatch", tasks(), options.one_gpu, trained)]
    answers = Link(f"evaluate_{link}", "evaluate.sbatch", tasks("stage=generate"), options.one_gpu, trained)
    return [answers, Link(f"judge_{link}", "judge.sbatch", tasks(), options.no_gpu, (("aftercorr", answers.name),))]


def before_training(trainings: Iterable[Task], reference: bool) -> tuple[Task, ...]:
    """Tasks of src.prepare for trainings, one for those that differ in nothing that they stand on."""
    found: dict[str, Task] = {}
    for task in trainings:
        config = {**task.config, "reference": reference}
        found.setdefault(
            ground_of(config), Task(PREPARE, (*task.overrides, f"reference={reference}"), config, None, task.base)
        )
    return tuple(found.values())


def ground_of(config: dict[str, Any]) -> str:
    """What of a training its data and its reference can depend on: all but the numbers of method and optimizer."""
    method = {slot: part.get("_target_") for slot, part in config["method"].items() if isinstance(part, dict)}
    training = {key: config["training"].get(key) for key in ("max_pairs", "max_steps", "epochs")}
    rest = ("model", "adapter", "dataset", "noise", "seed", "cache_root", "output_root")
    return json.dumps([method, training, *(config[key] for key in rest)], sort_keys=True)


def stands_on_more(task: Task) -> bool:
    """Whether a training needs a trained SFT base, or a reference."""
    from omegaconf import OmegaConf

    from src.training.assemble import build_objective

    return task.base is not None or build_objective(frozen(OmegaConf.create(task.config))).needs.reference


def submitted(submission: Submission) -> dict[str, str]:
    """Hand all links to SLURM; the id of each one's job. When one is refused, those before it are taken back."""
    jobs: dict[str, str] = {}
    keep_conf(submission.folder)
    for link in submission.links:
        write(submission.folder / link.name, link.tasks)
    timeout = submission.links[0].options.timeout
    try:
        for link in submission.links:
            jobs[link.name] = submit(submission.after(link, jobs))
    except UserError:
        cancel(list(jobs.values()), timeout)
        raise
    aside = submission.folder / f".{JOBS}.{os.getpid()}"
    aside.write_text(json.dumps(jobs, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, submission.folder / JOBS)
    return jobs


def known_jobs(folder: Path) -> dict[str, str]:
    """The ids of the jobs that were submitted last, by link; {} when none were."""
    try:
        found = json.loads((folder / JOBS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(job) for name, job in found.items() if re.fullmatch(r"\d+", str(job))}
