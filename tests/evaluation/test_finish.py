"""What an evaluation prints and writes: text, JSON for programs, records; no table of several judges."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.finish import ModelScores, finish, show
from src.evaluation.records import DataInfo, JudgeInfo, Record, read_records, write_record
from src.evaluation.statistics import Metric, missing
from src.evaluation.subject import stored_subject
from src.reporting.tables import build_tables, to_markdown
from tests.evaluation.small import config_of
from tests.unit.test_records import make_record

JUDGE = JudgeInfo("openai", "gpt-4", "abc", "2026-01-01", "2026-01-02", {"base_url": "https://api.example.org/v1"})
WIN: Metric = {"value": 12.5, "low": 10.0, "high": 15.0, "n": 8}
SCORES = Scores(
    {"win_rate": WIN, "length": {"value": 100.0, "low": None, "high": None, "n": 8}, "hard": missing("no data")},
    {"ties": 1, "unparsable": 0},
    ("one domain is missing",),
    {"cells": [[1.0]]},
)


def test_json_has_one_object_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    show([ModelScores("a", "gpt-4", SCORES), ModelScores("b", None, SCORES)], "arena_hard", "json")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "benchmark": "arena_hard",
        "model": "a",
        "judge": "gpt-4",
        "win_rate": 12.5,
        "win_rate_low": 10.0,
        "win_rate_high": 15.0,
        "length": 100.0,
        "hard": None,
        "hard_reason": "no data",
        "counts": {"ties": 1, "unparsable": 0},
        "notes": ["one domain is missing"],
        "details": {"cells": [[1.0]]},
    }
    assert (second["model"], second["judge"]) == ("b", None)


def test_text_says_numbers_intervals_counts_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    show([ModelScores("a", "gpt-4", SCORES)], "arena_hard", "text")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "arena_hard: a, judged by gpt-4",
        "win_rate 12.5 [10, 15] n=8",
        "length 100 n=8",
        "hard — (no data)",
        "ties: 1, unparsable: 0",
        "note: one domain is missing",
    ]


@pytest.mark.parametrize("output", ["text", "json"])
def test_numbers_that_are_none_are_said_and_recorded_as_missing(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken: Metric = {"value": math.nan, "low": math.inf, "high": 1.0, "n": 3}
    scores = replace(SCORES, metrics={"win_rate": broken}, details={"cells": [(math.nan, 1), {"x": math.inf}]})
    config = config_of(tmp_path, output=output)
    path = finish(config, "arena_hard", stored_subject("m"), scores, DataInfo("official", "h", 3), {})
    assert "NaN" not in path.read_text() + capsys.readouterr().out
    (record,) = read_records([path])
    assert record.metrics["win_rate"]["value"] is None
    assert record.metrics["win_rate"].get("reason") == "not a finite number"
    assert record.details == {"cells": [[None, 1], {"x": None}]}


def test_a_record_keeps_judge_counts_notes_and_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, data = config_of(tmp_path, output="json"), DataInfo("toy", "h", 8)
    sources = {"answers": {"path": "x", "hash": "y"}}
    path = finish(config, "arena_hard", stored_subject("m"), SCORES, data, {"a": 1}, judge=JUDGE, sources=sources)
    assert len(capsys.readouterr().out.splitlines()) == 1
    (record,) = read_records([path])
    assert record.judge == JUDGE
    assert (record.counts, record.notes) == (SCORES.counts, SCORES.notes)
    assert (record.details, record.sources) == ({"cells": [[1.0]]}, sources)


def test_records_from_before_there_were_judges_still_read(tmp_path: Path) -> None:
    record = make_record()
    content = json.loads(write_record(tmp_path, record).read_text())
    for name in ("judge", "counts", "notes", "details", "sources"):
        del content[name]
    assert Record.from_json(content) == record
    assert content["id"] == record.id


@pytest.mark.parametrize(
    "change", [{"judge": {"name": "x"}}, {"judge": "gpt-4"}, {"counts": {"ties": "1"}}, {"details": []}, {"sources": 1}]
)
def test_damaged_fields_are_named(change: dict[str, Any]) -> None:
    content = {**make_record(judge=JUDGE).to_json(), **change}
    with pytest.raises(UserError, match=next(iter(change))):
        Record.from_json(content)


def test_the_judge_is_part_of_what_a_record_is() -> None:
    others = [None, JUDGE, replace(JUDGE, model="x"), replace(JUDGE, prompts="x"), replace(JUDGE, name="x")]
    assert len({make_record(judge=judge).id for judge in others}) == 5
    assert make_record(judge=replace(JUDGE, last="later")).id == make_record(judge=JUDGE).id


def test_a_table_has_one_judge() -> None:
    run = make_record().run
    first = make_record(judge=JUDGE)
    other_run = replace(run, method="dpo", config_hash="other")
    (table,) = build_tables([first, make_record(run=other_run, judge=replace(JUDGE, last="2026-02-01"))])
    assert table.judge == "gpt-4"
    assert "* Judge: gpt-4" in to_markdown([table])
    for judge in (None, replace(JUDGE, model="gpt-5"), replace(JUDGE, prompts="others"), replace(JUDGE, name="replay")):
        with pytest.raises(UserError, match=r"2 judges .*records=FOLDER"):
            build_tables([first, make_record(run=other_run, judge=judge)])
    assert len(build_tables([first, make_record(benchmark="mt_bench", judge=None)])) == 2
