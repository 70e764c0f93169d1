"""A paper's table of hyper-parameters, printed beside ours, with the source of each, in four formats."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from src.experiments.experiment import Experiment
from src.experiments.settings import Setting, settings_of
from src.reporting.escapes import DASH, escape_latex, escape_markdown

HEADS = ("row", "value", "printed", "ours", "agrees", "source")


def write_settings(experiment: Experiment, folder: Path, command: str) -> tuple[list[Path], str]:
    """Write the comparison in all formats to ``folder``; returns the files and the Markdown text."""
    settings = settings_of(experiment)
    title = f"{experiment.paper}, {experiment.path.stem}: {experiment.title}"
    below = [summary(settings), f"Command: {command}", *experiment.notes]
    rows = [cells_of(setting) for setting in settings]
    texts = {
        "md": to_markdown(title, rows, below),
        "tex": to_latex(title, rows, below),
        "csv": to_csv(rows),
        "html": to_html(title, rows, below),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{experiment.name}_settings.{name}" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        aside = path.with_name(f".{path.name}")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    return paths, texts["md"]


def cells_of(setting: Setting) -> tuple[str, ...]:
    """The texts of a row."""
    agrees = {True: "yes", False: "no", None: DASH}[setting.agrees]
    return (*setting.where, setting.printed, setting.ours or DASH, agrees, setting.source)


def summary(settings: Sequence[Setting]) -> str:
    """How many values agree."""
    agreeing = sum(setting.agrees is True for setting in settings)
    compared = sum(setting.agrees is not None for setting in settings)
    return f"{agreeing} of {compared} printed values are ours too; {len(settings) - compared} have no counterpart."


def to_markdown(title: str, rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """A heading, the table and the lines below it."""
    lines = [f"## {title}", "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return "\n".join([*lines, "", *(f"* {escape_markdown(line)}" for line in below)]) + "\n"


def to_latex(title: str, rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """A tabular for \\usepackage{booktabs}, the lines below as comments; the last column wraps."""
    lines = [f"% {line}" for line in (title, *below)]
    lines += [rf"\begin{{tabular}}{{{'l' * (len(HEADS) - 1)}p{{0.4\linewidth}}}}", r"\toprule"]
    lines += [" & ".join(HEADS) + r" \\", r"\midrule"]
    lines += [" & ".join(escape_latex(cell).replace(DASH, "--") for cell in row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(rows: Sequence[Sequence[str]]) -> str:
    """One line a value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([HEADS, *rows])
    return out.getvalue()


def to_html(title: str, rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """The table as a fragment, every text escaped."""
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in HEADS)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in below)
    return (
        f'<table class="settings-table">\n<caption>{html.escape(title)}</caption>\n<thead><tr>{heads}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table>\n<ul class="footer">{notes}</ul>\n'
    )
