"""From a grid, a scale and a number of seeds to cells and the jobs that fill them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.errors import Problems, UserError
from src.experiments.experiment import Column, Curve, Experiment, Measured
from src.experiments.facts import Base, Composer
from src.experiments.jobs import Job, Resources
from src.experiments.published import Labels
from src.experiments.scale import Scale

CACHELESS = ("ranking", "curvature")
"""Evaluations that have no cache_root."""

KEEPING_NOTHING = ("curvature",)
"""Evaluations that have no output_root."""


@dataclass(frozen=True)
class Places:
    """Where things are written, for every command of a plan. ``logging``: overrides of trainings that mirror them."""

    output_root: str = "runs"
    cache_root: str = "cache"
    records_root: str = "results/records"
    evaluations_root: str = "evaluations"
    logging: tuple[str, ...] = ()

    def training(self) -> list[str]:
        """As overrides of src.train."""
        return [f"output_root={self.output_root}", f"cache_root={self.cache_root}", *self.logging]

    def evaluation(self, benchmark: str) -> list[str]:
        """As overrides of an evaluation; some keep nothing in the cache but what their run has there."""
        caches = [] if benchmark in CACHELESS else [f"cache_root={self.cache_root}"]
        kept = [] if benchmark in KEEPING_NOTHING else [f"output_root={self.evaluations_root}"]
        return [*caches, f"records_root={self.records_root}", *kept]


@dataclass(frozen=True)
class Measurement:
    """One cell with one seed: which run it is of, the job that trains it (``None``: the model as it is), and for a
    benchmark the job that measures it."""

    labels: Labels
    column: Column
    seed: int
    run: Path
    training: str | None
    evaluation: str | None


@dataclass(frozen=True)
class Subject:
    """What a cell measures. ``arguments``: of evaluations, for a model that is no run of ours."""

    run: Path
    training: str | None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All measurements of a table and the jobs behind them, each once, in an order in which they can run."""

    experiment: Experiment
    scale: Scale
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    jobs: Mapping[str, Job]
    composer: Composer

    def of(self, labels: Labels, column: Column) -> list[Measurement]:
        """The measurements of a cell, one per seed."""
        return [m for m in self.measurements if m.labels == labels and m.column.name == column.name]


def plan_of(experiment: Experiment, scale: Scale, seeds: Sequence[int], places: Places | None = None) -> Plan:
    """Everything that the table needs. Raises ``Problems`` naming every cell whose configuration does not compose."""
    return Planner(experiment, scale, tuple(seeds), places or Places()).plan()


class Planner:
    """Collects jobs; the same configuration is one job, however many cells stand on it."""

    def __init__(self, experiment: Experiment, scale: Scale, seeds: tuple[int, ...], places: Places) -> None:
        self.experiment, self.scale, self.seeds, self.places = experiment, scale, seeds, places
        self.composer = Composer(places.cache_root)
        self.jobs: dict[str, Job] = {}
        self.problems: list[str] = []

    def plan(self) -> Plan:
        measurements = [m for labels in self.experiment.keys for m in self.row(labels)]
        self.composer.keep()
        if self.problems:
            raise Problems(list(dict.fromkeys(self.problems)))
        return Plan(self.experiment, self.scale, self.seeds, tuple(measurements), self.jobs, self.composer)

    def row(self, labels: Labels) -> Iterator[Measurement]:
        """The measurements of one row; columns made of other columns need none."""
        for column in map(self.scale.column, self.experiment.columns):
            if not isinstance(column.source, (Measured, Curve)):
                continue
            for seed in self.seeds:
                try:
                    subject = self.subject(self.scale.training(self.experiment, labels, column, seed))
                    evaluation = self.evaluation(subject, column.source)
                except (UserError, HydraException, OmegaConfBaseException) as error:
                    said = str(error).partition("\n")[0]
                    self.problems.append(f"{' / '.join(labels.values())}, {column.name}: {said}")
                    continue
                yield Measurement(labels, column, seed, subject.run, subject.training, evaluation)

    def subject(self, overrides: list[str]) -> Subject:
        """The run that ``overrides`` train. A row of SFT is what the other rows start from: the SFT run that they
        share, or the model as it is."""
        if "method=sft" in overrides:
            starts = [text for text in overrides if section_of(text) in (*STARTS, "seed")]
            facts = self.composer.facts((*starts, *self.places.training()))
            if facts.base is not None:
                training = self.base(facts.base, overrides)
                return Subject(self.jobs[training].run, training)
            if facts.model is not None:
                return Subject(Path(facts.model), None, facts.arguments)
        training = self.training(overrides)
        return Subject(self.jobs[training].run, training)

    def training(self, overrides: list[str]) -> str:
        """Id of the job that trains with ``overrides``, after that of its SFT base."""
        arguments = (*overrides, *self.places.training())
        facts = self.composer.facts(arguments)
        needs = () if facts.base is None else (self.base(facts.base, overrides),)
        return self.add(Job("train", "src.train", arguments, Path(facts.run), needs))

    def base(self, base: Base, overrides: list[str]) -> str:
        """Id of the job that trains an SFT base: by the run's own overrides of what it starts from."""
        kept = [text for text in overrides if section_of(text) in STARTS and key_of(text) not in OF_THE_RUN]
        own = ("method=sft", *kept, f"model.init={base.init}", f"seed={base.seed}")
        arguments = (*own, *self.places.training())
        if (found := self.composer.facts(arguments).run) != base.run:
            raise UserError(
                f"the SFT base {base.run} cannot be trained by itself: {' '.join(own)} gives {found}; train it with "
                "the run that needs it, or choose its settings by model=, dataset= and engine= alone"
            )
        return self.add(Job("train", "src.train", arguments, Path(base.run)))

    def evaluation(self, subject: Subject, source: Measured | Curve) -> str | None:
        """Id of the job that measures a benchmark on a run; ``None`` for a curve, which training writes itself."""
        if isinstance(source, Curve):
            return None
        arguments = (*self.scale.arguments(source), *subject.arguments)
        found = self.composer.evaluation_hash(source.benchmark, arguments)
        module = f"src.evaluation.{source.benchmark}"
        full = (f"checkpoint={subject.run}", *arguments, *self.places.evaluation(source.benchmark))
        needs = () if subject.training is None else (subject.training,)
        return self.add(Job(source.benchmark, module, full, subject.run, needs, found))

    def add(self, job: Job) -> str:
        """Its id; a job that is there already stays as it is."""
        role = "train" if job.is_training else "evaluate"
        self.jobs.setdefault(job.id, replace(job, resources=self.scale.resources.get(role, Resources())))
        return job.id


STARTS = ("model", "dataset", "engine", "generalization@dataset")
"""Sections of the configuration that say what a run starts from."""

OF_THE_RUN = ("model.init", "model.sft_seed", "model.trainable", "dataset.min_score_gap")
"""Keys of them that are not its SFT base's: that one trains all parameters, on demonstrations, which have no scores."""


def key_of(override: str) -> str:
    """The key of an override: ``dataset.source.seed`` of ``+dataset.source.seed=1``."""
    return override.lstrip("+").partition("=")[0]


def section_of(override: str) -> str:
    """The first part of an override's key: ``dataset`` of ``dataset.source.seed=1``."""
    return key_of(override).partition(".")[0]
