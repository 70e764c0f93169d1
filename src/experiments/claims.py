"""What a paper says of its numbers, as statements that can be checked: on the printed ones, and on ours.

A check names comparisons, each a weighted sum of cells that the claim says is above 0, in blocks (one for each model,
or whatever the rows have besides). How they are decided stands in src/experiments/verdicts.py.

Rows are given as ``{axis: label}``. The claim is made for every label of the axes that it does not name.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from src.build import build
from src.errors import UserError
from src.experiments.experiment import Experiment
from src.experiments.files import Node, did_you_mean
from src.experiments.published import Labels

Term = tuple[float, Labels, str]
"""Coefficient, row, column."""


@dataclass(frozen=True)
class Comparison:
    """What is claimed to be above 0, and its name for the reader."""

    name: str
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Block:
    """Comparisons about one model (or whatever the rows have besides): ``where``, "" where there is nothing else."""

    where: str
    comparisons: tuple[Comparison, ...]


class Check(Protocol):
    """A claim in a form that can be decided."""

    def blocks(self, experiment: Experiment) -> list[Block]:
        """All comparisons that must hold. Raises ``UserError`` for rows and columns that are not there."""


@dataclass(frozen=True)
class Best:
    """The row has the best value of the column among the rows that share the labels of ``within`` (and the group, where
    the file has groups); ``lowest``: the lowest number instead."""

    column: str
    row: Mapping[str, str]
    within: tuple[str, ...] = ()
    lowest: bool = False

    def blocks(self, experiment: Experiment) -> list[Block]:
        higher = experiment.column(self.column).higher_is_better and not self.lowest
        known_axes(experiment, self.within)
        found = []
        own_rows = matching(experiment, self.row)
        for own in own_rows:
            rivals = [
                key for key in experiment.keys if experiment.rivals(own, key, self.within) and key not in own_rows
            ]
            found.append(
                Block(
                    words(own, self.within),
                    tuple(ahead((own, self.column), (rival, self.column), higher=higher) for rival in rivals),
                )
            )
        return found


@dataclass(frozen=True)
class Greater:
    """The left row has the larger number in the column, for all labels of the axes that neither side names. ``within``:
    those axes, for the reader."""

    column: str
    left: Mapping[str, str]
    right: Mapping[str, str]
    within: tuple[str, ...] = ()

    def blocks(self, experiment: Experiment) -> list[Block]:
        experiment.column(self.column)
        known_axes(experiment, self.within)
        free = free_axes(experiment, self.left, self.right)
        rights = {words(row, free): row for row in matching(experiment, self.right)}
        found = [
            Block(where, (ahead((left, self.column), (rights[where], self.column)),))
            for left in matching(experiment, self.left)
            if (where := words(left, free)) in rights
        ]
        if not found:
            raise UserError(f"no two rows {dict(self.left)} and {dict(self.right)} share their other labels")
        return found


@dataclass(frozen=True)
class DegradesLess:
    """From the first of ``columns`` (or the first label of the axis ``over``) to each later one, the left row loses
    less (or gains more) than the right one."""

    left: Mapping[str, str]
    right: Mapping[str, str]
    column: str = ""
    columns: tuple[str, ...] = ()
    over: str = ""
    within: tuple[str, ...] = ()

    def blocks(self, experiment: Experiment) -> list[Block]:
        known_axes(experiment, self.within)
        free = [axis for axis in free_axes(experiment, self.left, self.right) if axis != self.over]
        rights = {words(path[0].labels, free): path for path in self.paths(experiment, self.right)}
        found = []
        for path in self.paths(experiment, self.left):
            where = words(path[0].labels, free)
            if where in rights:
                found.append(
                    Block(where, tuple(slower(experiment, path, rights[where], step) for step in range(1, len(path))))
                )
        if not found:
            raise UserError(f"no two rows {dict(self.left)} and {dict(self.right)} share their other labels")
        return found

    def paths(self, experiment: Experiment, row: Mapping[str, str]) -> list[list[Cell]]:
        """The cells along which a side changes."""
        return paths_of(experiment, row, self.column, self.columns, self.over)


@dataclass(frozen=True)
class Monotone:
    """The number goes ``up`` or ``down`` at every step along ``columns``, or along the axis ``over``."""

    direction: Literal["up", "down"]
    column: str = ""
    columns: tuple[str, ...] = ()
    over: str = ""
    row: Mapping[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    def blocks(self, experiment: Experiment) -> list[Block]:
        known_axes(experiment, self.within)
        found = []
        for path in paths_of(experiment, self.row, self.column, self.columns, self.over):
            steps = [
                ahead((after.labels, after.column), (before.labels, before.column), higher=self.direction == "up")
                for before, after in itertools.pairwise(path)
            ]
            named = [
                Comparison(f"{before.name} to {after.name}", step.terms)
                for (before, after), step in zip(itertools.pairwise(path), steps, strict=True)
            ]
            free = [axis for axis in path[0].labels if axis != self.over]
            found.append(Block(words(path[0].labels, free), tuple(named)))
        return found


@dataclass(frozen=True)
class PeakAt:
    """Along the axis ``over``, the column is best at the label ``at``."""

    column: str
    over: str
    at: str
    row: Mapping[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    def blocks(self, experiment: Experiment) -> list[Block]:
        known_axes(experiment, self.within)
        higher = experiment.column(self.column).higher_is_better
        found = []
        for path in paths_of(experiment, self.row, self.column, (), self.over):
            peak = [cell for cell in path if cell.name == self.at]
            if not peak:
                raise UserError(f"{self.over} has no label '{self.at}'{did_you_mean(self.at, [c.name for c in path])}")
            others = [cell for cell in path if cell.name != self.at]
            found.append(
                Block(
                    words(path[0].labels, [axis for axis in path[0].labels if axis != self.over]),
                    tuple(ahead((peak[0].labels, self.column), (c.labels, self.column), higher=higher) for c in others),
                )
            )
        return found


@dataclass(frozen=True)
class RankAgreement:
    """The rows that share the labels of ``within`` come in the printed order: Kendall's tau is above 0."""

    column: str
    within: tuple[str, ...] = ()

    def blocks(self, experiment: Experiment) -> list[Block]:
        experiment.column(self.column)
        known_axes(experiment, self.within)
        return []


@dataclass(frozen=True)
class Cell:
    """One cell on a path; ``name``: of the step."""

    name: str
    labels: Labels
    column: str


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: in our words, in its own, and as a check."""

    text: str
    quote: str
    check: Check


def claims_of(experiment: Experiment) -> list[Claim]:
    """The claims of an experiment's file; raises ``UserError`` naming file, claim and key of what is wrong."""
    found = []
    for number, values in enumerate(experiment.claims, 1):
        where = f"{experiment.paper}/{experiment.path.name}: claims[{number}]"
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must have the keys text, quote and check, not {values!r:.60}")
        node = Node({str(key): value for key, value in values.items()}, where).only("text", "quote", "check")
        check = build(node.child("check").values, f"{where}: check")
        try:
            check.blocks(experiment)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found.append(Claim(str(node.need("text")), str(node.need("quote")), check))
    return found


def matching(experiment: Experiment, labels: Mapping[str, str]) -> list[Labels]:
    """The rows with these labels; raises ``UserError`` where there is none."""
    known_axes(experiment, tuple(labels))
    found = [key for key in experiment.keys if all(key.get(axis) == str(label) for axis, label in labels.items())]
    if not found:
        axis, label = next(iter(labels.items()), ("", ""))
        known = dict.fromkeys(key[axis] for key in experiment.keys) if axis else ()
        raise UserError(f"no row has the labels {dict(labels)}{did_you_mean(str(label), known)}")
    return found


def known_axes(experiment: Experiment, axes: Sequence[str]) -> None:
    """Raise ``UserError`` for an axis that the rows do not have."""
    known = list(experiment.keys[0]) if experiment.keys else []
    for axis in axes:
        if axis not in known:
            raise UserError(f"the rows have no axis '{axis}'{did_you_mean(axis, known)}")


def free_axes(experiment: Experiment, *sides: Mapping[str, str]) -> list[str]:
    """The axes that no side names."""
    return [axis for axis in experiment.keys[0] if all(axis not in side for side in sides)]


def words(labels: Labels, axes: Sequence[str]) -> str:
    """The labels of some axes in words."""
    return " / ".join(labels[axis] for axis in axes)


def ahead(one: tuple[Labels, str], other: tuple[Labels, str], *, higher: bool = True) -> Comparison:
    """That one cell is above (or below) another, named by the labels in which they differ."""
    differing = [axis for axis in one[0] if one[0][axis] != other[0][axis]]
    sign = 1.0 if higher else -1.0
    names = [words(labels, differing) or column for labels, column in (one, other)]
    name = " minus ".join(names if higher else reversed(names))
    return Comparison(name, ((sign, *one), (-sign, *other)))


def slower(experiment: Experiment, left: Sequence[Cell], right: Sequence[Cell], step: int) -> Comparison:
    """That the left path loses less up to a step than the right one."""
    sign = 1.0 if experiment.column(left[0].column).higher_is_better else -1.0
    terms = tuple(
        (sign * own * side, path[place].labels, path[place].column)
        for own, path in ((1.0, left), (-1.0, right))
        for side, place in ((1.0, step), (-1.0, 0))
    )
    axes = [axis for axis in left[0].labels if left[0].labels[axis] != right[0].labels[axis]]
    sides = f"{words(left[0].labels, axes)} minus {words(right[0].labels, axes)}"
    return Comparison(f"change from {left[0].name} to {left[step].name}, {sides}", terms)


def paths_of(
    experiment: Experiment, row: Mapping[str, str], column: str, columns: Sequence[str], over: str
) -> list[list[Cell]]:
    """The cells of matching rows along ``columns``, or of one column along the axis ``over``, in the file's order."""
    if bool(columns) == bool(column and over):
        raise UserError("give columns, or column and over, the axis along which it changes")
    for name in columns or (column,):
        experiment.column(name)
    rows = matching(experiment, row)
    if columns:
        found = [[Cell(experiment.column(name).title, labels, name) for name in columns] for labels in rows]
    else:
        known_axes(experiment, (over,))
        groups: dict[str, list[Cell]] = {}
        for labels in rows:
            where = words(labels, [axis for axis in labels if axis != over])
            groups.setdefault(where, []).append(Cell(labels[over], labels, column))
        found = list(groups.values())
    if short := [path for path in found if len(path) < 2]:
        raise UserError(f"there is nothing to compare {short[0][0].name} with; give two columns or labels, or more")
    return found
