"""Preparation by several processes: the same bytes whoever makes a shard and when, and nothing made twice."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from src.data.noise import Noise, NoNoise, RandomFlip
from src.data.pairs import PreferencePair
from src.data.preparation import pieces, shards, work
from src.data.preparation.work import Work
from src.data.preparation.workers import Workers
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.sources import Skipped
from src.data.splits import TRAIN, split_of
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.data_tools import Records, byte_tokenizer, pair

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ChatTemplate(byte_tokenizer("roles"))
OPTIONS = PrepareOptions(max_length=400, max_prompt_length=200, validation_fraction=0.2)
SIZE = 8
"""Records of a shard in these tests."""
PAIRS = tuple(pair(number) for number in range(200))
FLIP = RandomFlip(0.3)
FIRST = next(one.id for one in PAIRS if split_of(one.prompt, 0.2, 0) == TRAIN)


@dataclass(frozen=True)
class Slow:
    """``FLIP`` that takes its time and notes whom it was given."""

    log: str

    def apply(self, one: PreferencePair) -> PreferencePair:
        time.sleep(0.02)
        with Path(self.log).open("a") as log:
            log.write(f"{one.id}\n")
        return FLIP.apply(one)

    def describe(self) -> dict[str, Any]:
        return FLIP.describe()


@dataclass(frozen=True)
class FirstLast:
    """``FLIP`` that keeps the first shard back until the two that follow are there."""

    root: Path

    def apply(self, one: PreferencePair) -> PreferencePair:
        if one.id == FIRST:
            wait_for(lambda: len(list(self.root.glob("prepared/.*.shards/00000[12].arrow"))) == 2)
        return FLIP.apply(one)

    def describe(self) -> dict[str, Any]:
        return FLIP.describe()


@dataclass(frozen=True)
class Deadly(NoNoise):
    """Ends its process at one pair, as a machine without memory does."""

    def apply(self, one: PreferencePair) -> PreferencePair:
        if one.id == "p100":
            os._exit(9)
        return one


def made(
    root: Path, workers: int | None, noise: Noise = FLIP, items: tuple[Any, ...] = PAIRS, gap: float = 0.0
) -> PreparedData:
    return prepare(Records(items), noise, TEMPLATE, replace(OPTIONS, min_score_gap=gap), root, workers=workers)


def slow_preparation(root: str, workers: str, log: str) -> None:
    """What the tests run in a process of its own."""
    pieces.RECORDS = SIZE
    print(made(Path(root), int(workers), Slow(log)).manifest["hash"])


def started(root: Path, workers: int, log: Path) -> subprocess.Popen[str]:
    code = f"from {__name__} import slow_preparation; slow_preparation({str(root)!r}, '{workers}', {str(log)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def files_of(root: Path) -> dict[str, bytes]:
    (folder,) = (path for path in (root / "prepared").iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finished_ids(root: Path) -> set[str]:
    """Ids of the training pairs of the shards that are there."""
    numbers = [int(path.stem) for path in (root / "prepared").glob(".*.shards/[0-9]*.arrow")]
    pairs = [one for number in numbers for one in PAIRS[number * SIZE : (number + 1) * SIZE]]
    return {one.id for one in pairs if split_of(one.prompt, 0.2, 0) == TRAIN}


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RECORDS", SIZE)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files as this process makes them, in one shard."""
    root = tmp_path_factory.mktemp("expected")
    made(root, 1)
    return files_of(root)


@pytest.mark.usefixtures("small_shards")
def test_workers_do_not_show(tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the first shard is the last to be finished."""
    there: dict[Path, set[str]] = {}
    read = pieces.read_shard

    def noting(path: Path) -> Any:
        there[path] = {found.stem for found in path.parent.glob("[0-9]*")}
        return read(path)

    monkeypatch.setattr(shards, "read_shard", noting)
    for workers in (1, 2, 3):
        root = tmp_path / str(workers)
        made(root, workers, FLIP if workers == 1 else FirstLast(root))
        assert files_of(root) == expected, workers
        assert not list((root / "prepared").glob(".*.shards"))
    for workers in (2, 3):
        found = next(names for path, names in there.items() if path.is_relative_to(tmp_path / str(workers)))
        assert {"000000", "000001", "000002"} <= found, "the first was read when later ones were there"


@pytest.mark.usefixtures("small_shards")
def test_workers_start_by_themselves_when_there_is_enough_to_do(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    class Counted(Workers):
        def __init__(self, count: int, work: Any) -> None:
            counts.append(count)
            super().__init__(count, work)

    monkeypatch.setattr(shards, "Workers", Counted)
    monkeypatch.setattr(shards, "cores", lambda: 2)
    made(tmp_path / "few", None)
    assert counts == []
    monkeypatch.setattr(shards, "SERIAL_CHARACTERS", 3000)
    made(tmp_path / "many", None)
    assert counts == [2]
    assert files_of(tmp_path / "few") == files_of(tmp_path / "many") == expected


def test_killed_anywhere_goes_on_and_repeats_nothing(tmp_path: Path, expected: dict[str, bytes]) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    root = tmp_path / "cache"
    before: set[str] = set()
    for log, workers in ((logs[0], 2), (logs[1], 1)):
        process = started(root, workers, log)
        wait_for(lambda before=before: len(finished_ids(root)) > len(before) + 20)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == (2 if workers == 2 else 0)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # a worker ends the shard it is at, and itself
        wait_for(lambda children=children: not any(child.is_running() for child in children))
        assert not before & set(log.read_text().split())
        assert before < finished_ids(root)
        before = finished_ids(root)
    # two at once: one prepares, the other waits
    both = [started(root, 1, logs[2]) for _ in range(2)]
    hashes = [process.communicate()[0] for process in both]
    assert hashes[0] == hashes[1] != ""
    train = [one.id for one in PAIRS if split_of(one.prompt, 0.2, 0) == TRAIN]
    assert logs[2].read_text().split() == [identity for identity in train if identity not in before]
    assert files_of(root) == expected


@pytest.mark.usefixtures("small_shards")
def test_a_worker_that_dies_loses_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"ended before its work was done .* prepare_workers=1"):
        made(tmp_path, 2, Deadly())
    (folder,) = (tmp_path / "prepared").glob(".*.shards")
    finished = len(list(folder.glob("[0-9]*")))
    assert finished > 3
    numbers = []

    def noting(work: Work, piece: pieces.Piece, path: Path) -> None:
        numbers.append(path)
        pieces.make_shard(work, piece, path)

    monkeypatch.setattr(shards, "make_shard", noting)
    made(tmp_path, 1, NoNoise())
    assert len(numbers) == len(PAIRS) // SIZE - finished


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_loses_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(work: Work, piece: pieces.Piece, path: Path) -> None:
        if path.stem == "000003":
            raise OSError(errno.ENOSPC, "No space left on device")
        pieces.make_shard(work, piece, path)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "make_shard", full)
        with pytest.raises(UserError, match=r"has no space left .* set cache_root to another disk"):
            made(tmp_path, 1)
    assert len(list((tmp_path / "prepared").glob(".*.shards/[0-9]*"))) == 3


def test_noise_that_cannot_be_sent() -> None:
    @dataclass(frozen=True)
    class Local(NoNoise):
        pass

    with pytest.raises(UserError, match=r"cannot be sent to another process .* prepare_workers=1"):
        Workers(2, Work(TEMPLATE, Local(), OPTIONS, "pairs"))


def test_long_texts_make_small_batches() -> None:
    records = [replace(one, chosen="x" * 100) for one in PAIRS[:10]]
    assert [len(group) for group in work.groups(records, 4, 10_000)] == [4, 4, 2]
    assert [len(group) for group in work.groups(records, 4, 200)] == [2] * 5
    assert list(work.groups([], 4, 200)) == []


@pytest.mark.usefixtures("small_shards")
def test_the_first_error_in_the_source_wins(tmp_path: Path) -> None:
    """The reader is ahead of the workers: it meets the bad record at the end long before the pair without scores."""

    @dataclass(frozen=True)
    class BadAtTheEnd(Records):
        def records(self) -> Iterator[PreferencePair | Skipped]:
            yield from self.items
            raise UserError("bad record")

    bare = next(number for number, one in enumerate(PAIRS) if number > 20 and split_of(one.prompt, 0.2, 0) == TRAIN)
    items = tuple(replace(one, chosen_score=None) if number == bare else one for number, one in enumerate(PAIRS[:60]))
    for workers in (1, 2):
        with pytest.raises(UserError, match=rf"min_score_gap=1 needs both scores .* 'p{bare}' has none"):
            prepare(BadAtTheEnd(items), FLIP, TEMPLATE, replace(OPTIONS, min_score_gap=1.0), tmp_path, workers=workers)
    with pytest.raises(UserError, match="bad record"):
        prepare(BadAtTheEnd(PAIRS), FLIP, TEMPLATE, OPTIONS, tmp_path, workers=1)
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


@pytest.mark.usefixtures("small_shards")
def test_what_is_left_of_a_kill_is_used_or_removed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Half a shard, a shard of other records, a whole folder that was not renamed."""
    data = made(tmp_path, 1)
    folder = data.train.path.parent
    left, aside = folder.with_name(f".{folder.name}.shards"), folder.with_name(f".{folder.name}-abc")
    for path in (left, aside):
        path.mkdir()
    (left / ".000001.arrow.77").write_bytes(b"half")
    made(tmp_path, 1)
    assert not left.exists(), "not needed any more"
    left.mkdir()
    (left / ".000001.arrow.77").write_bytes(b"half")
    (left / "000002.arrow").write_bytes(b"damaged")
    pieces.make_shard(
        Work(TEMPLATE, FLIP, OPTIONS, "pairs"),
        next(pieces.pieces_of(Records(PAIRS[8:16]), "pairs")),
        left / "000000.arrow",
    )
    folder.rename(tmp_path / "gone")
    made(tmp_path, 1)
    assert files_of(tmp_path) == expected
    assert not left.exists()
    assert not aside.exists()


def test_a_template_that_was_sent_is_the_same() -> None:
    for template in (TEMPLATE, ChatTemplate(byte_tokenizer("llama3"), "with_assistant_header", template="llama3")):
        sent = pickle.loads(pickle.dumps(template))
        assert sent.hash == template.hash
        asked = [(one.prompt, [one.chosen, f"{one.rejected}<|end|>"]) for one in PAIRS[:5]]
        assert sent.encode_batch(asked) == template.encode_batch(asked)
