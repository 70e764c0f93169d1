"""Evaluation records in Weights & Biases: each a run of job type evaluate, linked to the training run it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from src.evaluation.record import Record
from src.reporting.pages.samples import samples_of
from src.schema import LoggingConfig
from src.wandb_files import read_offline
from src.wandb_runs import LONGEST_ID, Identity, fitting, open_run, run_id, training_identity, unique


@dataclass(frozen=True)
class Mirrored:
    """How many records were written, and how many were there already."""

    new: int
    known: int


def mirror_records(records: Sequence[Record], logging: LoggingConfig, directory: Path) -> Mirrored:
    """Write every record that W&B has not (offline: that ``directory``/wandb has not), of one identity the newest.

    The run's id is a function of the record's, so that measuring again replaces the summary and repeats nothing.
    Raises ``UserError`` without the package, and online without a login.
    """
    newest = {record.id: record for record in sorted(records, key=lambda record: record.created)}
    new = sum(mirrored(record, logging, directory) for record in newest.values())
    return Mirrored(new, len(newest) - new)


def mirrored(record: Record, logging: LoggingConfig, directory: Path) -> bool:
    """Write one record; False when it is there."""
    identity = identity_of(record)
    if logging.backend == "wandb_offline":
        if read_offline(directory, identity.id).summary.get("created") == record.created:
            return False
        directory.mkdir(parents=True, exist_ok=True)
    run: Any = open_run(logging, identity, directory, config_of(record), notes=" ".join(record.notes))
    there = logging.backend == "wandb" and run.summary.get("created") == record.created
    if not there:
        run.summary.update(summary_of(record))
        if logging.samples and (table := table_of(record, logging.samples)) is not None:
            run.summary[f"{record.benchmark}/samples"] = table
    run.finish()
    return not there


def identity_of(record: Record) -> Identity:
    """Group and tags of the training run, where its directory is here; else by method, model and data set."""
    info = record.run
    trained = training_of(record)
    judge = [f"judge:{record.judge.model or record.judge.name}"] if record.judge else []
    own = [record.benchmark, *([record.scale] if record.scale else []), *judge]
    identity = fitting(f"evaluate__{record.id}", LONGEST_ID)
    if trained is None:
        group = "__".join((info.method, info.model, info.dataset))
        return Identity(identity, record.id, group, "evaluate", unique([*own, info.method, info.model, info.dataset]))
    return replace(trained, id=identity, name=record.id, job_type="evaluate", tags=unique([*trained.tags, *own]))


def training_of(record: Record) -> Identity | None:
    """The W&B identity of the measured run; None where its directory is not here."""
    config = trained_config(record)
    if config is None:
        return None
    known = {spec.name for spec in fields(LoggingConfig)}
    given = {key: value for key, value in (config.get("logging") or {}).items() if key in known}
    return training_identity(config, LoggingConfig(**given), Path(record.run.directory), record.run.config_hash)


def trained_config(record: Record) -> dict[str, Any] | None:
    """config.yaml of the measured run; None where it is not here."""
    path = Path(record.run.directory) / "config.yaml"
    if not record.run.directory or not path.is_file():
        return None
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def config_of(record: Record) -> dict[str, Any]:
    """What the run is of. ``training_run``: the id of the training run in W&B."""
    info = record.run
    trained = trained_config(record)
    named = {"method": {"name": info.method}, "model": {"name": info.model}, "dataset": {"name": info.dataset}}
    if trained is not None:
        named = {section: trained[section] for section in (*named, "training") if section in trained}
    return {
        **named,
        "constants": dict(info.constants),
        "training_run": run_id(Path(info.directory), info.config_hash) if info.directory else None,
        "config_hash": info.config_hash,
        "checkpoint": info.checkpoint,
        "step": info.step,
        "seed": info.seed,
        "noise": info.noise,
        "benchmark": record.benchmark,
        "split": record.data.split,
        "scale": record.scale,
        "settings": dict(record.settings),
        "judge": None if record.judge is None else {"name": record.judge.name, "model": record.judge.model},
        "environment": dict(record.environment),
        "command": record.command,
    }


def summary_of(record: Record) -> dict[str, Any]:
    """The numbers, under the benchmark's name, with the bounds of their intervals; and when it was measured."""
    found: dict[str, Any] = {"created": record.created, "step": record.run.step}
    for name, metric in record.metrics.items():
        for suffix, value in (("", metric["value"]), ("_low", metric["low"]), ("_high", metric["high"])):
            if value is not None:
                found[f"{record.benchmark}/{name}{suffix}"] = value
    return found | {f"{record.benchmark}/counts/{name}": count for name, count in record.counts.items()}


def table_of(record: Record, count: int) -> Any:
    """A few answers with what the judge said of them; None where the files behind the record are not here."""
    import wandb

    shown = samples_of(record).shown
    if not shown:
        return None
    step = max(1, len(shown) // count)  # from the worst to the best
    rows = [
        [
            sample.id,
            "\n".join(f"{text.title}: {text.text}" for text in sample.prompt),
            *(sample.answers[place].text if place < len(sample.answers) else "" for place in (0, 1)),
            "\n\n".join(text.text for text in sample.verdicts),
            sample.outcome,
            sample.score,
        ]
        for sample in shown[::step][:count]
    ]
    heads: list[Any] = ["item", "prompt", "answer", "compared with", "verdict", "outcome", "score"]
    return wandb.Table(columns=heads, data=rows)
