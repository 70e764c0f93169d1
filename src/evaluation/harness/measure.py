"""Tasks on a run, from the configuration to the record."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.benchmark_schema import LmHarnessConfig
from src.data.cache import json_hash
from src.data.sources.files import content_hash
from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.finish import finish
from src.evaluation.harness.estimate import say_estimate
from src.evaluation.harness.items import items_of
from src.evaluation.harness.load import Unit, asked_names, data_sources, load_units
from src.evaluation.harness.metrics import absent_averages, all_metrics
from src.evaluation.harness.package import guest
from src.evaluation.harness.run import Place, Settings, run_units
from src.evaluation.harness.suites import Suite, chosen
from src.evaluation.records import DataInfo
from src.evaluation.subject import Subject, subject_of

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def measure(config: LmHarnessConfig) -> None:
    """Run the tasks, write the record and show it; with ``dry_run`` only say what would be done."""
    refuse_unread(config)
    settings = Settings.of(config)
    subject = subject_of(config)
    policy = subject.policy
    if policy is None:
        raise UserError("lm-eval needs weights; give checkpoint= a run directory, a model directory or a hub id")
    with guest(config.cache_root):
        units, suites = load_units(config)
        place = Place.of(config.output_root, policy, settings)
        say_estimate(units, place, settings, policy, config.device)
        if config.dry_run:
            return

        def opened() -> LM:
            from src.evaluation.harness.model import open_model

            return open_model(
                policy,
                backend=settings.backend,
                device=config.device,
                batch_size=settings.batch_size,
                chat=settings.chat,
            )

        results = run_units(units, place, settings, subject.name, opened)
        scores = scores_of(units, results, suites, config)
        sources = sources_of(units, results, place, settings)
        scores = replace(scores, items=items_of(sample_files(units, results, place, settings), suites, scores.metrics))
    write(config, subject, units, results, scores, settings, sources)


def refuse_unread(config: LmHarnessConfig) -> None:
    """Raise ``UserError`` for values that cannot work, or would not be read, before anything is read."""
    if config.samples is not None:
        raise UserError("samples would not be read: it goes with stage=score; add stage=score, or leave it out")
    if len(config.seeds) != 4:
        raise UserError(
            f"seeds={list(config.seeds)} must be four whole numbers: of Python, numpy, torch, and the examples"
        )
    if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "backend=vllm, but vllm is not installed here; install it (pip install vllm, on a machine with a GPU), or "
            "use backend=hf"
        )
    chosen(asked_names(config), config.num_fewshot)
    size = config.batch_size
    if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"batch_size={size} cannot work; give a whole number of at least 1, or auto")


def scores_of(
    units: Sequence[Unit], results: Sequence[Mapping[str, Any]], suites: Sequence[Suite], config: LmHarnessConfig
) -> Scores:
    """Metrics, counts and notes of all units."""
    named = [(unit.name, result["results"]) for unit, result in zip(units, results, strict=True)]
    metrics, inner = all_metrics(named, suites)
    counts, notes = {}, []
    for unit, result in zip(units, results, strict=True):
        counts[f"{unit.name}/documents"] = sum(sample["effective"] for sample in result["n_samples"].values())
        cut = sum(result["truncated"].values())
        counts[f"{unit.name}/truncated"] = cut
        if cut:
            notes.append(
                f"{unit.name}: {cut} documents' prompts do not fit into the model and lost their beginning, examples "
                "first, as lm-eval does it"
            )
        shots = {shot for name, shot in result["n_shot"].items() if name in unit.tasks}
        if unit.wanted.num_fewshot is not None and shots != {unit.wanted.num_fewshot}:
            spoken = ", ".join(map(str, sorted(shots)))
            notes.append(
                f"{unit.name}: ran with {spoken} examples, not {unit.wanted.num_fewshot}: lm-eval leaves a task alone "
                "whose own configuration says 0"
            )
    if config.max_items is not None:
        notes.append(f"only the first {config.max_items} documents of each task (max_items)")
    notes += absent_averages(metrics)
    details = {"versions": versions_of(results), "subtasks": inner}
    return Scores(metrics, counts, tuple(notes), details)


def versions_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Task -> its version in lm-eval."""
    return {str(task): version for result in results for task, version in result["versions"].items()}


def sample_files(
    units: Sequence[Unit], results: Sequence[Mapping[str, Any]], place: Place, settings: Settings
) -> dict[str, dict[str, Path]]:
    """What was asked for -> task -> file of its samples."""
    return {
        unit.name: {task: place.unit(unit, settings) / sample["file"] for task, sample in result["samples"].items()}
        for unit, result in zip(units, results, strict=True)
    }


def sources_of(
    units: Sequence[Unit], results: Sequence[Mapping[str, Any]], place: Place, settings: Settings
) -> dict[str, Any]:
    """Per-sample logs and local data files, with their hashes."""
    found: dict[str, Any] = {}
    for unit, result in zip(units, results, strict=True):
        folder = place.unit(unit, settings)
        for task, sample in result["samples"].items():
            found[f"samples/{task}"] = {"path": str(folder / sample["file"]), "hash": sample["hash"]}
        for name, path in data_sources(unit):
            found[f"data/{name}"] = {"path": str(path), "hash": content_hash([path])}
    return found


def write(
    config: LmHarnessConfig,
    subject: Subject,
    units: Sequence[Unit],
    results: Sequence[Mapping[str, Any]],
    scores: Scores,
    settings: Settings,
    sources: Mapping[str, Any],
) -> Path:
    """The record."""
    identities = {unit.name: result["identity"] for unit, result in zip(units, results, strict=True)}
    tasks = {
        name: {"config": one["config"], "data": one["data"], "num_fewshot": one["num_fewshot"]}
        for name, one in identities.items()
    }
    documents = sum(count for name, count in scores.counts.items() if name.endswith("/documents"))
    data = DataInfo(config.benchmark, json_hash({name: one["data"] for name, one in tasks.items()}), documents)
    return finish(
        config,
        "lm_harness",
        subject,
        scores,
        data,
        {"which": config.which, "tasks": tasks, **settings.describe()},
        sources=dict(sources),
        command=" ".join(["python -m src.evaluation.lm_harness", *sys.argv[1:]]),
    )
