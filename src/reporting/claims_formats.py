"""A table of claims as Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence

from src.experiments.verdicts import Agreement, Verdict
from src.reporting.claims_table import ClaimsTable, Row
from src.reporting.escapes import DASH, escape_latex, escape_markdown, latex_comment

HEADS = ("table", "claim", "in the paper's words", "printed numbers", "at this scale", "difference and 95 % interval")


def texts_of(table: ClaimsTable) -> dict[str, str]:
    """The table in every format, by the ending of its file."""
    return {"md": to_markdown(table), "tex": to_latex(table), "csv": to_csv(table), "html": to_html(table)}


def cells_of(row: Row) -> tuple[str, ...]:
    """The texts of a row."""
    paper = DASH if row.printed is None else spoken(row.printed, with_interval=True)
    return (row.table, row.text, f"“{row.quote}”", paper, spoken(row.reproduced), row.reproduced.interval or DASH)


def spoken(verdict: Verdict, *, with_interval: bool = False) -> str:
    """A verdict and what decided it."""
    value = f", {verdict.interval}" if with_interval and verdict.interval else ""
    return f"{verdict.outcome} ({verdict.text}{value})" if verdict.text else verdict.outcome


TAU_HEADS = ("table", "column", "rows of", "number", "Kendall's tau", "95 % interval")


def tau_cells(table: str, one: Agreement) -> tuple[str, ...]:
    """The texts of an agreement."""
    tau = DASH if one.estimate is None else f"{one.estimate.value:.2f}"
    interval = one.reason if one.estimate is None or one.estimate.low is None else one.estimate.spread
    return table, one.column.title, one.where or "all", str(one.rows), tau, interval or DASH


def to_markdown(table: ClaimsTable) -> str:
    """A heading, the claims, the orders, and the lines below."""
    lines = [f"## {escape_markdown(table.title)}"]
    if table.rows:
        lines += ["", *markdown_table(HEADS, map(cells_of, table.rows))]
    if table.agreements:
        lines += ["", *markdown_table(TAU_HEADS, (tau_cells(*one) for one in table.agreements))]
    return "\n".join([*lines, "", *(f"* {escape_markdown(line)}" for line in table.below)]) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(map(escape_markdown, heads))} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]


def to_latex(table: ClaimsTable) -> str:
    """Two tabulars for \\usepackage{booktabs}, the lines below as comments."""
    lines = [latex_comment(line) for line in (table.title, r"needs \usepackage{booktabs}", *table.below)]
    if table.rows:
        widths = "lp{0.18\\linewidth}p{0.18\\linewidth}p{0.2\\linewidth}p{0.2\\linewidth}l"
        lines += latex_table(widths, HEADS, map(cells_of, table.rows))
    if table.agreements:
        lines += [r"\par\medskip", *latex_table("lllrrl", TAU_HEADS, (tau_cells(*one) for one in table.agreements))]
    return "\n".join(lines) + "\n"


def latex_table(widths: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a tabular."""
    lines = [rf"\begin{{tabular}}{{{widths}}}", r"\toprule", " & ".join(map(escape_latex, heads)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


CSV_FIELDS = (
    *("kind", "table", "text", "quote", "where", "rows", "printed", "printed_difference", "reproduced", "value", "low"),
    *("high", "seeds", "prompts", "decided_by"),
)


def to_csv(table: ClaimsTable) -> str:
    """One line a claim, one for each of its blocks, and one an order (``agreement``), at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for row in table.rows:
        paper = row.printed
        writer.writerow(
            ["claim", row.table, row.text, row.quote, "", "", *csv_printed(paper), *csv_verdict(row.reproduced)]
        )
        printed = {part.where: part for part in (paper.parts if paper else ())}
        for part in row.reproduced.parts:
            own = csv_printed(printed.get(part.where))
            writer.writerow(["block", row.table, row.text, "", part.where, "", *own, *csv_verdict(part)])
    for name, one in table.agreements:
        verdict = Verdict("undecided", one.reason, one.estimate)
        values = ["agreement", name, one.column.title, "", one.where, one.rows, "", "", "", *csv_verdict(verdict)[1:]]
        writer.writerow(values)
    return out.getvalue()


def csv_printed(verdict: Verdict | None) -> list[object]:
    """Verdict on the printed numbers, and the difference that decided it."""
    if verdict is None:
        return ["", ""]
    return [verdict.outcome, "" if verdict.estimate is None else verdict.estimate.value]


def csv_verdict(verdict: Verdict) -> list[object]:
    """Verdict, estimate and what decided."""
    one = verdict.estimate
    numbers = [None] * 5 if one is None else [one.value, one.low, one.high, one.seeds, one.prompts]
    return [verdict.outcome, *("" if value is None else value for value in numbers), verdict.text]


def to_html(table: ClaimsTable) -> str:
    """The tables as a fragment: every text escaped; a verdict's cell has the class ``holds``, ``fails`` or
    ``undecided``, and its blocks are folded below it."""
    parts = []
    if table.rows:
        body = "\n".join(map(html_row, table.rows))
        parts.append(html_table("claims-table", table.title, HEADS, body))
    if table.agreements:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in tau_cells(*one)) for one in table.agreements)
        body = "\n".join(f"<tr>{row}</tr>" for row in cells)
        caption = "Order of the rows, published against reproduced"
        parts.append(html_table("agreement-table", caption, TAU_HEADS, body))
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in table.below)
    return "\n".join([*parts, f'<ul class="footer">{notes}</ul>']) + "\n"


def html_table(name: str, caption: str, heads: Sequence[str], body: str) -> str:
    """A table of rows that are HTML already."""
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in heads)
    return (
        f'<table class="{name}">\n<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def html_row(row: Row) -> str:
    """One claim."""
    table, text, quote, paper, ours, interval = map(html.escape, cells_of(row))
    folded = ""
    if row.reproduced.parts:
        items = "".join(
            f'<li class="{part.outcome}">{html.escape(f"{part.where}: {spoken(part, with_interval=True)}")}</li>'
            for part in row.reproduced.parts
        )
        folded = f"<details><summary>each</summary><ul>{items}</ul></details>"
    printed = "" if row.printed is None else row.printed.outcome
    return (
        f'<tr><td>{table}</td><th scope="row">{text}</th><td>{quote}</td><td class="{printed}">{paper}</td>'
        f'<td class="{row.reproduced.outcome}">{ours}{folded}</td><td>{interval}</td></tr>'
    )
