"""Cells from records: the newest of a measurement, its items, means and places made of other cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from src.evaluation.records import write_record
from src.experiments.experiment import Column, MeanOf, Measured, RankOf
from tests.experiments.measured import WINS, experiment_of, items_of, record_of, results_of

ROWS = [("m", "dpo"), ("m", "sft")]
DPO = {"model": "m", "method": "dpo"}


def test_a_cell_has_its_items_in_the_tables_unit(tmp_path: Path) -> None:
    column = replace(WINS, scale=100.0)
    results = results_of(tmp_path, experiment_of(ROWS, columns=[column]), {ROWS[0]: {0: [0.25, 0.75]}})
    sample = results.sample(DPO, column)
    assert sample.numbers == {0: 50.0}
    assert sample.items == {0: {"q0": 25.0, "q1": 75.0}}
    assert results.sample({"model": "m", "method": "sft"}, column).numbers == {}


def test_the_newest_measurement_counts_and_the_difference_is_said(tmp_path: Path) -> None:
    results = results_of(tmp_path, experiment_of(ROWS), {ROWS[0]: {0: [1.0, 2.0]}})
    assert results.repeated() == []
    later = record_of(*ROWS[0], 0, [3.0, 5.0], created="2026-03-01T00:00:00+00:00")
    path = write_record(tmp_path, later, items_of([3.0, 5.0]))
    assert path.name.endswith(".2.json")
    (value,) = results.values(DPO, WINS)
    assert value.number == 4.0
    assert results.sample(DPO, WINS).items[0] == {"q0": 3.0, "q1": 5.0}
    (said,) = results.repeated()
    assert "2 times with different results (win_rate)" in said
    assert "2026-03-01" in said


def test_a_record_without_items_gives_its_number_alone(tmp_path: Path) -> None:
    results = results_of(tmp_path, experiment_of(ROWS), {})
    write_record(tmp_path, record_of(*ROWS[0], 0, [3.0, 5.0]))
    sample = results.sample(DPO, WINS)
    assert (sample.numbers, sample.items) == ({0: 4.0}, {0: {}})


def test_damaged_items_are_refused(tmp_path: Path) -> None:
    from src.errors import UserError

    results = results_of(tmp_path, experiment_of(ROWS), {ROWS[0]: {0: [1.5, 2.5]}})
    (file,) = (tmp_path / "items").iterdir()
    other = results_of(tmp_path / "other", experiment_of(ROWS), {ROWS[0]: {0: [1.0, 3.0]}})
    (foreign,) = (other.index.folder / "items").iterdir()
    file.write_bytes(foreign.read_bytes())
    with pytest.raises(UserError, match="is not what its record was made with"):
        results.sample(DPO, WINS)
    file.write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        results.sample(DPO, WINS)


def test_means_and_places_are_made_seed_by_seed(tmp_path: Path) -> None:
    columns = [
        WINS,
        Column("again", "Again", Measured("alpaca_eval", "win_rate"), scale=3.0),
        Column("mean", "Mean", MeanOf(("wins", "again"))),
        Column("rank", "Rank", RankOf("mean", ("model",)), higher_is_better=False),
    ]
    values = {ROWS[0]: {0: [1.0], 1: [5.0]}, ROWS[1]: {0: [2.0], 1: [4.0]}}
    results = results_of(tmp_path, experiment_of(ROWS, columns=columns), values, seeds=(0, 1))
    assert [value.number for value in results.values(DPO, columns[2])] == [2.0, 10.0]
    assert [value.number for value in results.values(DPO, columns[3])] == [2.0, 1.0]
