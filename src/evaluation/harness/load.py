"""Tasks as lm-eval's own objects, with their data, before any model is read."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.benchmark_schema import LmHarnessConfig
from src.data.cache import json_hash
from src.data.hub import hub_reachable, offline
from src.errors import UserError
from src.evaluation.harness.local import KNOWN, folder_of, has_tasks, local_config
from src.evaluation.harness.package import task_folder
from src.evaluation.harness.suites import Suite, Wanted, chosen, suite_names
from src.evaluation.harness.toy import toy_tasks

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

NOT_HASHED = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata", "tag", "task_alias")
"""Of a task's configuration: where its data is from (the data itself is hashed) and what changes no number."""


@dataclass(frozen=True)
class Unit:
    """What is run at a time: a task or a group of lm-eval. ``objects``: what lm-eval's evaluator is given."""

    wanted: Wanted
    manager: TaskManager
    tasks: dict[str, Any]
    groups: dict[str, Any]
    objects: tuple[Any, ...]

    @property
    def name(self) -> str:
        return self.wanted.task

    @cached_property
    def config_hash(self) -> str:
        """Hash of the configuration of every task in it: prompts, filters, metrics, decoding."""
        return json_hash({name: plain(own_config(task)) for name, task in sorted(self.tasks.items())})

    def data_hash(self, limit: int | None) -> str:
        """Hash of the documents that are asked and of those that examples are drawn from."""
        parts = {}
        for name, task in sorted(self.tasks.items()):
            asked = [document for _, document in task.doc_iterator(limit=limit)]
            drawn_from = list(task.sampler.df) if self.shots(task) else []
            parts[name] = [rows_hash(asked), rows_hash(drawn_from)]
        return json_hash(parts)

    def shots(self, task: Any) -> int:
        """Examples in a task's prompts: as asked, but never where its own configuration says 0 (lm-eval's rule)."""
        own = task.get_config("num_fewshot")
        return int(own or 0) if self.wanted.num_fewshot is None or own == 0 else self.wanted.num_fewshot

    def documents(self, limit: int | None) -> int:
        """How many documents are asked."""
        sizes = [len(task.eval_docs) for task in self.tasks.values()]
        return sum(size if limit is None else min(size, limit) for size in sizes)


def load_units(config: LmHarnessConfig) -> tuple[list[Unit], list[Suite]]:
    """All tasks that ``config`` asks for, with their data; raises ``UserError`` before anything has cost time."""
    names = asked_names(config)
    wanted, suites = chosen(names, config.num_fewshot)
    makers = spec_makers(config)
    return [load_unit(one, makers) for one in wanted], suites


def asked_names(config: LmHarnessConfig) -> list[str]:
    """``tasks`` as a list; all tasks of the toy world where nothing is said."""
    given = config.tasks
    names = [given] if isinstance(given, str) else [str(name) for name in given or []]
    toy = list(toy_tasks())
    if config.benchmark == "toy":
        if config.tasks_from is not None:
            raise UserError("tasks_from would not be read: benchmark=toy makes its own data; leave one of the two out")
        if unknown := [name for name in names if name not in toy]:
            raise UserError(f"tasks={','.join(unknown)}: benchmark=toy has {', '.join(toy)}; choose of them")
        return names or toy
    if not names:
        raise UserError(
            f"tasks has no value; give names of lm-eval's tasks, or suites ({', '.join(suite_names())}): tasks=[gsm8k]"
        )
    return names


Maker = Callable[[Wanted], "tuple[TaskManager, Any] | None"]


def spec_makers(config: LmHarnessConfig) -> list[Maker]:
    """Who may know a task, in the order in which they are asked; each gives (manager, what it loads)."""
    from lm_eval.tasks import TaskManager

    empty = TaskManager(include_defaults=False)
    if config.benchmark == "toy":
        toy = toy_tasks()
        return [lambda wanted: (empty, toy[wanted.task])]
    if config.tasks_from is None:
        return [packaged()]
    folder = folder_of(config.tasks_from)
    own = TaskManager(include_path=str(folder), include_defaults=False) if has_tasks(folder) else empty

    def listed(wanted: Wanted) -> tuple[TaskManager, Any] | None:
        return (own, wanted.task) if wanted.task in own.task_index else None

    def known(wanted: Wanted) -> tuple[TaskManager, Any] | None:
        if wanted.task not in KNOWN:
            return None
        overrides = {"fewshot_split": wanted.fewshot_split or "train"}
        return empty, local_config(wanted.task, folder, **overrides)

    def refuse(wanted: Wanted) -> tuple[TaskManager, Any] | None:
        there = sorted({*own.all_tasks, *KNOWN})
        raise UserError(
            f"tasks_from={folder} has nothing for {wanted.task}: such a folder holds files of {' and '.join(KNOWN)}, "
            f"or lm-eval's YAML files (known now: {', '.join(there)}); add its YAML, leave the task out, or leave "
            "tasks_from out to take the hub's"
        )

    return [listed, known, refuse]


def packaged() -> Maker:
    """lm-eval's own tasks: the folder where one is known to be, or all of them, which takes some seconds."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    managers: dict[str | None, TaskManager] = {}

    def manager(folder: str | None) -> TaskManager:
        if folder not in managers:
            place = task_folder() if folder is None else task_folder() / folder
            managers[folder] = TaskManager(include_path=str(place), include_defaults=False)
        return managers[folder]

    def make(wanted: Wanted) -> tuple[TaskManager, Any] | None:
        found = manager(wanted.folder)
        entry = found.task_index.get(wanted.task)
        if entry is None:
            close = difflib.get_close_matches(wanted.task, [*found.all_tasks, *suite_names()], n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(
                f"tasks={wanted.task} is neither a task of lm-eval nor a suite ({', '.join(suite_names())}){hint} "
                "`lm_eval ls tasks` lists lm-eval's"
            )
        if wanted.fewshot_split is None or entry.yaml_path is None:
            return found, wanted.task
        return found, dict(load_yaml(entry.yaml_path)) | {"fewshot_split": wanted.fewshot_split}

    return make


def load_unit(wanted: Wanted, makers: Sequence[Maker]) -> Unit:
    """The task with its data: from caches and files alone where that suffices, else from the hub."""
    manager, spec = next(found for maker in makers if (found := maker(wanted)) is not None)
    local = not isinstance(spec, str)

    def load(cached_only: bool) -> Any:
        with offline() if cached_only else nullcontext():
            return manager.load([spec])

    try:
        loaded = load(cached_only=True)
    except Exception as error:
        if local or not hub_reachable():
            raise UserError(not_loaded(wanted, error, reachable=False)) from error
        try:
            loaded = load(cached_only=False)
        except Exception as second:
            raise UserError(not_loaded(wanted, second, reachable=True)) from second
    tasks, groups = loaded["tasks"], loaded.get("groups", {})
    inner = {name for group in groups.values() for name in group.child_names}
    objects = [*(groups[name] for name in groups if name not in inner), *(tasks[n] for n in tasks if n not in inner)]
    return Unit(wanted, manager, tasks, groups, tuple(objects))


def not_loaded(wanted: Wanted, error: Exception, *, reachable: bool) -> str:
    """Why a task could not be had, and what to do."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    where = "" if reachable else " (only files and caches of this machine were asked: no hub is reachable from here)"
    remedy = "give tasks_from=DIR with its data, or run it where the hub can be reached"
    if isinstance(error, ImportError):
        remedy = "install what it needs (pip install 'lm-eval[math,ifeval]' has most), or leave the task out"
    return f"task {wanted.task} cannot be loaded{where}: {type(error).__name__}: {lines[0]:.300}; {remedy}"


def own_config(task: Any) -> dict[str, Any]:
    """A task's configuration but for where its data is from."""
    return {key: value for key, value in dict(task.dump_config()).items() if key not in NOT_HASHED}


def plain(value: Any) -> Any:
    """Plain data, the same in every process: functions by their source."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__name__)
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def rows_hash(rows: Sequence[Any]) -> str:
    """Hex SHA-256 of documents in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(plain(row), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def data_sources(unit: Unit) -> Iterator[tuple[str, Path]]:
    """(name, file) of the local files a unit was made from."""
    for name, task in unit.tasks.items():
        kwargs = task.config.dataset_kwargs or {}
        files = kwargs.get("data_files") if isinstance(kwargs, dict) else None
        for split, path in (files or {}).items() if isinstance(files, dict) else []:
            if isinstance(path, str) and Path(path).is_file():
                yield f"{name}/{split}", Path(path)
