"""Tasks whose data is at hand: lm-eval's own GSM8K and ARC-Challenge on files of a folder, and YAML files of one's own.

Everything but the place of the data is lm-eval's packaged configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.sources.files import existing
from src.errors import UserError
from src.evaluation.harness.package import task_folder


@dataclass(frozen=True)
class Files:
    """How the files of a task are named. ``yaml``: its configuration below lm-eval's tasks; ``needed``: splits without
    which it does not run; ``optional``: splits that are taken where they are there. Names may hold a ``*``."""

    yaml: str
    needed: dict[str, str]
    optional: dict[str, str]


KNOWN = {
    "gsm8k": Files("gsm8k/gsm8k.yaml", {"train": "gsm8k_train", "test": "gsm8k_test"}, {}),
    "arc_challenge": Files(
        "arc/arc_challenge.yaml",
        {"train": "arc_challenge_train", "test": "arc_challenge_test"},
        {"validation": "arc_challenge_validation*"},
    ),
}
ENDINGS = (".jsonl", ".jsonl.gz")


def folder_of(tasks_from: str) -> Path:
    """The folder ``tasks_from``; raises ``UserError`` when it is none."""
    folder = existing(tasks_from, "tasks_from")
    if not folder.is_dir():
        raise UserError(f"tasks_from={tasks_from} is a file; give the folder that holds the tasks' files")
    return folder


def has_tasks(folder: Path) -> bool:
    """Whether the folder holds YAML files of one's own."""
    return any(folder.rglob("*.yaml"))


def task_files(task: str, folder: Path) -> dict[str, Path]:
    """Split -> file of one of the known tasks; raises ``UserError`` naming every file that is not there."""
    files = KNOWN[task]
    found, problems = {}, []
    for split, name in {**files.needed, **files.optional}.items():
        there = sorted(path for ending in ENDINGS for path in folder.glob(name + ending))
        if len(there) > 1:
            problems.append(f"its {split} split is there {len(there)} times ({', '.join(path.name for path in there)})")
        elif there:
            found[split] = there[0]
        elif split in files.needed:
            problems.append(f"{folder / name}.jsonl (or .jsonl.gz) is not there")
    if problems:
        raise UserError(
            f"tasks_from={folder} cannot serve {task}: {'; '.join(problems)}; put exactly one file of each split "
            "there, or leave tasks_from out to take the hub's"
        )
    return found


def local_config(task: str, folder: Path, **overrides: Any) -> dict[str, Any]:
    """lm-eval's configuration of one of the known tasks, on the folder's files."""
    files = {split: str(path.absolute()) for split, path in task_files(task, folder).items()}
    own = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return packaged_config(KNOWN[task].yaml) | own | overrides


def packaged_config(path: str) -> dict[str, Any]:
    """A configuration of lm-eval's own, with what it includes."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(task_folder() / path))
