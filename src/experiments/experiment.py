"""One grid of a paper: rows, columns, what is trained for them and what is measured (experiments/<paper>/*.yaml)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from src.errors import UserError
from src.experiments.files import EXPERIMENTS, Node, did_you_mean, read_node
from src.experiments.published import Labels, PublishedTable, papers, read_table

KINDS = ("grid", "settings", "timing")
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A metric of a benchmark's record. ``arguments``: of its entry point, for this column alone; ``part``: its value,
    or how far its interval reaches ``below`` (negative) or ``above`` it."""

    benchmark: str
    metric: str
    arguments: Overrides = ()
    part: Literal["value", "below", "above"] = "value"


@dataclass(frozen=True)
class Curve:
    """A value of the run's own files: the largest or last of ``metric`` on ``split`` in metrics.jsonl, or, with the
    split ``timings``, in timings.jsonl, where ``sum`` of the seconds is the time it took."""

    split: str
    metric: str
    take: Literal["max", "last", "sum"]


@dataclass(frozen=True)
class MeanOf:
    """The mean of other columns."""

    columns: tuple[str, ...]


@dataclass(frozen=True)
class RankOf:
    """The place of the row by another column among the rows that share the labels of ``within``; 1 is the best."""

    column: str
    within: tuple[str, ...]


@dataclass(frozen=True)
class MeanRankOf:
    """The mean of the row's places by several columns, each among the rows that share the labels of ``within``."""

    columns: tuple[str, ...]
    within: tuple[str, ...]


@dataclass(frozen=True)
class Unreproduced:
    """What this program does not measure, and why."""

    reason: str


Source = Measured | Curve | MeanOf | RankOf | MeanRankOf | Unreproduced


@dataclass(frozen=True)
class Meaning:
    """What a row's label means. ``model``: a name of conf/model where the label is of a model; ``recipes``: by model,
    where another than the usual one is meant."""

    overrides: Overrides = ()
    model: str | None = None
    recipes: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Column:
    """A column. ``overrides``: of the training, where the columns are settings; ``fixed``: labels that its cells have
    besides those of their row, where the columns are models or methods. ``scale``: what a value of the record is
    multiplied with to be printed (100 for shares that the paper prints in percent). ``compared``: whether one value can
    be better than another (a standard error or a length is not)."""

    name: str
    title: str
    source: Source
    overrides: Overrides = ()
    higher_is_better: bool = True
    scale: float = 1.0
    digits: int = 1
    fixed: Mapping[str, Meaning] = field(default_factory=dict)
    compared: bool = True


@dataclass(frozen=True)
class Experiment:
    """A grid. ``axes``: row labels and their meanings; ``fixed``: labels that all rows share; ``keys``: the rows;
    ``groups``: labels of an axis that are compared among themselves; ``settings``: of kind ``settings``, where its
    printed values are found here (src/experiments/settings.py)."""

    paper: str
    table: str
    kind: str
    title: str
    axes: Mapping[str, Mapping[str, Meaning]]
    fixed: Labels
    keys: tuple[Labels, ...]
    columns: tuple[Column, ...]
    overrides: Overrides
    bold_within: tuple[str, ...]
    claims: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    published: PublishedTable | None
    path: Path
    groups: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    settings: Node | None = None

    def rivals(self, labels: Labels, other: Labels, within: tuple[str, ...]) -> bool:
        """Whether two rows are compared: they share the labels of ``within``, and the group that the file puts labels
        of an axis into."""
        together = all(
            any(labels.get(axis) in group and other.get(axis) in group for group in groups)
            for axis, groups in self.groups.items()
        )
        return together and all(labels.get(axis) == other.get(axis) for axis in within)

    @property
    def name(self) -> str:
        """The name of its files: ``amapo_table2``."""
        return f"{self.paper}_{self.path.stem}"

    def column(self, name: str) -> Column:
        """The column of that name; raises ``UserError``."""
        for column in self.columns:
            if column.name == name:
                return column
        raise UserError(f"{self.path.name} has no column '{name}'{did_you_mean(name, [c.name for c in self.columns])}")

    def meanings(self, labels: Labels) -> list[Meaning]:
        """What the labels of a row mean, outermost axis first, those of all rows before."""
        return [self.axes[axis][label] for axis, label in {**self.fixed, **labels}.items()]


def all_paths() -> list[Path]:
    """The files of all experiments, by paper and name."""
    return [path for paper in papers() for path in sorted((EXPERIMENTS / paper).glob("[tf]*.yaml"))]


def find(paper: str, table: str) -> Path:
    """The file of a table (``2``, ``B``) or figure (``figure1``); raises ``UserError`` naming what there is."""
    if paper not in papers():
        raise UserError(f"paper={paper} is unknown{did_you_mean(paper, papers())}")
    names = {path.stem: path for path in all_paths() if path.parent.name == paper}
    for name in (f"table{table}", table, f"table{table.upper()}"):
        if name in names:
            return names[name]
    raise UserError(f"table={table} is none of {paper}'s{did_you_mean(table, tables_of(paper))}")


def tables_of(paper: str) -> list[str]:
    """The tables and figures of a paper as ``find`` takes them: numbers and letters, ``figure1``."""
    return [path.stem.removeprefix("table") for path in all_paths() if path.parent.name == paper]


def load(path: Path) -> Experiment:
    """Read an experiment; raises ``UserError`` naming file and key of what is wrong."""
    node = read_node(path).only(
        *("paper", "table", "kind", "title", "rows", "leave_out", "fixed", "columns", "overrides", "bold_within"),
        *("groups", "claims", "notes", "settings"),
    )
    paper, number, kind = (str(node.need(key)) for key in ("paper", "table", "kind"))
    if kind not in KINDS:
        raise UserError(f"{node.where}: kind '{kind}' is unknown{did_you_mean(kind, KINDS)}")
    labels = read_node(EXPERIMENTS / paper / "paper.yaml").only("title", "models", "methods")
    published = read_table(paper, number)
    fixed = {axis: str(label) for axis, label in node.child("fixed").values.items()}
    rows = node.child("rows")
    axes = {axis: axis_of(rows, axis, labels) for axis in rows.values}
    axes |= {axis: {label: meaning_of(labels, axis, label, node.where)} for axis, label in fixed.items()}
    return Experiment(
        paper,
        number,
        kind,
        str(node.need("title")),
        axes,
        fixed,
        tuple(keys_of(published, rows, axes, node.child("leave_out")) if kind != "settings" else ()),
        tuple(column_of(node.child("columns"), name, labels) for name in node.child("columns").values),
        node.texts("overrides"),
        node.texts("bold_within"),
        tuple(node.get("claims") or ()),
        node.texts("notes") + (published.notes if published else ()),
        published,
        path,
        groups_of(node.child("groups"), axes),
        node.child("settings") if kind == "settings" else None,
    )


def groups_of(node: Node, axes: Mapping[str, Mapping[str, Meaning]]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Which labels of an axis are compared with one another, such as the variants of one base method."""
    found = {}
    for axis, groups in node.values.items():
        if not isinstance(groups, list) or any(not isinstance(group, list) for group in groups):
            raise UserError(f"{node.where}: {axis} must be a list of lists of labels, not {groups!r:.60}")
        found[axis] = tuple(tuple(str(label) for label in group) for group in groups)
        named = sorted(label for group in found[axis] for label in group)
        if named != sorted(axes.get(axis, {})):
            raise UserError(f"{node.where}: {axis} must name each of {', '.join(axes.get(axis, {}))} once")
    return found


def axis_of(rows: Node, axis: str, labels: Node) -> dict[str, Meaning]:
    """The labels of an axis: a list of labels that paper.yaml knows, or a mapping label -> what it means here."""
    if isinstance(rows.get(axis), list):
        return {label: meaning_of(labels, axis, label, rows.where) for label in rows.texts(axis)}
    choices = rows.child(axis)
    return {label: meaning_at(choices, label, model=axis == "model") for label in choices.values}


def meaning_at(choices: Node, label: str, *, model: bool) -> Meaning:
    """What the file says of a label: a list of overrides, or a mapping with the model or the recipes as well."""
    if not model and not isinstance(choices.get(label), dict):
        return Meaning(choices.texts(label))
    if model:
        entry = choices.child(label).only("model", "overrides")
        return Meaning(entry.texts("overrides"), str(entry.need("model")))
    entry = choices.child(label).only("overrides", "recipes")
    return Meaning(entry.texts("overrides"), None, {k: str(v) for k, v in entry.child("recipes").values.items()})


def meaning_of(labels: Node, axis: str, label: str, where: str) -> Meaning:
    """What paper.yaml says of a label of the axis ``model`` or ``method``."""
    known = labels.child(f"{axis}s")
    if label not in known.values:
        raise UserError(f"{where}: {axis} '{label}' is not in {labels.where}{did_you_mean(label, known.values)}")
    return meaning_at(known, label, model=axis == "model")


def keys_of(
    published: PublishedTable | None, rows: Node, axes: Mapping[str, Mapping[str, Meaning]], leave_out: Node
) -> list[dict[str, str]]:
    """The rows: as printed where the paper prints the table with these axes, but for the labels to ``leave_out``
    (printed averages, which nobody trains), else the product of the axes."""
    where = rows.where
    names = tuple(rows.values)
    if published is None or any(axis not in published.columns for axis in names):
        return [dict(zip(names, labels, strict=True)) for labels in itertools.product(*(axes[name] for name in names))]
    unwanted = {axis: leave_out.texts(axis) for axis in leave_out.values}
    keys = [key for key in published.keys(names) if all(key[axis] not in unwanted.get(axis, ()) for axis in names)]
    for key in keys:
        for axis, label in key.items():
            if label not in axes[axis]:
                raise UserError(f"{where}: {axis} lacks the printed label '{label}'; add it")
    for axis in names:
        for label in axes[axis]:
            if all(key[axis] != label for key in keys):
                raise UserError(f"{where}: {axis} has '{label}', which the paper does not print; remove it")
    return keys


SOURCES = ("benchmark", "curve", "mean_of", "rank_of", "mean_rank_of", "unreproduced")
COMMON = ("title", "overrides", "fixed", "higher_is_better", "scale", "digits", "compared")


def column_of(columns: Node, name: str, labels: Node) -> Column:
    """One column from its description; ``labels``: paper.yaml."""
    node = columns.child(name)
    source, fixed = source_of(node), node.child("fixed").values
    better = not isinstance(source, (RankOf, MeanRankOf))
    return Column(
        name,
        str(node.get("title", name)),
        source,
        node.texts("overrides"),
        bool(node.get("higher_is_better", better)),
        float(node.get("scale", 1.0)),
        int(node.get("digits", 1)),
        {axis: meaning_of(labels, axis, str(label), node.where) for axis, label in fixed.items()},
        bool(node.get("compared", True)),
    )


def source_of(node: Node) -> Source:
    """Where the values of a column come from."""
    kinds = [key for key in SOURCES if key in node.values]
    if len(kinds) != 1:
        raise UserError(f"{node.where}: give one of {', '.join(SOURCES)}")
    if kinds == ["benchmark"]:
        return measured_of(node.only("benchmark", "metric", "arguments", "part", *COMMON))
    if kinds == ["curve"]:
        node.only("curve", "metric", "take", *COMMON)
        take = node.get("take", "last")
        if take not in ("max", "last", "sum"):
            raise UserError(f"{node.where}: take '{take}' is unknown; choose max, last or sum")
        return Curve(str(node.need("curve")), str(node.need("metric")), take)
    if kinds == ["mean_of"]:
        return MeanOf(node.only("mean_of", *COMMON).texts("mean_of"))
    if kinds == ["rank_of"]:
        node.only("rank_of", "within", *COMMON)
        return RankOf(str(node.need("rank_of")), node.texts("within"))
    if kinds == ["mean_rank_of"]:
        node.only("mean_rank_of", "within", *COMMON)
        return MeanRankOf(node.texts("mean_rank_of"), node.texts("within"))
    return Unreproduced(str(node.only("unreproduced", *COMMON).need("unreproduced")))


def measured_of(node: Node) -> Measured:
    """A benchmark's metric."""
    part = node.get("part", "value")
    if part not in ("value", "below", "above"):
        raise UserError(f"{node.where}: part '{part}' is unknown; choose value, below or above")
    return Measured(str(node.need("benchmark")), str(node.need("metric")), node.texts("arguments"), part)
