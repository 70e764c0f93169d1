"""A paper's table, printed and reproduced side by side, in Markdown, LaTeX, CSV and HTML, with where it is from."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from src.environment import environment
from src.evaluation.records import Record
from src.experiments.experiment import Column, Experiment
from src.experiments.published import Labels
from src.experiments.results import Results
from src.reporting.tables import refuse_several_judges

FORMATS = ("md", "tex", "csv", "html")
DASH = "—"


@dataclass(frozen=True)
class Pair:
    """A cell: the printed number, the reproduced mean, its standard deviation over ``n`` seeds; ``reason``: why there
    is no reproduced one; ``bold``: best printed, best reproduced among the rows it is compared with."""

    published: float | None
    mean: float | None
    deviation: float | None
    n: int
    reason: str = ""
    bold: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class PaperTable:
    """All cells of a table, by row and column, and the lines below it."""

    experiment: Experiment
    columns: tuple[Column, ...]
    rows: tuple[tuple[Labels, tuple[Pair, ...]], ...]
    footer: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes whose labels stand before the cells."""
        return tuple(self.experiment.keys[0])

    @property
    def complete(self) -> bool:
        """Whether every cell has a reproduced number."""
        return all(pair.mean is not None for _, pairs in self.rows for pair in pairs)


def table_of(results: Results, command: str) -> PaperTable:
    """The table as far as there are results. Raises ``UserError`` for records that may not stand in one table."""
    experiment = results.plan.experiment
    columns = tuple(results.plan.scale.column(column) for column in experiment.columns)
    records = results.records()
    for benchmark in {record.benchmark for record in records}:
        refuse_several_judges([record for record in records if record.benchmark == benchmark])
    cells = {
        (index, column.name): pair_of(results, labels, column)
        for index, labels in enumerate(experiment.keys)
        for column in columns
    }
    rows = []
    for index, labels in enumerate(experiment.keys):
        rivals = [i for i, other in enumerate(experiment.keys) if compared(experiment, labels, other)]
        pairs = [bold(cells[index, c.name], [cells[i, c.name] for i in rivals], c) for c in columns]
        rows.append((labels, tuple(pairs)))
    return PaperTable(experiment, columns, tuple(rows), tuple(footer_of(results, records, command)))


def compared(experiment: Experiment, labels: Labels, other: Labels) -> bool:
    """Whether two rows stand in one block, within which the best is bold."""
    return experiment.rivals(labels, other, experiment.bold_within)


def pair_of(results: Results, labels: Labels, column: Column) -> Pair:
    """One cell."""
    experiment = results.plan.experiment
    published = experiment.published
    printed = None if published is None else published.value({**experiment.fixed, **labels}, column.name)
    values = results.values(labels, column)
    numbers = [value.number for value in values if value.number is not None]
    reasons = "; ".join(dict.fromkeys(value.reason for value in values if value.reason))
    if not numbers:
        return Pair(printed, None, None, 0, reasons)
    return Pair(printed, fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers), reasons)


def bold(pair: Pair, rivals: Sequence[Pair], column: Column) -> Pair:
    """The pair with its best numbers marked; nothing is best among fewer than two, or where nothing is better."""
    if not column.compared:
        return pair
    sign = 1.0 if column.higher_is_better else -1.0

    def best(own: float | None, others: Sequence[float | None]) -> bool:
        known = [sign * value for value in others if value is not None]
        return own is not None and len(known) > 1 and math.isclose(sign * own, max(known))

    marks = (best(pair.published, [r.published for r in rivals]), best(pair.mean, [r.mean for r in rivals]))
    return Pair(pair.published, pair.mean, pair.deviation, pair.n, pair.reason, marks)


def footer_of(results: Results, records: Sequence[Record], command: str) -> list[str]:
    """Where the numbers are from: scale, seeds, judge, data, configurations, commits, versions, dates, command."""
    plan = results.plan
    scale = f"Reproduced at scale {plan.scale.name} with seeds {', '.join(map(str, plan.seeds))}"
    lines = [f"{scale}: mean ± standard deviation over the seeds. Printed numbers are of the paper's own models."]
    lines += plan.scale.notes
    if judges := sorted({judged(record) for record in records if record.judge is not None}):
        lines.append(f"Judge: {'; '.join(judges)}.")
    lines.append(f"Data: {listed({f'{r.run.dataset} {r.data.content_hash[:10]}' for r in records})}.")
    lines.append(f"Configurations: {listed({record.run.config_hash for record in records})}.")
    commits = {
        f"{str(r.environment.get('commit'))[:10]}{'+changes' if r.environment.get('dirty') else ''}" for r in records
    }
    lines.append(f"Commits: {listed(commits)}.")
    now = environment()
    versions = ", ".join(f"{name} {now[name]}" for name in ("python", "torch", "transformers") if now.get(name))
    dates = sorted(record.created[:10] for record in records)
    if dates:
        lines.append(f"Measured {dates[0]} to {dates[-1]}; rendered with {versions}.")
    return [*lines, f"Command: {command}", *plan.experiment.notes]


def judged(record: Record) -> str:
    """A record's judge in words."""
    judge = record.judge
    assert judge is not None
    return f"{judge.name} {judge.model}".strip() + f" (prompts {judge.prompts[:10]})"


def listed(values: set[str], shown: int = 12) -> str:
    """The values in order, the rest counted."""
    ordered = sorted(values)
    rest = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + rest if ordered else DASH


def printed(column: Column, value: float | None) -> str:
    """A number with the column's digits; a dash without one."""
    return DASH if value is None else f"{value:.{column.digits}f}"


def reproduced(column: Column, pair: Pair) -> str:
    """Mean and standard deviation."""
    deviation = "" if pair.deviation is None else f" ± {pair.deviation:.{column.digits}f}"
    return printed(column, pair.mean) + deviation


def reasons_of(table: PaperTable) -> list[str]:
    """Why cells are empty, each reason once, with its columns."""
    found: dict[str, dict[str, None]] = {}
    for _, pairs in table.rows:
        for column, pair in zip(table.columns, pairs, strict=True):
            if pair.mean is None:
                found.setdefault(pair.reason or "no value", {})[column.title] = None
    return [f"{DASH} {', '.join(columns)}: {reason}" for reason, columns in found.items()]


def to_markdown(table: PaperTable) -> str:
    """A heading, the table, reasons of dashes and the footer."""
    heads = [*table.axes, *(f"{c.title}, paper | {c.title}, ours" for c in table.columns)]
    lines = [f"## {title_of(table)}", "", f"| {' | '.join(heads)} |"]
    lines.append("|" + "---|" * len(table.axes) + "---:|" * (2 * len(table.columns)))
    for labels, pairs in table.rows:
        cells = [escape_markdown(label) for label in labels.values()]
        for column, pair in zip(table.columns, pairs, strict=True):
            texts = printed(column, pair.published), reproduced(column, pair)
            cells += [f"**{text}**" if mark else text for text, mark in zip(texts, pair.bold, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    below = [*reasons_of(table), *table.footer]
    return "\n".join([*lines, "", *(f"* {escape_markdown(line)}" for line in below)]) + "\n"


def to_latex(table: PaperTable) -> str:
    """A tabular for \\usepackage{booktabs}, the footer as comments."""
    count = len(table.columns)
    groups = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape_latex(c.title)}}}" for c in table.columns)
    lines = [f"% {line}" for line in [title_of(table), *reasons_of(table), *table.footer]]
    lines += [rf"\begin{{tabular}}{{{'l' * len(table.axes)}{'rr' * count}}}", r"\toprule"]
    lines.append(" & " * (len(table.axes) - 1) + f" & {groups} \\\\")
    lines.append(" & ".join([*map(escape_latex, table.axes), *["paper & ours"] * count]) + r" \\")
    lines.append(r"\midrule")
    for labels, pairs in table.rows:
        cells = [escape_latex(label) for label in labels.values()]
        for column, pair in zip(table.columns, pairs, strict=True):
            for text, mark in zip((printed(column, pair.published), reproduced(column, pair)), pair.bold, strict=True):
                plain = text.replace(DASH, "--").replace("±", r"$\pm$")
                cells.append(rf"\textbf{{{plain}}}" if mark else plain)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(table: PaperTable) -> str:
    """One line a cell, at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.axes, "column", "published", "reproduced_mean", "reproduced_sd", "seeds", "reason"])
    for labels, pairs in table.rows:
        for column, pair in zip(table.columns, pairs, strict=True):
            numbers = [pair.published, pair.mean, pair.deviation, pair.n]
            writer.writerow([*labels.values(), column.name, *("" if n is None else n for n in numbers), pair.reason])
    return out.getvalue()


def to_html(table: PaperTable) -> str:
    """The table as a fragment: every text escaped, numbers in cells of class ``paper`` and ``ours``."""
    esc = html.escape
    heads = "".join(f'<th colspan="2" scope="colgroup">{esc(column.title)}</th>' for column in table.columns)
    below = "".join('<th scope="col">paper</th><th scope="col">ours</th>' for _ in table.columns)
    axes = "".join(f'<th rowspan="2" scope="col">{esc(axis)}</th>' for axis in table.axes)
    body = "\n".join(html_row(table, labels, pairs) for labels, pairs in table.rows)
    notes = "".join(f"<li>{esc(line)}</li>" for line in [*reasons_of(table), *table.footer])
    return (
        f'<table class="paper-table">\n<caption>{esc(title_of(table))}</caption>\n<thead><tr>{axes}{heads}</tr>'
        f'<tr>{below}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n<ul class="footer">{notes}</ul>\n'
    )


def html_row(table: PaperTable, labels: Mapping[str, str], pairs: Sequence[Pair]) -> str:
    """One row of the HTML table."""
    cells = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in labels.values())
    for column, pair in zip(table.columns, pairs, strict=True):
        texts = printed(column, pair.published), reproduced(column, pair)
        for name, text, mark in zip(("paper", "ours"), texts, pair.bold, strict=True):
            cells += f'<td class="{name}">{f"<b>{text}</b>" if mark else text}</td>'
    return f"<tr>{cells}</tr>"


def title_of(table: PaperTable) -> str:
    """Paper, table and what it is of."""
    return f"{table.experiment.paper}, {table.experiment.path.stem}: {table.experiment.title}"


def escape_markdown(text: str) -> str:
    """Text in which no character means something to Markdown."""
    for character in "\\|*_`<[":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")


def escape_latex(text: str) -> str:
    """Text in which no character means something to LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def write_table(results: Results, folder: Path, command: str) -> tuple[list[Path], str]:
    """Write the table in all formats to ``folder``; returns the files and the Markdown text."""
    table = table_of(results, command)
    texts = {"md": to_markdown(table), "tex": to_latex(table), "csv": to_csv(table), "html": to_html(table)}
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{table.experiment.name}_{results.plan.scale.name}"
    paths = []
    for name in FORMATS:
        path = folder / f"{stem}.{name}"
        aside = path.with_name(f".{path.name}")
        aside.write_text(texts[name], encoding="utf-8")
        aside.replace(path)
        paths.append(path)
    return paths, texts["md"]
