"""Prepared data: splits, noise, drops, truncation, manifest, cache."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.cache import build_once
from src.data.noise import Noise, NoNoise, RandomFlip
from src.data.pairs import Message, PreferencePair
from src.data.preparation import pieces, work
from src.data.prepare import PreparedData, PrepareOptions, prepare
from src.data.sources import Skipped
from src.data.splits import TRAIN, VALIDATION, split_of
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.data_tools import Records, byte_tokenizer, pair

TEMPLATE = ChatTemplate(byte_tokenizer("roles"))
OPTIONS = PrepareOptions(max_length=400, max_prompt_length=200, validation_fraction=0.2)
PAIRS = tuple(pair(number) for number in range(60))
HELD_OUT = [found for found in PAIRS if split_of(found.prompt, 0.2, 0) == VALIDATION]
KEPT = [found for found in PAIRS if split_of(found.prompt, 0.2, 0) == TRAIN]


def made(
    root: Path,
    items: tuple[Any, ...] = PAIRS,
    noise: Noise | None = None,
    options: PrepareOptions = OPTIONS,
    kind: str = "pairs",
    template: ChatTemplate = TEMPLATE,
) -> PreparedData:
    return prepare(Records(items), noise or NoNoise(), template, options, root, kind)


def text(ids: list[int]) -> str:
    return str(TEMPLATE.tokenizer.decode(ids))


def folder_of(root: Path) -> Path:
    (folder,) = (path for path in (root / "prepared").iterdir() if path.is_dir())
    return folder


# --- content ----------------------------------------------------------------------------------------------------------


def test_both_splits_hold_their_pairs_in_order(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert len(HELD_OUT) > 5
    assert [row.id for row in data.train] == [found.id for found in KEPT]
    assert [row.id for row in data.validation] == [found.id for found in HELD_OUT]
    assert [row.index for row in data.train] == list(range(len(KEPT)))
    for row, found in zip(data.train, KEPT, strict=True):
        assert text(row.prompt_ids) == f"<|bos|><|user|>{found.prompt[0].content}<|end|><|assistant|>"
        assert text(row.chosen_ids) == f"{found.chosen}<|end|>"
        assert text(row.rejected_ids) == f"{found.rejected}<|end|>"
        assert (row.chosen_score, row.rejected_score) == (found.chosen_score, found.rejected_score)
        assert not row.flipped


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    data = made(tmp_path)
    train, validation = ({tuple(row.prompt_ids) for row in rows} for rows in (data.train, data.validation))
    assert not train & validation
    assert len(train) < len(data.train)


def test_noise_flips_training_pairs_alone(tmp_path: Path) -> None:
    noise = RandomFlip(0.4)
    clean, noisy = made(tmp_path / "clean"), made(tmp_path / "noisy", noise=noise)
    expected = [found.id for found in KEPT if noise.apply(found).flipped]
    assert 5 < len(expected) < len(KEPT) - 5
    assert [row.id for row in noisy.train if row.flipped] == expected == noisy.manifest["flipped"]["ids"]
    assert noisy.manifest["flipped"]["count"] == len(expected)
    assert list(noisy.validation) == list(clean.validation)
    for before, after in zip(clean.train, noisy.train, strict=True):
        if after.flipped:
            assert (after.chosen_ids, after.rejected_ids) == (before.rejected_ids, before.chosen_ids)
            assert (after.chosen_score, after.rejected_score) == (before.rejected_score, before.chosen_score)
        else:
            assert after == before


def test_demonstrations(tmp_path: Path) -> None:
    pairs = made(tmp_path / "pairs", noise=RandomFlip(0.5))
    data = made(tmp_path / "sft", noise=RandomFlip(0.5), kind="demonstrations")
    assert [text(row.chosen_ids) for row in data.train] == [f"{found.chosen}<|end|>" for found in KEPT]
    assert all(row.rejected_ids == [] and row.chosen_score is None and not row.flipped for row in data.train)
    assert list(data.validation) == list(pairs.validation)
    assert data.manifest["content"][VALIDATION] == pairs.manifest["content"][VALIDATION]
    assert data.manifest["lengths"][TRAIN].keys() == {"prompt", "chosen"}
    clean = made(tmp_path / "clean", kind="demonstrations")
    assert clean.manifest == data.manifest


def test_held_out_pairs_are_all_in_validation(tmp_path: Path) -> None:
    data = made(tmp_path, noise=RandomFlip(1.0), kind="held_out", options=replace(OPTIONS, min_score_gap=9.0))
    assert [row.id for row in data.validation] == [found.id for found in PAIRS]
    assert (len(data.train), data.manifest["flipped"]["count"]) == (0, 0)
    with pytest.raises(UserError, match="no record of the data can be used"):
        made(tmp_path, (replace(PAIRS[0], chosen=""),), kind="held_out")


def test_scores_may_be_absent(tmp_path: Path) -> None:
    items = tuple(replace(found, chosen_score=None, rejected_score=None) for found in PAIRS)
    assert {row.chosen_score for row in made(tmp_path, items).train} == {None}


def test_batches_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(tmp_path / "whole", noise=RandomFlip(0.3))
    monkeypatch.setattr(work, "BATCH", 7)
    monkeypatch.setattr(pieces, "RECORDS", 11)
    assert made(tmp_path / "parts", noise=RandomFlip(0.3)).manifest == whole.manifest
    names = ("train.arrow", "validation.arrow", "manifest.json")
    one, other = (folder_of(tmp_path / name) for name in ("whole", "parts"))
    assert [(one / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]


# --- what is dropped --------------------------------------------------------------------------------------------------

LONG = "word " * 100


@pytest.mark.parametrize(
    ("changes", "truncation", "reason"),
    [
        ({"chosen": " \n"}, "simpo", "empty response"),
        ({"rejected": ""}, "simpo", "empty response"),
        ({"rejected": PAIRS[7].chosen}, "simpo", "identical responses"),
        ({"chosen": LONG + "a", "rejected": LONG + "b"}, "simpo", "identical after truncation"),
        ({"chosen": "\ud800"}, "simpo", "not valid Unicode"),
        ({"prompt": (Message("user", LONG),)}, "drop", "prompt too long"),
        ({"rejected": LONG}, "drop", "response too long"),
    ],
)
def test_drops_are_counted_with_their_reason(
    tmp_path: Path, changes: dict[str, Any], truncation: str, reason: str
) -> None:
    items = list(PAIRS)
    items[7] = replace(items[7], **changes)
    data = made(tmp_path, tuple(items), options=replace(OPTIONS, truncation=truncation))
    assert data.manifest["dropped"] == {reason: {"count": 1, "examples": ["p7"]}}
    assert len(data.train) + len(data.validation) == len(PAIRS) - 1
    assert "p7" not in {row.id for row in (*data.train, *data.validation)}


def test_what_the_template_refuses_is_dropped(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("roles")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    template = ChatTemplate(tokenizer)
    items = (replace(PAIRS[0], id="s", prompt=(Message("system", "x"), *PAIRS[0].prompt)), *PAIRS)
    data = made(tmp_path, items, template=template)
    assert data.manifest["dropped"] == {"refused by the chat template": {"count": 1, "examples": ["s"]}}
    with pytest.raises(UserError, match=r"1 × refused by the chat template .*no system role"):
        made(tmp_path, items[:1], template=template)


def test_what_the_source_skips_is_counted_with_twenty_examples(tmp_path: Path) -> None:
    skipped = tuple(Skipped(f"s{number}", "tied scores") for number in range(50))
    dropped = made(tmp_path, PAIRS + skipped).manifest["dropped"]
    assert dropped == {"tied scores": {"count": 50, "examples": [f"s{number}" for number in range(20)]}}


def test_splits_that_end_up_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record of the data can be used; dropped: 2 × empty response"):
        made(tmp_path, tuple(replace(found, chosen="") for found in PAIRS[:2]))
    with pytest.raises(UserError, match=r"validation split is empty with dataset\.validation_fraction=0\.2 \(3 train"):
        made(tmp_path, tuple(KEPT[:3]))
    with pytest.raises(UserError, match=r"the train split is empty .* \(0 train, 3 validation"):
        made(tmp_path, tuple(HELD_OUT[:3]))
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ["pairs", "demonstrations"])
def test_an_id_that_occurs_twice(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"the id 'p3' occurs twice .* ids must be unique"):
        made(tmp_path, (*PAIRS, PAIRS[3]), kind=kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation": "left"}, r"dataset\.truncation=left is unknown; use one of simpo, drop"),
        ({"max_prompt_length": 400}, r"dataset\.max_prompt_length=400 must be .* smaller than dataset\.max_length=400"),
        ({"max_prompt_length": 1}, "must be at least 2"),
        ({"validation_fraction": 0.0}, r"dataset\.validation_fraction=0\.0 must be between 0 and 1"),
    ],
)
def test_options_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(OPTIONS, **changes)


def test_truncation_is_counted_and_a_cut_response_has_no_stop_token(tmp_path: Path) -> None:
    items = (
        replace(PAIRS[0], id="prompt", prompt=(Message("user", "x" * 300),), chosen="y" * 150),
        replace(PAIRS[0], id="response", prompt=(Message("user", "z" * 250),), chosen="y" * 300),
    )
    data = made(tmp_path, PAIRS + items)
    assert data.manifest["truncated"] == {"prompts": 2, "responses": 1}
    rows = {row.id: row for row in (*data.train, *data.validation)}
    assert [len(rows["prompt"].prompt_ids), len(rows["prompt"].chosen_ids)] == [200, 151]
    assert rows["prompt"].prompt_ids[0] == TEMPLATE.tokenizer.bos_token_id
    assert text(rows["prompt"].prompt_ids).endswith("x<|end|><|assistant|>")
    assert text(rows["response"].chosen_ids) == "y" * 200
    assert rows["response"].rejected_ids[-1] == TEMPLATE.stop_id


# --- manifest and files -----------------------------------------------------------------------------------------------


def test_manifest_measures_the_data(tmp_path: Path) -> None:
    data = made(tmp_path)
    manifest = data.manifest
    assert manifest["counts"] == {"train": len(data.train), "validation": len(data.validation)}
    chosen = [len(row.chosen_ids) for row in data.train]
    assert manifest["lengths"]["train"]["chosen"]["max"] == max(chosen)
    assert manifest["lengths"]["train"]["chosen"]["median"] == np.median(chosen)
    sides = {side: sum(len(getattr(row, f"{side}_ids")) for row in data.train) for side in ("prompt", "rejected")}
    total = 2 * sides["prompt"] + sum(chosen) + sides["rejected"]
    assert manifest["tokens"]["train"] == {**sides, "chosen": sum(chosen), "total": total}
    assert manifest["noise"] == {"kind": "none"}
    assert manifest["options"]["max_length"] == 400
    assert manifest["template"]["hash"] == TEMPLATE.hash
    assert manifest["source"] == {"class": "Records", "fingerprint": Records(PAIRS).fingerprint()}
    assert data.train.manifest_hash == data.validation.manifest_hash == manifest["hash"]
    json.dumps(manifest, allow_nan=False)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("here", "there"):
        made(tmp_path / name, noise=RandomFlip(0.3))
        folder = folder_of(tmp_path / name)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()} | {"": folder.name.encode()})
    assert files[0].keys() == {"", "train.arrow", "validation.arrow", "manifest.json"}
    assert files[0] == files[1]


def test_the_hash_changes_with_everything_that_counts(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"noise": RandomFlip(0.1)},
        {"noise": RandomFlip(0.1, seed=1)},
        {"noise": RandomFlip(0.2)},
        {"kind": "demonstrations"},
        {"items": PAIRS[:-1]},
        {"template": ChatTemplate(byte_tokenizer("roles"), "with_assistant_header")},
        {"template": ChatTemplate(byte_tokenizer("roles"), template="plain")},
        {"options": replace(OPTIONS, max_length=401)},
        {"options": replace(OPTIONS, max_prompt_length=201)},
        {"options": replace(OPTIONS, truncation="drop")},
        {"options": replace(OPTIONS, validation_fraction=0.21)},
        {"options": replace(OPTIONS, split_seed=1)},
    ]
    hashes = [made(tmp_path, **variant).manifest["hash"] for variant in variants]
    assert len(set(hashes)) == len(variants)


def test_the_content_hash_sees_every_value(tmp_path: Path) -> None:
    """The manifest's hash rests on it, whatever a source's fingerprint may overlook."""

    @dataclass(frozen=True)
    class Nameless(Records):
        def fingerprint(self) -> str:
            return "always the same"

    def hashes(number: int, items: tuple[Any, ...]) -> tuple[str, str]:
        manifest = prepare(Nameless(items), NoNoise(), TEMPLATE, OPTIONS, tmp_path / str(number)).manifest
        return manifest["content"]["train"], manifest["hash"]

    position = PAIRS.index(KEPT[0])
    changes: list[dict[str, Any]] = [
        {},
        {"id": "new"},
        {"chosen": "else"},
        {"rejected": "else"},
        {"chosen_score": 0.5},
        {"rejected_score": None},
        {"flipped": True},
    ]
    variants = [(*PAIRS[:position], replace(KEPT[0], **change), *PAIRS[position + 1 :]) for change in changes]
    found = [hashes(number, items) for number, items in enumerate(variants)]
    assert len({content for content, _ in found}) == len({whole for _, whole in found}) == len(changes)


def test_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path)
    monkeypatch.setattr(Records, "records", lambda self: pytest.fail("read again"))
    again = made(tmp_path)
    assert again.manifest == first.manifest
    assert list(again.train) == list(first.train)


def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def broken(self: Records) -> Iterator[PreferencePair | Skipped]:
            yield from PAIRS[:5]
            raise KeyboardInterrupt

        patched.setattr(Records, "records", broken)
        patched.setattr(work, "BATCH", 2)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path)
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]
    assert len(made(tmp_path).train) == len(KEPT)


@pytest.mark.parametrize("name", ["manifest.json", "train.arrow"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    made(tmp_path)
    (folder_of(tmp_path) / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"prepared data in .* is damaged .* delete that folder"):
        made(tmp_path)


def test_several_processes_build_once(tmp_path: Path) -> None:
    built = []
    together = threading.Barrier(8)

    def build(aside: Path) -> None:
        built.append(aside)
        time.sleep(0.1)
        (aside / "x").write_text("done")

    results: list[bool] = []

    def ask() -> None:
        together.wait()
        results.append(build_once(tmp_path / "folder", build))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(results) == [False] * 7 + [True]
    assert (tmp_path / "folder" / "x").read_text() == "done"


def test_a_set_is_a_sequence(tmp_path: Path) -> None:
    rows = made(tmp_path).train
    assert rows[-1] == rows[len(rows) - 1]
    assert rows[-1].index == len(rows) - 1
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[outside]
    copy = pickle.loads(pickle.dumps(rows))
    assert (list(copy), copy.manifest_hash) == (list(rows), rows.manifest_hash)
    expected = [[len(row.prompt_ids), len(row.chosen_ids), len(row.rejected_ids)] for row in rows]
    assert rows.lengths().tolist() == expected
    assert all(type(number) is int for number in rows[0].prompt_ids)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(
    tmp_path: Path, terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    made(tmp_path)
    assert ("tokenising" in capsys.readouterr().err) is terminal


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)), st.floats(0, 1))
def test_order_of_the_source_moves_pairs_and_changes_none(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], rate: float
) -> None:
    items = (HELD_OUT[0], *KEPT[:12])
    turned = (HELD_OUT[0], *(KEPT[place] for place in order))
    results = [
        {row.id: replace(row, index=0) for row in made(tmp_path_factory.mktemp("o"), given, RandomFlip(rate)).train}
        for given in (items, turned)
    ]
    assert results[0] == results[1]
