"""Tables of printed and reproduced numbers: cells, marks, dashes, what may not stand in one, and four formats."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import UserError
from src.evaluation.records import Record
from src.experiments.experiment import Column, Measured, RankOf, Unreproduced
from src.experiments.results import Results
from src.reporting.claims_formats import texts_of
from src.reporting.claims_table import claims_of_paper, claims_table, write_claims
from src.reporting.escapes import DASH, escape_latex, escape_markdown
from src.reporting.paper_tables import Pair, bold, reproduced, table_of, write_table
from src.reporting.table_formats import table_texts
from tests.experiments.measured import WINS, experiment_of, results_of

ROWS = [("a", "sft"), ("a", "dpo"), ("a", "amapo"), ("b", "sft"), ("b", "dpo"), ("b", "amapo")]
PRINTED: dict[tuple[str, str], list[float | None]] = {
    row: [number] for row, number in zip(ROWS, (4.5, 20.25, 26.4, 8.0, None, 24.0), strict=True)
}
BEST = {"_target_": "src.experiments.claims.Best", "column": "wins", "row": {"method": "amapo"}, "within": ["model"]}
CLAIM = {"text": "AMaPO is best <everywhere>", "quote": "it | leads", "check": BEST}


def values_of(*means: float, seeds: int = 1, items: int = 100) -> dict[Any, Any]:
    """Questions about ``means``, each harder or easier for all rows."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, items)
    return {
        row: {seed: (mean + seed + hard + rng.normal(0, 1, items)).tolist() for seed in range(seeds)}
        for row, mean in zip(ROWS, means, strict=True)
    }


def made(folder: Path, *means: float, seeds: int = 1, **changes: Any) -> Results:
    """The results of all rows."""
    experiment = experiment_of(ROWS, PRINTED, claims=(CLAIM,), **changes)
    return results_of(folder, experiment, values_of(*means, seeds=seeds), tuple(range(seeds)))


def cells_of(results: Results) -> dict[tuple[str, ...], Pair]:
    """The first column's cells by row."""
    return {tuple(labels.values()): pairs[0] for labels, pairs in table_of(results, "make it").rows}


def test_a_cell_has_the_printed_number_and_our_mean_over_seeds(tmp_path: Path) -> None:
    results = made(tmp_path, 1, 2, 9, 1, 2, 9, seeds=3)
    pair = cells_of(results)["a", "amapo"]
    numbers = [value.number or 0.0 for value in results.values({"model": "a", "method": "amapo"}, WINS)]
    assert pair.published == 26.4
    assert pair.mean == pytest.approx(np.mean(numbers))
    assert pair.deviation == pytest.approx(np.std(numbers, ddof=1))
    assert pair.n == 3
    table = table_of(results, "make it")
    assert reproduced(table.columns[0], pair, 3) == f"{pair.mean:.2f} ± {pair.deviation:.2f}"
    assert reproduced(table.columns[0], replace(pair, n=2), 3).endswith(" (n=2)")


def test_digits_are_those_of_the_paper(tmp_path: Path) -> None:
    assert table_of(made(tmp_path, 1, 2, 9, 1, 2, 9), "x").columns[0].digits == 2  # it prints 20.25


def test_the_best_of_each_block_is_bold_on_both_sides(tmp_path: Path) -> None:
    cells = cells_of(made(tmp_path, 1, 9, 2, 1, 2, 9))
    assert [row for row, pair in cells.items() if pair.bold[0]] == [("a", "amapo"), ("b", "amapo")]
    assert [row for row, pair in cells.items() if pair.bold[1]] == [("a", "dpo"), ("b", "amapo")]


def test_bold_knows_ties_lower_is_better_and_what_is_not_compared() -> None:
    pairs = [Pair(1.0, 2.0, None, 1), Pair(1.0, 1.0, None, 1), Pair(None, None, None, 0)]
    assert [bold(pair, pairs, WINS).bold for pair in pairs] == [(True, True), (True, False), (False, False)]
    lower = replace(WINS, higher_is_better=False)
    assert [bold(pair, pairs, lower).bold for pair in pairs] == [(True, False), (True, True), (False, False)]
    assert bold(pairs[0], pairs, replace(WINS, compared=False)).bold == (False, False)
    assert bold(pairs[0], pairs[:1], WINS).bold == (False, False)


def test_a_star_is_for_a_lead_that_is_certain(tmp_path: Path) -> None:
    cells = cells_of(made(tmp_path, 1, 2, 9, 1, 9, 9.05))
    assert [row for row, pair in cells.items() if pair.star] == [("a", "amapo")]
    best = cells["a", "amapo"]
    assert best.lead is not None
    assert best.lead.value == pytest.approx((best.mean or 0) - (cells["a", "dpo"].mean or 0))
    assert "does not reach 0" in table_of(made(tmp_path, 1, 2, 9, 1, 9, 9.05), "x").legend


def test_places_have_no_star(tmp_path: Path) -> None:
    columns = [WINS, Column("rank", "Rank", RankOf("wins", ("model",)), higher_is_better=False, digits=0)]
    printed: dict[Any, Any] = {row: [numbers[0], None] for row, numbers in PRINTED.items()}
    experiment = experiment_of(ROWS, printed, columns)
    table = table_of(results_of(tmp_path, experiment, values_of(1, 2, 9, 1, 2, 9)), "x")
    rank = table.rows[2][1][1]
    assert (rank.mean, rank.bold, rank.star) == (1.0, (False, True), False)
    assert rank.sources == table.rows[2][1][0].sources != ()


def test_what_is_missing_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    columns = [WINS, Column("cost", "Cost", Unreproduced("nobody paid here"))]
    printed: dict[Any, Any] = {row: [numbers[0], 1.0] for row, numbers in PRINTED.items()}
    values = values_of(1, 2, 9, 1, 2, 9)
    del values["b", "dpo"]
    table = table_of(results_of(tmp_path, experiment_of(ROWS, printed, columns), values), "x")
    assert not table.complete
    assert f"{DASH} Wins (%) in 1 rows: not measured yet" in table.below
    assert f"{DASH} Cost: nobody paid here" in table.below
    assert f"{DASH} under paper: the paper prints no number there, or it cannot be read." in table.below


def test_rows_of_other_seeds_are_not_compared(tmp_path: Path) -> None:
    """A row that lacks a seed has no number: a mean over fewer seeds does not compare with the others."""
    values = values_of(1, 2, 9, 1, 2, 9, seeds=3)
    del values["a", "dpo"][1]
    results = results_of(tmp_path, experiment_of(ROWS, PRINTED), values, (0, 1, 2))
    pair = cells_of(results)["a", "dpo"]
    assert (pair.mean, pair.n) == (None, 0)
    assert pair.reason == "not measured yet (seed 1 of 3, and rows must have the same seeds to be compared)"


def changed(**changes: Any) -> Any:
    """A change of the records of one row."""

    def change(record: Record) -> Record:
        if record.run.method != "dpo" or record.run.model != "a":
            return record
        run = {key.removeprefix("run_"): value for key, value in changes.items() if key.startswith("run_")}
        data = {key.removeprefix("data_"): value for key, value in changes.items() if key.startswith("data_")}
        rest = {key: value for key, value in changes.items() if not key.startswith(("run_", "data_"))}
        assert record.judge is not None
        if "judge" in rest:
            rest["judge"] = replace(record.judge, model=rest["judge"])
        return replace(record, run=replace(record.run, **run), data=replace(record.data, **data), **rest)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(scale="cluster"), r"1 records are not of scale laptop: .* \(cluster\)"),
        (changed(scale=""), r"\(none\); a table has one scale"),
        (changed(judge="gpt-4"), "2 judges"),
        (changed(data_content_hash="0ther"), r"the rows of a were measured on different data for Wins"),
        (changed(run_dataset="other"), r"the rows of a were trained on different data .*other: a / dpo"),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    results = results_of(tmp_path, experiment_of(ROWS, PRINTED), values_of(1, 2, 9, 1, 2, 9), change=change)
    with pytest.raises(UserError, match=message):
        table_of(results, "x")
    with pytest.raises(UserError, match=message):
        claims_table(results, "x")


def test_other_models_may_be_trained_on_other_data(tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        return replace(record, run=replace(record.run, dataset=f"data of {record.run.model}"))

    results = results_of(tmp_path, experiment_of(ROWS, PRINTED), values_of(1, 2, 9, 1, 2, 9), change=change)
    assert table_of(results, "x").complete


def test_where_the_numbers_are_from_stands_below(tmp_path: Path) -> None:
    below = "\n".join(table_of(made(tmp_path, 1, 2, 9, 1, 2, 9, seeds=2), "make reproduce-table2").below)
    for text in (
        "scale laptop with 2 seeds (0, 1): mean ± standard deviation",
        "Tiny models.",
        "Judge: oracle for alpaca_eval (prompts 1dea)",
        "Measured on: alpaca_eval toy da7a (100)",
        "Trained on (data and its manifest): toy feed",
        "Configurations of runs: ",
        "Configurations of evaluations: e0e0",
        "Commits: 0123456789",
        "Versions: python 3.11.9, torch 2.13.0, transformers 5",
        "Measured 2026-02-01 to 2026-02-02",
        "Command: make reproduce-table2",
        "A note.",
    ):
        assert text in below


def odd(results: Results) -> Results:
    """The same with labels and titles that mean something to every format."""
    experiment = results.plan.experiment
    columns = tuple(replace(column, title="W & <b>L</b> | 100 % _γ_") for column in experiment.columns)
    notes = ("first line\nsecond line $5 #1 {x} ~ ^ \\",)
    return replace(results, plan=replace(results.plan, experiment=replace(experiment, columns=columns, notes=notes)))


def test_markdown_tables_have_as_many_cells_in_every_row(tmp_path: Path) -> None:
    results = odd(made(tmp_path, 1, 2, 9, 1, 2, 9))
    for text in (table_texts(table_of(results, "x"))["md"], texts_of(claims_table(results, "x"))["md"]):
        for block in re.split(r"\n\n", text):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    text = table_texts(table_of(results, "x"))["md"]
    assert re.search(r"\| \*\*9\.\d\d\*\* \\\* \|", text)
    assert "W & \\<b>L\\</b> \\| 100 % \\_γ\\_, ours" in text


def test_latex_has_as_many_cells_in_every_row_and_no_bare_characters(tmp_path: Path) -> None:
    results = odd(made(tmp_path, 1, 2, 9, 1, 2, 9, seeds=2))
    for text in (table_texts(table_of(results, "x"))["tex"], texts_of(claims_table(results, "x"))["tex"]):
        assert "second line" not in {line for line in text.splitlines() if not line.startswith("%")}
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
        body = [line for line in text.splitlines() if not line.startswith("%")]
        rows = [re.sub(r"\\multicolumn\{2\}\{c\}", "& ", line) for line in body if line.endswith(r"\\")]
        for line in body:
            bare = re.sub(r"\\[&%$#_{}]", "", line)
            assert not re.search(r"[#%_~^<>]", re.sub(r"\$\^\{\*\}\$|\$\\\w+\$", "", bare)), line
            assert bare.count("{") == bare.count("}"), line
        assert all(character not in text.split(r"\toprule", 1)[1] for character in "±γ—“")
        for table in text.split(r"\begin{tabular}")[1:]:
            own = [line for line in rows if line in re.sub(r"\\multicolumn\{2\}\{c\}", "& ", table)]
            assert len({len(re.findall(r"(?<!\\)&", line)) for line in own}) == 1


def test_labels_are_escaped(tmp_path: Path) -> None:
    rows = [("a|b", "x*_y"), ("a|b", "<i>&")]
    table = table_of(results_of(tmp_path, experiment_of(rows), {rows[0]: {0: [1.0, 2.0]}}), "x")
    texts = table_texts(table)
    assert r"| a\|b | x\*\_y |" in texts["md"]
    assert r"a\textbar{}b & x*\_y &" in texts["tex"]
    assert '<th scope="row">&lt;i&gt;&amp;</th>' in texts["html"]


def test_csv_has_every_cell_at_full_precision(tmp_path: Path) -> None:
    results = made(tmp_path, 1, 2, 9, 1, 2, 9)
    rows = list(csv.DictReader(io.StringIO(table_texts(table_of(results, "x"))["csv"])))
    assert len(rows) == 6
    best = rows[2]
    pair = cells_of(results)["a", "amapo"]
    assert (float(best["reproduced_mean"]), best["published"], best["runs"]) == (pair.mean, "26.4", "1")
    assert (best["best_published"], best["best_reproduced"]) == ("1", "1")
    assert float(best["lead_low"]) > 0
    assert rows[4]["published"] == ""
    assert [(tmp_path / name).is_file() for name in best["sources"].split()] == [True]


TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "sup", "ul", "li", "details", "summary"}


class Tags(HTMLParser):
    """The text of a fragment; fails on tags that do not close, or that no table of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_is_escaped_and_well_formed(tmp_path: Path) -> None:
    results = odd(made(tmp_path, 1, 2, 9, 1, 2, 9))
    for text in (table_texts(table_of(results, "<i>"))["html"], texts_of(claims_table(results, "<i>"))["html"]):
        parser = Tags()
        parser.feed(text)
        assert parser.open == []
        assert "<b>L</b>" in " ".join(parser.texts)
        assert "Command: <i>" in " ".join(parser.texts)


def test_escapes() -> None:
    assert escape_latex("50 % & a_b γ ± “x” \\") == r"50 \% \& a\_b $\gamma$ $\pm$ ``x'' \textbackslash{}"
    assert escape_markdown("a|b*c_d`e<f[g\nh") == r"a\|b\*c\_d\`e\<f\[g h"


def test_a_claims_table_says_text_quote_and_both_verdicts(tmp_path: Path) -> None:
    table = claims_table(made(tmp_path, 1, 2, 9, 1, 9, 2), "x")
    (row,) = table.rows
    assert row.printed is not None
    assert (row.printed.outcome, row.reproduced.outcome) == ("holds", "fails")
    text = texts_of(table)["md"]
    assert r"AMaPO is best \<everywhere>" in text
    assert r"“it \| leads”" in text
    assert "fails (holds in 1, fails in 1 of 2; b: amapo minus dpo)" in text
    assert re.search(r"\| -\d\.\d+ \\\[-\d\.\d+, -\d\.\d+\] \|", text)
    lines = list(csv.DictReader(io.StringIO(texts_of(table)["csv"])))
    assert [line["kind"] for line in lines] == ["claim", "block", "block", "agreement", "agreement"]
    assert (lines[2]["where"], lines[2]["printed"], lines[2]["reproduced"]) == ("b", "holds", "fails")
    assert 'class="fails"' in texts_of(table)["html"]


def test_claims_of_a_whole_paper(tmp_path: Path) -> None:
    first = made(tmp_path, 1, 2, 9, 1, 9, 2)
    experiment = replace(first.plan.experiment, path=Path("table3.yaml"))
    second = replace(first, plan=replace(first.plan, experiment=experiment))
    table = claims_of_paper([first, second], "x")
    assert [row.table for row in table.rows] == ["table2", "table3"]
    assert table.title == "paper: claims at scale laptop"
    paths = write_claims([first, second], tmp_path / "tables", "x")
    assert [path.name for path in paths] == [f"paper_claims_laptop.{end}" for end in ("md", "tex", "csv", "html")]


def test_everything_is_written_beside_each_other(tmp_path: Path) -> None:
    paths, text = write_table(made(tmp_path, 1, 2, 9, 1, 9, 2), tmp_path / "tables", "x")
    stems = [f"paper_table2_laptop{part}.{end}" for part in ("", "_claims") for end in ("md", "tex", "csv", "html")]
    assert [path.name for path in paths] == stems
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(stems)
    assert text.startswith("## paper, table2: Wins")
    assert "## paper, table2: claims at scale laptop" in text


def test_tables_without_claims_and_orders_write_none(tmp_path: Path) -> None:
    column = Column("length", "Length", Measured("alpaca_eval", "win_rate"), compared=False)
    results = results_of(tmp_path, experiment_of(ROWS, None, [column]), values_of(1, 2, 9, 1, 9, 2))
    paths, _ = write_table(results, tmp_path / "tables", "x")
    assert len(paths) == 4
