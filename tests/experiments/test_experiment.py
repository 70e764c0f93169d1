"""Reading experiments, scales and printed tables: what a file may say, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.errors import UserError
from src.experiments.experiment import Curve, Measured, find, load
from src.experiments.published import papers, read_table
from src.experiments.scale import read_scale, scales
from tests.entry import assert_says
from tests.experiments.small import PAPER, TABLE, here, scale_of, write

__all__ = ["here"]


def complaint(folder: Path, *, table: str = TABLE, paper: str = PAPER) -> str:
    """How a table's file is refused."""
    path = write(folder, table, paper)
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def test_rows_are_the_product_of_the_axes_where_the_paper_prints_no_such_table(here: Path) -> None:
    experiment = load(write(here, TABLE.replace("[One]", "[One, Two]")))
    found = [(key["model"], key["method"]) for key in experiment.keys]
    assert found == [("One", "SFT"), ("One", "DPO"), ("Two", "SFT"), ("Two", "DPO")]
    assert experiment.name == "amapo_tablesmall"
    rating, accuracy = experiment.columns
    assert rating.source == Measured("mt_bench", "overall")
    assert accuracy.source == Curve("validation", "rewards/accuracies", "max")
    assert (rating.digits, accuracy.scale) == (2, 100.0)


def test_rows_are_those_that_the_paper_prints_in_its_order() -> None:
    experiment = load(find("amapo", "2"))
    printed = read_table("amapo", "2")
    assert printed is not None
    assert list(experiment.keys) == printed.keys(("model", "method"))
    assert len(experiment.keys) == 36
    assert printed.value(experiment.keys[0], "ae2_lc") is not None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: grid", "kind: grod", "kind 'grod' is unknown; did you mean 'grid'?"),
        ("title: A small table", "titel: A small table", "unknown key 'titel'; did you mean 'title'?"),
        ("title: A small table\n", "", "'title' is missing"),
        ("[SFT, DPO]", "[SFT, DPQ]", "method 'DPQ' is not in"),
        ("benchmark: mt_bench, ", "", "give one of benchmark, curve"),
        ("take: max", "take: min", "take 'min' is unknown; choose max, last or sum"),
        ("metric: overall, digits", "metrics: overall, digits", "unknown key 'metrics'; did you mean 'metric'?"),
        ("rows:", "rows: 3\nrowz:", "unknown key 'rowz'"),
        ("paper: amapo", "paper: [", "cannot be read"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(here: Path, old: str, new: str, said: str) -> None:
    assert old in TABLE
    assert_says(complaint(here, table=TABLE.replace(old, new)), "tablesmall.yaml" if "DPQ" not in new else "", said)


def test_a_mistake_in_the_labels_is_told(here: Path) -> None:
    said = complaint(here, paper=PAPER.replace("{model: llama3_8b_base, ", "{"))
    assert_says(said, "paper.yaml", "models: One: 'model' is missing")


def test_unknown_papers_tables_and_scales_are_told_with_those_there_are(here: Path) -> None:
    with pytest.raises(UserError, match=r"paper=amopa is unknown; did you mean 'amapo'.*gamma_po, gapo, gappo"):
        find("amopa", "2")
    with pytest.raises(UserError, match="table=smal is none of amapo's; did you mean 'small'"):
        find("amapo", "smal")
    with pytest.raises(UserError, match="scale=laptob is unknown; did you mean 'laptop'"):
        read_scale("laptob")
    assert set(papers()) == {"amapo", "gamma_po", "gapo", "gappo"}
    assert scales() == ["laptop"]


def test_a_scale_takes_the_place_of_the_papers_model_data_and_recipe(here: Path) -> None:
    experiment, scale = load(find("amapo", "small")), read_scale("laptop")
    column = experiment.columns[0]
    dpo = scale.training(experiment, {"model": "One", "method": "DPO"}, column, 3)
    assert_says(" ".join(dpo), "model=tiny", "dataset=toy", "method=dpo", "training.max_steps=2", "seed=3")
    assert not any(text.startswith(("dataset=ultra", "model=llama", "recipe=")) for text in dpo)
    assert sum(text.startswith("training.max_steps=") for text in dpo) == 1
    sft = scale.training(experiment, {"model": "One", "method": "SFT"}, column, 3)
    assert "training.max_steps=1" in sft


def test_a_model_that_the_scale_does_not_name_is_trained_as_in_the_paper(here: Path) -> None:
    write(here, TABLE.replace("[SFT, DPO]", "[SFT, SimPO]"), scale="models: {}")
    experiment, scale = load(find("amapo", "small")), read_scale("laptop")
    found = scale.training(experiment, {"model": "One", "method": "SimPO"}, experiment.columns[0], 0)
    start = ["model=llama3_8b_base", "dataset=ultrafeedback_binarized"]
    assert found == [*start, "method=simpo", "recipe=simpo__llama3_8b_base", "seed=0"]


def test_the_later_override_of_a_key_counts(here: Path) -> None:
    table = TABLE.replace("metric: overall,", "metric: overall, overrides: [training.max_steps=7, seed=9],")
    experiment = load(write(here, table))
    found = read_scale("laptop").training(experiment, experiment.keys[1], experiment.columns[0], 4)
    assert [text for text in found if text.startswith(("training.max_steps", "seed"))] == [
        "training.max_steps=7",
        "seed=4",  # a table's seeds are those of the command, the same for all rows
    ]


def test_a_scale_says_what_stands_for_a_measure_or_why_nothing_does(here: Path) -> None:
    measures = "measures:\n  mt_bench/overall: {benchmark: ranking, metric: accuracy/reward}\n"
    write(here, scale=f"{scale_of()}\n{measures}")
    experiment = load(find("amapo", "small"))
    assert read_scale("laptop").column(experiment.columns[0]).source == Measured("ranking", "accuracy/reward")
    write(here, scale="modells: {}")
    with pytest.raises(UserError, match="unknown key 'modells'; did you mean 'models'"):
        read_scale("laptop")


def test_a_damaged_table_of_printed_numbers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import src.experiments.published as published

    monkeypatch.setattr(published, "PUBLISHED", tmp_path)
    (tmp_path / "amapo.yaml").write_text("tables: {'2': {measures: m, columns: [a, b], rows: [[1, 2], [3]]}}")
    with pytest.raises(UserError, match="row 2 has 1 values for 2 columns"):
        read_table("amapo", "2")
    assert read_table("amapo", "7") is None
    with pytest.raises(UserError, match="paper=gapo is unknown"):
        read_table("gapo", "2")
