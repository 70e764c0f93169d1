"""stage=score: numbers from per-sample logs alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from src.benchmark_schema import LmHarnessConfig
from src.data.sources.files import existing
from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.finish import ModelScores
from src.evaluation.harness.local import KNOWN, folder_of, packaged_config
from src.evaluation.harness.metrics import absent_averages, all_metrics
from src.evaluation.harness.package import task_folder
from src.evaluation.harness.rescore import Rescored, rescore, say_rescored
from src.evaluation.harness.samples import Log, read_logs
from src.evaluation.harness.suites import Suite, known_folders, read_suite, suite_names
from src.evaluation.harness.toy import toy_tasks


def score_stored(config: LmHarnessConfig) -> list[ModelScores]:
    """The scores of every model in the files that ``samples`` names, in the files' order."""
    if config.samples is None:
        raise UserError("stage=score needs samples=FILE (or [FILE,...]): per-sample logs of lm-eval")
    refuse_checkpoint(config)
    names = [config.tasks] if isinstance(config.tasks, str) else [str(name) for name in config.tasks or []]
    asked = [name for name in names if name in suite_names()]
    tasks = [name for name in names if name not in asked]
    paths = sample_files(config.samples)
    logs = read_logs(paths, tasks)
    if tasks and len(tasks) != len(paths):
        logs = [log for log in logs if log.task in tasks]
    if not logs:
        raise UserError(f"tasks={','.join(tasks)}: the files of samples hold no log of these; leave tasks out for all")
    configs = TaskConfigs(config.tasks_from)
    by_model: dict[str, list[tuple[Log, Rescored]]] = {}
    for log in logs:
        result = rescore(log, configs.of(log.task) or configs.by_shape(log))
        say_rescored(log, result)
        by_model.setdefault(log.model, []).append((log, result))
    return [ModelScores(model, None, scores_of(found, asked, configs)) for model, found in by_model.items()]


def refuse_checkpoint(config: LmHarnessConfig) -> None:
    """Raise ``UserError`` for keys that would not be read."""
    given = {
        "checkpoint": config.checkpoint,
        "max_items": config.max_items,
        "num_fewshot": config.num_fewshot,
        "apply_chat_template": config.apply_chat_template,
    }
    if unread := [f"{key}={value}" for key, value in given.items() if value is not None]:
        raise UserError(
            f"{', '.join(unread)} would not be read: stage=score takes logs as they are; leave it out, or leave stage "
            "out to run the tasks"
        )


def sample_files(given: Any) -> list[Path]:
    """The files; for a folder the logs below it, sorted."""
    listed = [given] if isinstance(given, str) else [str(path) for path in given]
    found: list[Path] = []
    for name in listed:
        path = existing(name, "samples")
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*.jsonl*") if "samples" in file.name and file.is_file())
            if not inside:
                raise UserError(f"samples={name} is a folder without a file named samples_*.jsonl or *.samples.jsonl")
            found += inside
        else:
            found.append(path)
    return found


class TaskConfigs:
    """Configurations of tasks by name: of one's own folder, of the toy world, of lm-eval."""

    def __init__(self, tasks_from: str | None) -> None:
        self.folders = [] if tasks_from is None else [folder_of(tasks_from)]
        self._indices: dict[Path, Mapping[str, Any]] = {}
        self._entries: dict[str, Any] = {}

    def index(self, folder: Path) -> Mapping[str, Any]:
        """Names of a folder's tasks and groups, with where they stand."""
        from lm_eval.tasks import TaskManager

        if folder not in self._indices:
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            self._indices[folder] = manager.task_index
        return self._indices[folder]

    def entry(self, name: str) -> Any:
        """Where a task or group is defined; ``None`` where it is nowhere. lm-eval's folders that begin its name come
        first, then the one with a file that says it, since to read them all takes long."""
        if name not in self._entries:
            self._entries[name] = self._found(name)
        return self._entries[name]

    def _found(self, name: str) -> Any:
        root = task_folder()
        known = known_folders().get(name)
        likely = [root / known] if known is not None else []
        likely += [
            path for path in sorted(root.iterdir(), reverse=True) if path.is_dir() and name.startswith(path.name)
        ]
        for folder in chain(self.folders, likely, folders_that_say(name, root)):
            if (entry := self.index(folder).get(name)) is not None:
                return entry
        return None

    def of(self, task: str) -> dict[str, Any] | None:
        """A task's configuration; ``None`` where there is none, or it cannot be read here."""
        from lm_eval.tasks._yaml_loader import load_yaml

        if task in (toy := toy_tasks()):
            return toy[task]
        entry = self.entry(task)
        if entry is None or entry.yaml_path is None or isinstance((entry.cfg or {}).get("task"), list):
            return None
        try:
            return dict(load_yaml(entry.yaml_path))
        except ImportError:  # what a task's own code needs is not installed
            return None

    def by_shape(self, log: Log) -> dict[str, Any] | None:
        """The configuration that a log under another name must have by its documents: ARC's, or GSM8K's."""
        document = log.rows[0].doc
        if isinstance(document.get("choices"), Mapping) and "answerKey" in document:
            return packaged_config(KNOWN["arc_challenge"].yaml)
        if "question" in document and "####" in str(document.get("answer")):
            return packaged_config(KNOWN["gsm8k"].yaml)
        return None

    def members(self, name: str) -> list[str] | None:
        """The tasks in a group; ``None`` for what is no group."""
        entry = self.entry(name)
        if entry is None:
            return None
        listed = entry.tags if entry.yaml_path is None else (entry.cfg or {}).get("task")
        if not isinstance(listed, list | set):
            return None
        found: list[str] = []
        for item in sorted(listed) if isinstance(listed, set) else listed:
            child = item if isinstance(item, str) else str(item.get("task") or item.get("group"))
            inner = self.members(child)
            found += [child] if inner is None else inner
        return found

    def group_results(self, name: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """What lm-eval gives for a group, by its own formula; ``None`` unless all its tasks are there."""
        from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

        members = self.members(name)
        if not members or any(task not in results for task in members):
            return None
        sizes = [int(results[task]["sample_len"]) for task in members]
        found: dict[str, Any] = {"sample_len": sum(sizes)}
        for entry in (self.entry(name).cfg or {}).get("aggregate_metric_list") or []:
            key = f"{entry['metric']},none"
            values = [results[task].get(key) for task in members]
            stderrs = [results[task].get(f"{entry['metric']}_stderr,none") for task in members]
            if None not in values and entry.get("weight_by_size", True):
                found[key] = aggregate_subtask_metrics(values, sizes, True)
                if not {None, "N/A"} & set(stderrs):
                    found[f"{entry['metric']}_stderr,none"] = float(pooled_sample_stderr(stderrs, sizes))
        return found


def folders_that_say(name: str, root: Path) -> Iterator[Path]:
    """Folders of YAML files that define a task, group or tag of this name."""
    pattern = re.compile(
        rb"^\s*(?:-\s*)?(?:(?:task|group|tag):\s*)?[\"']?" + re.escape(name.encode()) + rb"\b", re.MULTILINE
    )
    for path in sorted(root.rglob("*.yaml")):
        if pattern.search(path.read_bytes()):
            yield path.parent


def scores_of(found: Sequence[tuple[Log, Rescored]], asked: Sequence[str], configs: TaskConfigs) -> Scores:
    """One model's scores over its logs; suites that were asked for, and those that are complete."""
    results: dict[str, Mapping[str, Any]] = {log.task: result.results for log, result in found}
    suites: list[Suite] = []
    for suite in map(read_suite, suite_names()):
        there = [member.wanted.task for member in suite.members if of_member(member.wanted.task, results, configs)]
        if suite.name in asked or len(there) == len(suite.members):
            suites.append(suite)
    metrics, _ = all_metrics([(task, {task: of_task}) for task, of_task in results.items()], suites)
    counts = {f"{log.task}/{name}": count for log, result in found for name, count in result.counts.items()}
    notes = [note for _, result in found for note in result.notes]
    for log, result in found:
        if result.counts["missing"]:
            notes.append(
                f"{log.task}: {result.counts['missing']} documents before the last one have no row; scores are over "
                f"the {result.counts['documents']} that have"
            )
        if result.counts["conflicting_duplicates"]:
            notes.append(f"{log.task}: rows of one document contradict each other; the first was taken")
    return Scores(metrics, counts, (*notes, *absent_averages(metrics)))


def of_member(task: str, results: dict[str, Mapping[str, Any]], configs: TaskConfigs) -> bool:
    """Whether a suite's member is among the results; a group's are put there when all its tasks are."""
    if task in results:
        return True
    begun = task.removesuffix("_hard")  # leaderboard_math_hard holds leaderboard_math_algebra_hard, …
    if not any(name.startswith(begun) for name in results):
        return False
    group = configs.group_results(task, results)
    if group is not None:
        results[task] = group
    return group is not None
