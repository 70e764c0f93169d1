"""From a grid, a scale and a number of seeds to cells and the jobs that fill them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import composed, evaluation_hash
from src.errors import Problems, UserError
from src.experiments.experiment import Column, Curve, Experiment, Measured
from src.experiments.jobs import Job
from src.experiments.published import Labels
from src.experiments.scale import Scale

if TYPE_CHECKING:
    from src.schema import TrainConfig


@dataclass(frozen=True)
class Places:
    """Where things are written, for every command of a plan."""

    output_root: str = "runs"
    cache_root: str = "cache"
    records_root: str = "results/records"
    evaluations_root: str = "evaluations"

    def training(self) -> list[str]:
        """As overrides of src.train."""
        return [f"output_root={self.output_root}", f"cache_root={self.cache_root}"]

    def evaluation(self) -> list[str]:
        """As overrides of an evaluation."""
        return [
            f"cache_root={self.cache_root}",
            f"records_root={self.records_root}",
            f"output_root={self.evaluations_root}",
        ]


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
    configs: Mapping[str, TrainConfig]

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
        self.jobs: dict[str, Job] = {}
        self.configs: dict[str, TrainConfig] = {}
        self._trainings: dict[tuple[str, ...], str] = {}
        self._starts: dict[tuple[str, ...], Subject] = {}
        self._hashes: dict[tuple[str, ...], str] = {}
        self.problems: list[str] = []

    def plan(self) -> Plan:
        measurements = [m for labels in self.experiment.keys for m in self.row(labels)]
        if self.problems:
            raise Problems(list(dict.fromkeys(self.problems)))
        return Plan(self.experiment, self.scale, self.seeds, tuple(measurements), self.jobs, self.configs)

    def row(self, labels: Labels) -> Iterator[Measurement]:
        """The measurements of one row; columns made of other columns need none."""
        for column in map(self.scale.column, self.experiment.columns):
            if not isinstance(column.source, (Measured, Curve)):
                continue
            for seed in self.seeds:
                try:
                    subject = self.subject(self.scale.training(self.experiment, labels, column, seed))
                    evaluation = self.evaluation(subject, column.source)
                except UserError as error:
                    self.problems.append(f"{' / '.join(labels.values())}, {column.name}: {error}")
                    continue
                yield Measurement(labels, column, seed, subject.run, subject.training, evaluation)

    def subject(self, overrides: list[str]) -> Subject:
        """The run that ``overrides`` train. A row of SFT is what the other rows start from: the SFT run that they
        share, or the model as it is."""
        from src.config import compose_train
        from src.training.run import sft_base

        if "method=sft" not in overrides:
            training = self.training(overrides)
            return Subject(self.jobs[training].run, training)
        of_start = [text for text in overrides if section_of(text) in STARTS]
        key = tuple(of_start)
        if key not in self._starts:
            config = compose_train([*of_start, *self.places.training()])
            if (base := sft_base(config)) is not None:
                training = self.base(base, overrides)
                self._starts[key] = Subject(self.jobs[training].run, training)
            elif config.model.init == "pretrained":
                self._starts[key] = Subject(Path(str(config.model.path)), None, as_it_is(config))
            else:
                training = self.training(overrides)
                self._starts[key] = Subject(self.jobs[training].run, training)
        return self._starts[key]

    def training(self, overrides: list[str]) -> str:
        """Id of the job that trains with ``overrides``, after that of its SFT base."""
        from src.config import compose_train
        from src.training.run import planned_directory, sft_base

        arguments = (*overrides, *self.places.training())
        if arguments not in self._trainings:
            config = compose_train(list(arguments))
            needs: tuple[str, ...] = ()
            if (base := sft_base(config)) is not None:
                needs = (self.base(base, overrides),)
            job = Job("train", "src.train", arguments, planned_directory(config), needs)
            self.jobs.setdefault(job.id, job)
            self.configs[job.id] = config
            self._trainings[arguments] = job.id
        return self._trainings[arguments]

    def base(self, config: TrainConfig, overrides: list[str]) -> str:
        """Id of the job that trains an SFT base: by the run's own overrides of model and data, with method=sft."""
        from src.training.run import planned_directory

        kept = [text for text in overrides if section_of(text) in STARTS and not text.startswith("model.init=")]
        init = f"model.init={config.model.init}"
        arguments = ("method=sft", *kept, init, f"seed={config.seed}", *self.places.training())
        job = Job("train", "src.train", arguments, planned_directory(config))
        self.jobs.setdefault(job.id, job)
        self.configs.setdefault(job.id, config)
        return job.id

    def evaluation(self, subject: Subject, source: Measured | Curve) -> str | None:
        """Id of the job that measures a benchmark on a run; ``None`` for a curve, which training writes itself."""
        if isinstance(source, Curve):
            return None
        arguments = (*self.scale.arguments(source), *subject.arguments)
        key = (source.benchmark, *arguments)
        if key not in self._hashes:
            self._hashes[key] = evaluation_hash(source.benchmark, composed(source.benchmark, list(arguments)))
        module = f"src.evaluation.{source.benchmark}"
        full = (f"checkpoint={subject.run}", *arguments, *self.places.evaluation())
        needs = () if subject.training is None else (subject.training,)
        job = Job(source.benchmark, module, full, subject.run, needs, self._hashes[key])
        self.jobs.setdefault(job.id, job)
        return job.id


STARTS = ("model", "dataset", "engine", "generalization@dataset")
"""Sections of the configuration that say what a run starts from."""


def section_of(override: str) -> str:
    """The first part of an override's key: ``dataset`` of ``dataset.source.seed=1``."""
    return override.lstrip("+").partition("=")[0].partition(".")[0]


def as_it_is(config: TrainConfig) -> tuple[str, ...]:
    """What an evaluation must be told of a model that is no run of ours."""
    stops = ",".join(f"'{token}'" for token in config.model.stop_tokens)
    template = () if config.model.template is None else (f"template={config.model.template}",)
    return (*template, f"stop_tokens=[{stops}]", f"dtype={config.model.dtype}")
