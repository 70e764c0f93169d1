"""Scoring a log again by lm-eval's own code, without model and without data.

A task is built from its YAML with the logged documents in place of its data set; the logged raw answers go through its
filters and its metrics. So a log-likelihood's argmax, a choice's length, a regular expression and a standard error are
lm-eval's, not ours.

* Ties: ``numpy.argmax`` takes the first of equal choices; counted.
* A log-likelihood that is NaN counts as the largest to ``numpy.argmax``, so that choice is taken; counted.
* Several rows of one document under one filter: the first counts, the others are counted, those that differ apart.
* Documents between 0 and the largest number that have no row are counted, and scores are over those there are.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from src.evaluation.finish import say
from src.evaluation.harness.samples import Log, Row, is_choice


@dataclass(frozen=True)
class Rescored:
    """A log scored again. ``results``: as lm-eval gives them for a task; ``counts``: rows by rule; ``notes``: what was
    not computed again and why."""

    results: Mapping[str, Any]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class Counted:
    """Rows without repetitions, by document in order, and what fell out."""

    rows: dict[int, dict[str, Row]] = field(default_factory=lambda: defaultdict(dict))
    counts: Counter[str] = field(default_factory=Counter)


class Documents(list[Any]):
    """Logged documents where lm-eval expects a split of a data set."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


class Splits(dict[str, Documents]):
    """Every split is the logged documents."""

    def __init__(self, documents: Documents) -> None:
        super().__init__()
        self.documents = documents

    def __missing__(self, key: str) -> Documents:
        return self.documents


def rescore(log: Log, config: Mapping[str, Any] | None) -> Rescored:
    """Score a log by its task's configuration; ``None``: lm-eval does not know the task."""
    counted = without_repetitions(log)
    firsts = [next(iter(by_filter.values())) for by_filter in counted.rows.values()]
    why = "lm-eval has no such task"
    if config is None and all(map(is_choice, firsts)) and all(str(row.target).isdigit() for row in firsts):
        config = choice_config(log.task, firsts)
        firsts = [choice_row(row) for row in firsts]
    if config is not None:
        try:
            task = task_of(config, firsts)
            raw = values_again(task, firsts)
        except Exception as error:  # a task's own code may fail in any way on a log of another version
            lines = str(error).strip().splitlines() or [""]
            why = f"lm-eval's code for it failed here ({type(error).__name__}: {lines[0]:.200})"
        else:
            count_choices(task, firsts, counted.counts)
            counted.counts["differs_from_log"] = differing(raw, counted)
            return Rescored(aggregated(task, raw, len(firsts)), said(counted))
    logged, left_out = logged_values(counted)
    notes = [f"{log.task}: metrics are means of the logged values, answers were not scored again: {why}"]
    if left_out:
        notes.append(f"{log.task}: {', '.join(left_out)} cannot be averaged from the log and is left out")
    return Rescored(means(logged, len(firsts)), said(counted), tuple(notes))


def said(counted: Counted) -> dict[str, int]:
    """All counts, those of every log first, also where they are 0."""
    return {name: counted.counts[name] for name in ALWAYS} | dict(counted.counts)


ALWAYS = ("documents", "missing", "duplicates", "conflicting_duplicates", "nan_loglikelihoods")


def without_repetitions(log: Log) -> Counted:
    """The first row of each (document, filter)."""
    found = Counted()
    for row in log.rows:
        first = found.rows[row.doc_id].setdefault(row.filter, row)
        if first is not row:
            found.counts["duplicates" if same(first, row) else "conflicting_duplicates"] += 1
    found.rows = {doc_id: found.rows[doc_id] for doc_id in sorted(found.rows)}
    found.counts["documents"] = len(found.rows)
    found.counts["missing"] = max(found.rows) + 1 - len(found.rows)
    answers = [answer[0] for rows in found.rows.values() for row in [*rows.values()][:1] for answer in row.resps]
    found.counts["nan_loglikelihoods"] = sum(isinstance(one, tuple) and math.isnan(one[0]) for one in answers)
    return found


def same(one: Row, other: Row) -> bool:
    """Whether two rows say the same (NaN equals NaN)."""
    return repr((one.doc, one.resps, one.target)) == repr((other.doc, other.resps, other.target))


def task_of(config: Mapping[str, Any], rows: Sequence[Row]) -> Any:
    """lm-eval's task over the logged documents."""
    from lm_eval.api.task import ConfigurableTask

    splits = Splits(Documents(dict(row.doc) for row in rows))
    without = {"process_docs": None, "dataset_path": None, "dataset_name": None, "dataset_kwargs": None}
    left_out = ("tag", "group", "task_list")
    given = {key: value for key, value in config.items() if key not in left_out}
    given |= without | {"custom_dataset": lambda **ignored: splits, "metadata": None}
    return ConfigurableTask(config=given)


def values_again(task: Any, rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Any]]:
    """(metric, filter) -> document -> value, from the raw answers."""
    from lm_eval.api.instance import Instance

    kind = "loglikelihood" if task.OUTPUT_TYPE == "multiple_choice" else task.OUTPUT_TYPE
    instances: dict[int, list[Any]] = {}
    for row in rows:
        metadata = (task.config.task, row.doc_id, len(row.resps[0]))
        arguments = row.arguments or ((),) * len(row.resps)
        instances[row.doc_id] = [
            Instance(kind, dict(row.doc), arguments[index], index, metadata, resps=list(answers))
            for index, answers in enumerate(row.resps)
        ]
    task._instances = [instance for of_document in instances.values() for instance in of_document]
    task.apply_filters()
    found: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for row in rows:
        of_document = instances[row.doc_id]
        for name in of_document[0].filtered_resps:
            values = task.process_results(dict(row.doc), [one.filtered_resps[name] for one in of_document])
            for metric, value in values.items():
                found[metric, name][row.doc_id] = value
    return found


def aggregated(task: Any, raw: Mapping[tuple[str, str], Mapping[int, Any]], documents: int) -> dict[str, Any]:
    """What lm-eval makes of the values of all documents."""
    from lm_eval.evaluator_utils import _compute_task_aggregations

    found, _ = _compute_task_aggregations(task, {key: list(values.values()) for key, values in raw.items()})
    return {"sample_len": documents, **found}


def differing(raw: Mapping[tuple[str, str], Mapping[int, Any]], counted: Counted) -> int:
    """How many logged values are others than those computed now."""
    different = 0
    for (metric, name), values in raw.items():
        for doc_id, value in values.items():
            row = counted.rows[doc_id].get(name)
            if row is not None and metric in row.values and isinstance(value, int | float):
                logged = row.values[metric]
                different += not (isinstance(logged, int | float) and math.isclose(logged, value, abs_tol=1e-9))
    return different


def count_choices(task: Any, rows: Sequence[Row], counts: Counter[str]) -> None:
    """Count documents in which the best choice is not the only best one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for row in rows:
        sizes = [float(len(choice)) for choice in task.doc_to_choice(dict(row.doc))]
        scores = [answers[0][0] for answers in row.resps][: len(sizes)]
        counts["ties_acc"] += scores.count(max(scores)) > 1
        if "acc_norm" in task.aggregation() and all(sizes):
            per_character = [score / size for score, size in zip(scores, sizes, strict=True)]
            counts["ties_acc_norm"] += per_character.count(max(per_character)) > 1


def choice_config(task: str, rows: Sequence[Row]) -> dict[str, Any]:
    """A multiple choice that lm-eval does not know: choices are the continuations that were scored."""
    logged = {name for row in rows for name in row.values}
    names = [name for name in ("acc", "acc_norm") if name in logged] or ["acc", "acc_norm"]
    return {
        "task": task,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "text",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names],
    }


def choice_row(row: Row) -> Row:
    """The row with a document that says what was asked; the blank that lm-eval puts before a choice is not of it."""
    choices = [str(arguments[1]).removeprefix(" ") for arguments in row.arguments]
    document = {"text": "", "choices": choices, "gold": int(row.target)}
    return Row(row.doc_id, document, row.target, row.arguments, row.resps, row.filter, row.values)


FLATTENED = ("inst_level_strict_acc", "inst_level_loose_acc")
"""Metrics whose value for a document is a list, all of which count alike."""


def logged_values(counted: Counted) -> tuple[dict[tuple[str, str], list[float]], list[str]]:
    """((metric, filter) -> values as they were logged, metrics that are no numbers)."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    left_out = set()
    for by_filter in counted.rows.values():
        for row in by_filter.values():
            for metric, value in row.values.items():
                if isinstance(value, int | float):
                    found[metric, row.filter].append(float(value))
                elif metric in FLATTENED and isinstance(value, list):
                    found[metric, row.filter] += [float(one) for one in value]
                else:
                    left_out.add(metric)
    return found, sorted(left_out)


def means(values: Mapping[tuple[str, str], Sequence[float]], documents: int) -> dict[str, Any]:
    """Means and their standard errors, by lm-eval's functions."""
    from lm_eval.api.metrics import mean, mean_stderr

    found: dict[str, Any] = {"sample_len": documents}
    for (metric, name), of_metric in values.items():
        found[f"{metric},{name}"] = mean(of_metric)
        found[f"{metric}_stderr,{name}"] = mean_stderr(of_metric) if len(of_metric) > 1 else "N/A"
    return found


def say_rescored(log: Log, result: Rescored) -> None:
    """A line of progress."""
    say(f"  {log.model} {log.task}: {result.counts['documents']} documents")
