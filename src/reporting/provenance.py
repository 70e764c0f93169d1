"""What stands below a table of records, and which records may not stand in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from src.environment import environment
from src.errors import UserError
from src.evaluation.records import Record
from src.experiments.claims import words
from src.experiments.experiment import Column, Measured
from src.experiments.published import Labels
from src.experiments.results import Results
from src.reporting.escapes import DASH
from src.reporting.tables import refuse_several_judges

VERSIONS = ("python", "torch", "transformers", "numpy")


def refuse_mixed(results: Results, records: Sequence[Record]) -> None:
    """Raise ``UserError`` for records of several scales, judges of one benchmark, or data within compared rows."""
    scale = results.plan.scale.name
    if others := [record for record in records if record.scale != scale]:
        named = ", ".join(f"{record.id} ({record.scale or 'none'})" for record in others[:3])
        raise UserError(
            f"{len(others)} records are not of scale {scale}: {named}; a table has one scale: measure them with "
            f"scale={scale}, or give the records' own folder: records_root=FOLDER"
        )
    for benchmark in dict.fromkeys(record.benchmark for record in records):
        refuse_several_judges([record for record in records if record.benchmark == benchmark])
    for column in results.plan.experiment.columns:
        refuse_several_data(results, column)


def refuse_several_data(results: Results, column: Column) -> None:
    """Raise ``UserError`` when rows of one model that are compared were measured, or trained, on other data."""
    experiment = results.plan.experiment
    if not isinstance(results.plan.scale.column(column).source, Measured):
        return
    found: dict[str, list[tuple[Labels, Record]]] = {}
    axes = [axis for axis in experiment.keys[0] if axis in ("model", *experiment.bold_within)]
    for labels in experiment.keys:
        for value in results.values(labels, column):
            if value.record is not None:
                found.setdefault(words(labels, axes), []).append((labels, value.record))
    for where, rows in found.items():
        measured_on = by(rows, lambda record: f"{record.data.split} {record.data.content_hash[:10]}")
        trained_on = by(rows, lambda record: record.run.dataset if record.run.dataset != "none" else "")
        for what, kinds in (("measured", measured_on), ("trained", trained_on)):
            if len(kinds) > 1:
                said = "; ".join(f"{kind}: {words(labels, list(labels))}" for kind, labels in kinds.items())
                of = f" of {where}" if where else ""
                raise UserError(
                    f"the rows{of} were {what} on different data for {column.title} ({said}), so they do not compare; "
                    "measure them on the same, or restore the records"
                )


def by(rows: Sequence[tuple[Labels, Record]], kind: Callable[[Record], str]) -> dict[str, Labels]:
    """The first row of each kind; "" is none."""
    found: dict[str, Labels] = {}
    for labels, record in rows:
        if name := kind(record):
            found.setdefault(name, labels)
    return found


def provenance(results: Results, records: Sequence[Record], command: str) -> list[str]:
    """Where the numbers are from: scale, seeds, judge, data, configurations, commits, versions, dates, command."""
    plan = results.plan
    count = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''} ({', '.join(map(str, plan.seeds))})"
    mean = ": mean ± standard deviation over the seeds" if len(plan.seeds) > 1 else ""
    lines = [
        f"Reproduced at scale {plan.scale.name} with {count}{mean}. Printed numbers are of the paper's own models."
    ]
    lines += plan.scale.notes
    if judges := sorted({judged(record) for record in records if record.judge is not None}):
        lines.append(f"Judge: {'; '.join(judges)}.")
    if records:
        measured_on = {f"{r.benchmark} {r.data.split} {r.data.content_hash[:10]} ({r.data.pairs})" for r in records}
        lines.append(f"Measured on: {listed(measured_on)}.")
        trained_on = {f"{r.run.dataset} {r.run.manifest[:10]}".strip() for r in records if r.run.dataset != "none"}
        lines.append(f"Trained on (data and its manifest): {listed(trained_on)}.")
        lines.append(f"Configurations of runs: {listed({record.run.config_hash for record in records})}.")
        lines.append(f"Configurations of evaluations: {listed({r.evaluation_hash for r in records} - {''})}.")
        lines.append(f"Commits: {listed({commit_of(record.environment) for record in records})}.")
        lines.append(f"Versions: {'; '.join(sorted({versions_of(record.environment) for record in records}))}.")
        dates = sorted(record.created[:10] for record in records)
        lines.append(f"Measured {dates[0]} to {dates[-1]}; rendered by {commit_of(environment())}.")
    return [*lines, *(f"{text}." for text in results.repeated()), f"Command: {command}", *plan.experiment.notes]


def commit_of(found: Mapping[str, object]) -> str:
    """A commit in words."""
    if found.get("commit") is None:
        return "unknown"
    return f"{str(found['commit'])[:10]}{' with changes' if found.get('dirty') else ''}"


def versions_of(found: Mapping[str, object]) -> str:
    """The versions that matter."""
    return ", ".join(f"{name} {found[name]}" for name in VERSIONS if found.get(name))


def judged(record: Record) -> str:
    """A record's judge in words."""
    judge = record.judge
    assert judge is not None
    name = judge.name if judge.name == judge.model else f"{judge.name} {judge.model}"
    return f"{name.strip()} for {record.benchmark} (prompts {judge.prompts[:10]})"


def listed(values: Iterable[str], shown: int = 12) -> str:
    """The values in order, the rest counted."""
    ordered = sorted(set(values))
    rest = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + rest if ordered else DASH
