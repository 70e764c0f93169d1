"""Records on the disk: only ever added, with provenance, with their items, and by several processes at once."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src import environment
from src.errors import UserError
from src.evaluation.record_schema import FILE, problems_of
from src.evaluation.records import Record, items_of, read_record, read_records, write_record
from tests.unit.test_records import make_record

COMMITTED = Path(__file__).resolve().parents[2] / "results"
ITEMS = {"accuracy/average": {"a": 1.0, "b": 0.0}}


def measured(value: float, created: str = "2026-01-01T00:00:00+00:00", **changes: Any) -> Record:
    """A record of one number."""
    metric = {"value": value, "low": None, "high": None, "n": 2}
    return make_record(metrics={"accuracy/average": metric}, created=created, **changes)


def test_the_same_result_is_not_written_again(tmp_path: Path) -> None:
    first = write_record(tmp_path, measured(0.5), ITEMS)
    before = first.read_bytes()
    again = measured(0.5, "2026-01-02T00:00:00+00:00", command="another", environment=environment.environment())
    assert write_record(tmp_path, again, ITEMS) == first
    assert first.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {first.name, "items"}


@pytest.mark.parametrize(
    "change", [{"counts": {"ties": 1}}, {"sources": {"answers": {"path": "x", "hash": "y"}}}, {"scale": "laptop"}]
)
def test_another_result_is_added(tmp_path: Path, change: dict[str, Any]) -> None:
    first = write_record(tmp_path, measured(0.5), ITEMS)
    before = first.read_bytes()
    second = write_record(tmp_path, measured(0.5, **change), ITEMS)
    assert second.name == f"{first.stem}.2.json"
    assert first.read_bytes() == before
    assert read_record(first).items == read_record(second).items  # the same values are one file


def test_where_a_source_lies_is_no_other_result(tmp_path: Path) -> None:
    paths = [
        write_record(tmp_path, measured(0.5, sources={"answers": {"path": place, "hash": "h"}})) for place in ("x", "y")
    ]
    assert paths[0] == paths[1]


def test_the_newest_counts_and_what_differs_is_said(tmp_path: Path) -> None:
    write_record(tmp_path, measured(0.5), {"accuracy/average": {"a": 0.5}})
    path = write_record(tmp_path, measured(0.7, "2026-01-02T00:00:00+00:00"), {"accuracy/average": {"a": 0.7}})
    said: list[str] = []
    (record,) = read_records([tmp_path], said.append)
    assert (record.metrics["accuracy/average"]["value"], record.file) == (0.7, path)
    assert items_of(record) == {"accuracy/average": {"a": 0.7}}
    assert len(said) == 1
    assert "measured 2 times with different results (accuracy/average)" in said[0]
    assert str(path) in said[0]


def test_of_one_second_the_later_file_counts_and_a_return_is_a_third(tmp_path: Path) -> None:
    paths = [write_record(tmp_path, measured(value)) for value in (0.5, 0.7, 0.5)]
    assert [path.name.removeprefix(paths[0].stem) for path in paths] == [".json", ".2.json", ".3.json"]
    (record,) = read_records([tmp_path], lambda text: None)
    assert record.file == paths[2]


def test_without_a_difference_in_numbers_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1, 2):
        write_record(tmp_path, measured(0.5, counts={"asked_again": count}))
    assert len(read_records([tmp_path])) == 1
    assert capsys.readouterr().err == ""


def added(folder: str, number: int, barrier: Any) -> None:
    """What one process does: a result that two others have too, and one of its own."""
    barrier.wait()
    for value in (number // 3, 100 + number):
        write_record(Path(folder), measured(float(value)), {"accuracy/average": {"a": float(value)}})


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    workers = [context.Process(target=added, args=(str(tmp_path), number, barrier)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = [read_record(path) for path in tmp_path.glob("*.json")]
    values = [record.metrics["accuracy/average"]["value"] for record in found]
    assert {100.0 + number for number in range(6)} | {0.0, 1.0} <= set(values)
    assert all(
        items_of(record) == {"accuracy/average": {"a": value}} for record, value in zip(found, values, strict=True)
    )
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    stem = found[0].id
    assert set(names) == {f"{stem}.json", *(f"{stem}.{number}.json" for number in range(2, len(names) + 1))}


def test_without_hard_links_a_record_is_added_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first, second = write_record(tmp_path, measured(0.5), ITEMS), write_record(tmp_path, measured(0.6), ITEMS)
    assert [read_record(path).metrics["accuracy/average"]["value"] for path in (first, second)] == [0.5, 0.6]
    assert write_record(tmp_path, measured(0.6), ITEMS) == second


def test_items_are_kept_beside_the_record_and_hashed_in_it(tmp_path: Path) -> None:
    record = read_record(write_record(tmp_path, measured(0.5), ITEMS))
    path = tmp_path / record.items["path"]
    assert path == tmp_path / "items" / f"{record.id}.json.gz"
    assert json.loads(gzip.decompress(path.read_bytes())) == ITEMS
    assert record.items["metrics"] == ["accuracy/average"]
    assert items_of(record) == ITEMS
    assert items_of(read_record(write_record(tmp_path / "other", measured(0.5)))) == {}
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        items_of(record)


def test_without_provenance_nothing_is_written_or_read(tmp_path: Path) -> None:
    whole = make_record()
    known = dict(whole.environment)
    for spoilt, message in (
        (replace(whole, environment={}), r"'environment\.commit' is missing"),
        (replace(whole, environment={**known, "commit": None}), r"'environment\.commit_reason' is missing"),
        (replace(whole, environment={k: v for k, v in known.items() if k != "torch"}), r"'environment\.torch'"),
        (replace(whole, command=""), "'command' must have at least 1"),
        (replace(whole, run=replace(whole.run, config_hash="")), r"'run\.config_hash' must have at least 1"),
        (replace(whole, data=replace(whole.data, content_hash="")), r"'data\.content_hash' must have at least 1"),
        (replace(whole, metrics={}), "'metrics' must not be empty"),
        (replace(whole, created="yesterday"), "'created' must match"),
    ):
        with pytest.raises(UserError, match=message):
            write_record(tmp_path, spoilt)
        file = tmp_path / "spoilt.json"
        file.write_text(json.dumps(spoilt.to_json()))
        with pytest.raises(UserError, match=message) as caught:
            read_records([tmp_path])
        assert str(file) in str(caught.value)
        file.unlink()
        assert not list(tmp_path.iterdir())


def test_a_commit_that_is_not_known_needs_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_git", lambda *arguments: None)
    found = environment.environment()
    assert found["commit"] is None
    assert "no git" in found["commit_reason"]
    assert read_records([write_record(tmp_path, make_record(environment=found))])


def test_a_record_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "run": {**content["run"], "config_hash": "0ther"}}))
    with pytest.raises(UserError, match=r"field 'id' is ranking__.*, but what the record holds belongs to"):
        read_record(path)


def test_committed_records_read_and_fit_the_schema() -> None:
    folders = [COMMITTED / "records", COMMITTED / "benchmarks" / "toy_records"]
    files = [file for folder in folders for file in folder.glob("*.json")]
    assert len(files) >= 21
    for file in files:
        assert read_record(file).id == file.stem


def test_the_schema_is_a_schema_and_says_nothing_that_is_not_checked() -> None:
    schema = json.loads(FILE.read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(problems_of(make_record().to_json(), schema, schema, "")) == []
    with pytest.raises(ValueError, match="uses maximum"):
        list(problems_of(1, {"maximum": 3}, schema, ""))


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        (1.5, {"type": "integer"}, "a whole number, not 1.5"),
        (True, {"type": "number"}, "a number, not True"),
        (None, {"type": ["string", "null"]}, None),
        (3, {"type": "string"}, "a string, not 3"),
        (-1, {"minimum": 0}, "at least 0"),
        ("ab", {"pattern": "^b"}, r"match \^b"),
        ([1, "x"], {"items": {"type": "integer"}}, r"'\[1\]' must be a whole number"),
        ({"a": {"b": 1}}, {"properties": {"a": {"properties": {"b": {"type": "string"}}}}}, r"'a\.b' must be a string"),
        ({"a": 1}, {"additionalProperties": {"type": "string"}}, "'a' must be a string"),
        ({"a": 1}, {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}, None),
        ({}, {"if": {"minProperties": 1}, "then": {"required": ["a"]}}, None),
        ({"b": 1}, {"if": {"minProperties": 1}, "then": {"required": ["a"]}}, "'a' is missing"),
    ],
)
def test_keywords(value: Any, schema: dict[str, Any], problem: str | None) -> None:
    found = list(problems_of(value, schema, schema, ""))
    if problem is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(problem, found[0])
