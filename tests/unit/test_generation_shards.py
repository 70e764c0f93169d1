"""Shards of records: written whole or not at all, gone on with after a kill, told apart by what they are of."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from src.data.cache import json_hash
from src.data.sources.chain import check_sealed
from src.errors import UserError
from src.generation.shards import (
    ShardedJsonl,
    line_of,
    read_manifest,
    read_records,
    whole_lines,
    write_durably,
)
from tests.support import ROOT

IDENTITY = {"model": "m", "seeds": (1, 2)}
ITEMS = list(range(10))


def fill(directory: Path, *, stop_after: int | None = None, identity: dict[str, Any] = IDENTITY) -> list[int]:
    """Work off ITEMS in shards of 4; returns the items that were worked on now."""
    worked: list[int] = []
    store = ShardedJsonl(directory, 4)
    with store.claimed(identity):
        for shard in store.pending(ITEMS):
            with store.journal(shard.index) as journal:
                done = {record["item"]: record for record in journal.records}
                for item in shard.items:
                    if item not in done:
                        if len(worked) == stop_after:
                            return worked
                        worked.append(item)
                        done[item] = {"item": item, "text": f"no {item}"}
                        journal.append(done[item])
                store.write(shard.index, [done[item] for item in shard.items], seconds=1.5)
        store.finish("test", identity, {"records": len(ITEMS)}, note="n")
    return worked


def test_stopping_anywhere_repeats_nothing_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path / "whole") == ITEMS
    whole = read_manifest(tmp_path / "whole")
    for stop in range(len(ITEMS) + 1):
        directory = tmp_path / str(stop)
        first = fill(directory, stop_after=stop)
        assert first + fill(directory) == ITEMS
        assert read_manifest(directory)["hash"] == whole["hash"]
        assert [record["item"] for record in read_records(directory)] == ITEMS
        assert not any((directory / "partial").iterdir())
    assert [path.read_bytes() for path in ShardedJsonl(directory, 4).finished()] == [
        path.read_bytes() for path in ShardedJsonl(tmp_path / "whole", 4).finished()
    ]


def test_the_manifest_is_left_alone_when_nothing_changed(tmp_path: Path) -> None:
    fill(tmp_path)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert fill(tmp_path) == []
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before
    manifest = read_manifest(tmp_path)
    assert manifest["seconds"] == 4.5
    assert manifest["note"] == "n"
    check_sealed(manifest, tmp_path)
    assert manifest["identity"] == {"model": "m", "seeds": [1, 2]}
    assert manifest["environment"]["python"]


def test_the_chain_grows_by_a_link_a_stage(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    chain = read_manifest(tmp_path / "one")["chain"]
    assert chain == [
        {"stage": "test", "identity": json_hash({"model": "m", "seeds": [1, 2]}), "content": chain[0]["content"]}
    ]
    store = ShardedJsonl(tmp_path / "two", 4)
    with store.claimed({}):
        store.write(0, [{"x": 1}])
        second = store.finish("second", {}, {"records": 1}, chain=chain)
    assert second["chain"][:1] == chain
    assert second["chain"][1]["stage"] == "second"
    with store.claimed({}):
        assert store.finish("second", {}, {"records": 1})["hash"] != second["hash"]


def test_a_line_that_was_half_written_is_worked_again(tmp_path: Path) -> None:
    fill(tmp_path, stop_after=3)
    journal = tmp_path / "partial" / "000000.jsonl"
    assert len(whole_lines(journal)[0]) == 3
    journal.write_bytes(journal.read_bytes()[:-5])
    assert fill(tmp_path, stop_after=1) == [2]
    assert fill(tmp_path) == ITEMS[3:]  # what was written after the broken line counts
    assert [record["item"] for record in read_records(tmp_path)] == ITEMS


def test_rubbish_ends_what_is_believed_of_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for rubbish in (b"not json\n", b"[1]\n", b'{"b": 2', b"\xff\n"):
        path.write_bytes(b'{"a": 1}\n' + rubbish + b'{"c": 3}\n')
        assert whole_lines(path) == ([{"a": 1}], 9)
    assert whole_lines(tmp_path / "none") == ([], 0)


def test_another_identity_or_shard_size_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, stop_after=5)
    with pytest.raises(UserError, match=r"other settings \(different: seeds, top_p\)"):
        fill(tmp_path, identity={"model": "m", "seeds": [1], "top_p": 0.5})
    with pytest.raises(UserError, match="begun with shard_size=4"), ShardedJsonl(tmp_path, 5).claimed(IDENTITY):
        pass
    with pytest.raises(UserError, match="shard_size=0 cannot work"):
        ShardedJsonl(tmp_path, 0)


def claim(directory: str, result: Any) -> None:
    try:
        with ShardedJsonl(directory, 4).claimed(IDENTITY):
            result.put("claimed")
    except UserError as error:
        result.put(str(error))


def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    with ShardedJsonl(tmp_path, 4).claimed(IDENTITY):
        other = context.Process(target=claim, args=(str(tmp_path), result))
        other.start()
        assert "is being written by another process" in result.get(timeout=20)
        other.join()


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set output_root"), ShardedJsonl(tmp_path / "file" / "x", 4).claimed({}):
        pass


def test_reading_refuses_what_is_unfinished_changed_or_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path)
    fill(tmp_path, stop_after=5)
    with pytest.raises(UserError, match="is not finished"):
        read_manifest(tmp_path)
    fill(tmp_path)
    shard = tmp_path / "shards" / "000001.jsonl"
    kept = shard.read_bytes()
    shard.write_bytes(kept.replace(b"no 5", b"NO 5"))
    with pytest.raises(UserError, match="not those that manifest"):
        list(read_records(tmp_path))
    shard.write_bytes(kept)
    assert len(list(read_records(tmp_path))) == 10
    (tmp_path / "manifest.json").write_text('{"half')
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(tmp_path)
    assert fill(tmp_path) == []
    assert len(list(read_records(tmp_path))) == 10


def test_lines_hold_any_text() -> None:
    for text in ("ü 漢字 🙂", "a\u2028b\x85c\nd\r", "\ud800 lone"):
        line = line_of({"text": text})
        assert line.count(b"\n") == 1
        assert json.loads(line) == {"text": text}
    assert "漢" in line_of({"text": "漢"}).decode()
    with pytest.raises(ValueError, match="JSON"):
        line_of({"score": float("nan")})


def test_a_shard_of_nothing_is_a_shard(tmp_path: Path) -> None:
    store = ShardedJsonl(tmp_path, 2)
    with store.claimed({}):
        store.write(0, [])
        store.write(1, [{"a": 1}])
        assert [shard.index for shard in store.pending(range(6))] == [2]
        assert list(store.read()) == [{"a": 1}]


def test_what_a_killed_process_was_writing_aside_goes(tmp_path: Path) -> None:
    fill(tmp_path, stop_after=5)
    for name in (".manifest.json.99-1", "shards/.000001.jsonl.99-1"):
        (tmp_path / name).write_text("half")
    fill(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "begun.json",
        "manifest.json",
        "partial",
        "seconds.jsonl",
        "shards",
    ]
    assert [path.name for path in (tmp_path / "shards").iterdir() if path.name.startswith(".")] == []


def test_writing_durably_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


WORKER = """
import sys, time
from src.generation.shards import ShardedJsonl
store = ShardedJsonl(sys.argv[1], 5)
with store.claimed({}), open(sys.argv[2], "a", buffering=1) as calls:
    for shard in store.pending(range(40)):
        with store.journal(shard.index) as journal:
            done = {record["item"] for record in journal.records}
            for item in shard.items:
                if item not in done:
                    time.sleep(0.005)
                    calls.write(f"{item}\\n")
                    journal.append({"item": item})
            store.write(shard.index, [{"item": item} for item in shard.items])
    store.finish("test", {}, {})
"""


def test_killing_again_and_again_costs_at_most_the_item_under_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(tmp_path / "calls")]
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT)
        deadline = time.monotonic() + 20
        seen = len(calls_of(tmp_path))
        while process.poll() is None and len(calls_of(tmp_path)) < seen + 7 and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills >= 3
    assert [record["item"] for record in read_records(tmp_path / "store")] == list(range(40))
    assert len(calls_of(tmp_path)) - 40 <= kills


def calls_of(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().split() if path.exists() else []
