"""What the manifest measures, in memory that does not grow: ids seen, quantiles, histograms, lists in files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config import ROOT
from src.data.noise import RandomFlip
from src.data.preparation import measure, pieces, seen
from src.data.preparation.measure import EDGES, QUANTILES, Lengths
from src.data.preparation.seen import SeenIds
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.sources import Skipped
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.data_tools import Records, byte_tokenizer, pair

TEMPLATE = ChatTemplate(byte_tokenizer("roles"))
PAIRS = tuple(pair(number) for number in range(60))


def made(root: Path, items: tuple[Any, ...] = PAIRS) -> PreparedData:
    return prepare(Records(items), RandomFlip(0.5), TEMPLATE, PrepareOptions(400, 200, validation_fraction=0.2), root)


@given(st.lists(st.lists(st.integers(0, 300), max_size=20), min_size=1, max_size=5))
def test_lengths_by_their_counts(parts: list[list[int]]) -> None:
    lengths, every = Lengths(), np.array([size for part in parts for size in part], int)
    for part in parts:
        lengths.add(np.array(part, np.int64))
    assert lengths.tokens() == every.sum()
    if len(every):
        assert list(lengths.quantiles().values()) == np.quantile(every, list(QUANTILES.values())).tolist()
        assert lengths.histogram() == np.histogram(every, [*EDGES, 10**9])[0].tolist()


def test_bins_are_two_an_octave() -> None:
    assert EDGES[:9] == (0, 1, 2, 3, 4, 6, 8, 12, 16)
    assert list(EDGES) == sorted(set(EDGES))
    assert EDGES[-1] > 32_000


def test_histograms_stand_beside_the_quantiles_and_outside_the_hash(tmp_path: Path) -> None:
    data = made(tmp_path)
    found = data.manifest["histograms"]
    for split, rows in (("train", data.train), ("validation", data.validation)):
        for place, side in enumerate(("prompt", "chosen", "rejected")):
            counts, _ = np.histogram(rows.lengths()[:, place], [*found["edges"], 10**9])
            assert found[split][side] == counts.tolist()
    hashed = {key: value for key, value in data.manifest.items() if key not in ("hash", "histograms", "files")}
    assert hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest() == data.manifest["hash"]


def test_ids_are_told_apart_even_where_their_hashes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "id_hash", lambda identity: len(identity))
    ids = [f"{number:02d}" for number in range(100)]
    known = SeenIds(lambda: iter(ids))
    for start in range(0, 90, 7):
        known.add(ids[start : start + 7])
    assert known.count == 91
    with pytest.raises(UserError, match="'05' occurs twice"):
        known.add(["97", "05", "97"])
    with pytest.raises(UserError, match="'97' occurs twice"):
        known.add(["97", "98", "97"])
    known.add(["95"])


@pytest.mark.parametrize("repeated", [3, 41])
def test_an_id_of_another_shard_is_found(tmp_path: Path, repeated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RECORDS", 8)
    with pytest.raises(UserError, match=f"the id 'p{repeated}' occurs twice"):
        made(tmp_path, (*PAIRS, PAIRS[repeated]))


def test_seen_ids_take_eight_bytes_each() -> None:
    known = SeenIds(lambda: iter(()))
    for start in range(0, 40_000, 1000):
        known.add([str(number) for number in range(start, start + 1000)])
    assert sum(run.nbytes for run in known._runs) == 320_000
    assert len(known._runs) < 8


def test_long_lists_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LISTED", 5)
    skipped = tuple(Skipped(f"s{number}", "tied scores") for number in range(30))
    data = made(tmp_path, (*PAIRS[:30], *skipped, *PAIRS[30:]))
    folder, flipped = data.train.path.parent, [row.id for row in data.train if row.flipped]
    assert data.manifest["flipped"] == {
        "count": len(flipped),
        "hash": hashlib.sha256(json.dumps(flipped).encode()).hexdigest(),
        "file": "flipped.jsonl",
    }
    lines = {name: [json.loads(line) for line in (folder / name).open()] for name in data.manifest["files"]}
    expected: dict[str, list[Any]] = {
        "flipped.jsonl": flipped,
        "dropped.jsonl": [{"id": record.id, "reason": record.reason} for record in skipped],
    }
    assert lines == expected
    for name, values in expected.items():
        listed = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        assert data.manifest["files"][name] == {"lines": len(values), "hash": listed}


def test_short_lists_have_none(tmp_path: Path) -> None:
    data = made(tmp_path, (*PAIRS, Skipped("s", "tied scores")))
    assert data.manifest["files"] == {}
    assert data.manifest["flipped"]["ids"] == [row.id for row in data.train if row.flipped]
    assert {path.name for path in data.train.path.parent.iterdir()} == {
        "train.arrow",
        "validation.arrow",
        "manifest.json",
    }


def test_a_training_reads_pairs_without_pandas(tmp_path: Path) -> None:
    """In a process of its own: what prepares the data imports it."""
    rows = made(tmp_path).train
    program = (
        "import sys; from pathlib import Path; from src.data.pairset import PairSet; "
        "rows = PairSet(Path(sys.argv[1]), ''); print(len(list(rows)), rows.lengths().shape, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(rows.path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{len(rows)} ({len(rows)}, 3) False\n", done.stderr
