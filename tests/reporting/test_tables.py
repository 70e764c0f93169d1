"""Tables of records, in every format but HTML, from made-up records."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from src.reporting.console import print_records
from src.reporting.tables import build_tables, cell_text, to_csv, to_markdown
from tests.reporting.made_up import make_record


def test_rows_are_sorted_marked_and_formatted() -> None:
    (table,) = build_tables([make_record("sft", 0.6), make_record("amapo", 0.85), make_record("dpo", 0.8)])
    assert [row.label for row in table.rows] == ["amapo", "dpo", "sft"]
    assert [row.cells["accuracy/average"].best for row in table.rows] == [True, False, False]
    assert not any(row.cells["lengths/chosen_mean"].best for row in table.rows)
    assert cell_text("accuracy/average", table.rows[0].cells["accuracy/average"]) == "85.0 [81.0, 89.0]"
    assert cell_text("spearman/average", table.rows[0].cells["spearman/average"]) == "0.550 [0.510, 0.590]"
    assert cell_text("accuracy/reference", table.rows[0].cells["accuracy/reference"]) == "–"


def test_seeds_are_averaged_with_the_sample_deviation() -> None:
    (table,) = build_tables([make_record(accuracy=value, seed=seed) for seed, value in enumerate([0.7, 0.8, 0.9])])
    (row,) = table.rows
    assert row.seeds == (0, 1, 2)
    assert row.cells["accuracy/average"].value == pytest.approx(0.8)
    assert cell_text("accuracy/average", row.cells["accuracy/average"]) == "80.0 ± 10.0"


def test_settings_of_a_method_are_never_averaged() -> None:
    sweep = [make_record(config_hash=f"h{beta}{seed}", seed=seed, constants={"beta": beta, "lr": 1}) for beta in (1, 2)
             for seed in (0, 1)]  # fmt: skip
    (table,) = build_tables(sweep)
    assert [(row.label, row.seeds) for row in table.rows] == [("simpo beta=1", (0, 1)), ("simpo beta=2", (0, 1))]


def test_runs_that_differ_in_something_unnamed_are_told_apart_by_hash() -> None:
    (table,) = build_tables([make_record(config_hash="aaaaaaaa"), make_record(config_hash="bbbbbbbb")])
    assert [row.label for row in table.rows] == ["simpo #aaaaaa", "simpo #bbbbbb"]


def test_noise_settings_and_splits_are_separate_tables() -> None:
    tables = build_tables([make_record(), make_record(noise="RandomFlip(rate=0.3)")])
    assert [table.noise for table in tables] == ["RandomFlip(rate=0.3)", "none"]


def test_markdown_and_csv() -> None:
    tables = build_tables([make_record("sft", 0.6), make_record("weird|name", 0.8)])
    text = to_markdown(tables)
    assert "| weird\\|name | 1 | **80.0 [76.0, 84.0]** |" in text
    assert "| sft | 1 | 60.0 [56.0, 64.0] |" in text
    assert "no reference log-probs given" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(rows) == 10
    assert {row["method"]: float(row["value"]) for row in rows if row["metric"] == "accuracy/average"} == {
        "sft": 0.6,
        "weird|name": 0.8,
    }
    empty = [row for row in rows if row["metric"] == "accuracy/reference"]
    assert all(row["value"] == "" and row["reason"] for row in empty)


def test_console_shows_values_and_takes_names_literally() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160)
    print_records([make_record("sft", 0.6), make_record("[red]x", 0.8)], console)
    text = out.getvalue()
    assert "80.0 [76.0, 84.0]" in text
    assert "[red]x" in text
    assert "vs reference" not in text  # no row has it
