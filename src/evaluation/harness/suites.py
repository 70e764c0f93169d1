"""Which tasks are asked for: names of lm-eval, and suites of ours (conf/evaluation/suites) with examples and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from src.config import CONF
from src.errors import UserError

FOLDER = CONF / "evaluation" / "suites"


@dataclass(frozen=True)
class Wanted:
    """A task or group of lm-eval. ``num_fewshot``: examples in the prompt, ``None`` as the task has it;
    ``fewshot_split``: where they come from, ``None`` as the task has it; ``folder``: of lm-eval's tasks that holds
    it, so that the others need not be read (``None``: look through all)."""

    task: str
    num_fewshot: int | None = None
    fewshot_split: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Member:
    """A task of a suite. ``metric``: lm-eval's names of what counts, several are averaged; ``exact_match/strict-match``
    is a metric after a filter."""

    wanted: Wanted
    metric: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """Tasks that belong together. ``average``: whether its source averages them."""

    name: str
    source: str
    average: bool
    members: tuple[Member, ...] = field(default_factory=tuple)


def suite_names() -> list[str]:
    """The suites there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """A suite by its name."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Suite(name, content["source"], content["average"], tuple(map(member_of, content["members"])))


def member_of(entry: Mapping[str, Any]) -> Member:
    """One entry of ``members``."""
    metric = entry["metric"]
    wanted = Wanted(entry["task"], entry["num_fewshot"], entry.get("fewshot_split"), entry["folder"])
    return Member(wanted, (metric,) if isinstance(metric, str) else tuple(metric))


def chosen(names: Sequence[str], num_fewshot: int | None) -> tuple[list[Wanted], list[Suite]]:
    """The tasks behind ``names``, each once and in order, and the suites among the names.

    ``num_fewshot`` is for all of them, where it is given. Raises ``UserError`` for a task that two of the names want
    with different examples.
    """
    known = suite_names()
    suites = [read_suite(name) for name in dict.fromkeys(names) if name in known]
    by_name = {suite.name: suite for suite in suites}
    folders = known_folders()
    found: dict[str, Wanted] = {}
    for name in dict.fromkeys(names):
        suite = by_name.get(name)
        listed = [member.wanted for member in suite.members] if suite else [Wanted(name, folder=folders.get(name))]
        for wanted in listed:
            settled = Wanted(
                wanted.task,
                wanted.num_fewshot if num_fewshot is None else num_fewshot,
                wanted.fewshot_split,
                wanted.folder,
            )
            if found.setdefault(wanted.task, settled) != settled:
                raise UserError(
                    f"tasks={','.join(names)} asks for {wanted.task} twice, with {spoken(found[wanted.task])} and with "
                    f"{spoken(settled)}; ask for one of them at a time, or give num_fewshot for all"
                )
    return list(found.values()), suites


def known_folders() -> dict[str, str | None]:
    """Where below lm-eval's tasks the members of suites are."""
    return {member.wanted.task: member.wanted.folder for name in suite_names() for member in read_suite(name).members}


def spoken(wanted: Wanted) -> str:
    """``5 examples``, or that the task's own number is meant."""
    return "its own number of examples" if wanted.num_fewshot is None else f"{wanted.num_fewshot} examples"
