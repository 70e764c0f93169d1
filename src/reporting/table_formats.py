"""A paper's table as Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence

from src.reporting.escapes import escape_latex, escape_markdown, latex_comment
from src.reporting.paper_tables import STAR, Pair, PaperTable, printed, reproduced


def table_texts(table: PaperTable) -> dict[str, str]:
    """The table in every format, by the ending of its file."""
    return {"md": to_markdown(table), "tex": to_latex(table), "csv": to_csv(table), "html": to_html(table)}


def to_markdown(table: PaperTable) -> str:
    """A heading, the table, and the lines below it."""
    heads = [escape_markdown(axis) for axis in table.axes]
    heads += [f"{escape_markdown(column.title)}, {side}" for column in table.columns for side in ("paper", "ours")]
    lines = [f"## {escape_markdown(table.title)}", "", f"| {' | '.join(heads)} |"]
    lines.append("|" + "---|" * len(table.axes) + "---:|" * (2 * len(table.columns)))
    for labels, pairs in table.rows:
        cells = [escape_markdown(label) for label in labels.values()]
        for column, pair in zip(table.columns, pairs, strict=True):
            texts = printed(column, pair.published), reproduced(column, pair, table.seeds)
            paper, ours = (f"**{text}**" if mark else text for text, mark in zip(texts, pair.bold, strict=True))
            cells += [paper, ours + (f" \\{STAR}" if pair.star else "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"* {escape_markdown(line)}" for line in table.below)]) + "\n"


def to_latex(table: PaperTable) -> str:
    """A tabular for \\usepackage{booktabs}, the legend below it, where it is from as comments."""
    lines = [latex_comment(line) for line in (table.title, r"needs \usepackage{booktabs}", *table.below)]
    lines += [rf"\begin{{tabular}}{{{'l' * len(table.axes)}{'rr' * len(table.columns)}}}", r"\toprule"]
    groups = [rf"\multicolumn{{2}}{{c}}{{{escape_latex(column.title)}}}" for column in table.columns]
    lines.append(" & ".join([*[""] * len(table.axes), *groups]).strip() + r" \\")
    lines.append(" & ".join([*map(escape_latex, table.axes), *["paper", "ours"] * len(table.columns)]) + r" \\")
    lines.append(r"\midrule")
    for labels, pairs in table.rows:
        cells = [escape_latex(label) for label in labels.values()]
        for column, pair in zip(table.columns, pairs, strict=True):
            texts = printed(column, pair.published), reproduced(column, pair, table.seeds)
            paper, ours = (
                rf"\textbf{{{escape_latex(text)}}}" if mark else escape_latex(text)
                for text, mark in zip(texts, pair.bold, strict=True)
            )
            cells += [paper, ours + (f"$^{{{STAR}}}$" if pair.star else "")]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.legend:
        lines.append(rf"\par\smallskip{{\footnotesize {escape_latex(table.legend)}\par}}")
    return "\n".join(lines) + "\n"


CSV_FIELDS = (
    *("column", "published", "reproduced_mean", "reproduced_sd", "runs", "best_published", "best_reproduced"),
    *("lead", "lead_low", "lead_high", "reason", "sources"),
)


def to_csv(table: PaperTable) -> str:
    """One line a cell, at full precision; ``lead``: by how much the best is ahead of the next best."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.axes, *CSV_FIELDS])
    for labels, pairs in table.rows:
        for column, pair in zip(table.columns, pairs, strict=True):
            lead = [None] * 3 if pair.lead is None else [pair.lead.value, pair.lead.low, pair.lead.high]
            values = [
                pair.published,
                pair.mean,
                pair.deviation,
                pair.n,
                *map(int, pair.bold),
                *lead,
                pair.reason,
                " ".join(pair.sources),
            ]
            writer.writerow([*labels.values(), column.name, *("" if value is None else value for value in values)])
    return out.getvalue()


def to_html(table: PaperTable) -> str:
    """The table as a fragment: every text escaped, numbers in cells of class ``paper`` and ``ours``."""
    esc = html.escape
    heads = "".join(f'<th colspan="2" scope="colgroup">{esc(column.title)}</th>' for column in table.columns)
    below = "".join('<th scope="col">paper</th><th scope="col">ours</th>' for _ in table.columns)
    axes = "".join(f'<th rowspan="2" scope="col">{esc(axis)}</th>' for axis in table.axes)
    body = "\n".join(html_row(table, labels, pairs) for labels, pairs in table.rows)
    notes = "".join(f"<li>{esc(line)}</li>" for line in table.below)
    return (
        f'<table class="paper-table">\n<caption>{esc(table.title)}</caption>\n<thead><tr>{axes}{heads}</tr>'
        f'<tr>{below}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n<ul class="footer">{notes}</ul>\n'
    )


def html_row(table: PaperTable, labels: Mapping[str, str], pairs: Sequence[Pair]) -> str:
    """One row of the HTML table; a cell's title says where it is from or why it is empty, and of the best its lead."""
    cells = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in labels.values())
    for column, pair in zip(table.columns, pairs, strict=True):
        texts = printed(column, pair.published), reproduced(column, pair, table.seeds)
        paper, ours = (
            f"<b>{html.escape(text)}</b>" if mark else html.escape(text)
            for text, mark in zip(texts, pair.bold, strict=True)
        )
        told = pair.reason or f"from {', '.join(pair.sources)}"
        if pair.lead is not None:
            told = f"ahead of the next best by {pair.lead.value:.3g} {pair.lead.spread}; {told}"
        title = f' title="{html.escape(told)}"' if told else ""
        cells += (
            f'<td class="paper">{paper}</td><td class="ours"{title}>{ours}{"<sup>*</sup>" if pair.star else ""}</td>'
        )
    return f"<tr>{cells}</tr>"
