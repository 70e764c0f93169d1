"""Trained tokenizers: the same texts give the same file; every text comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.splits import TRAIN, split_of
from src.data.templates import tokenizer_hash
from src.data.tokenizer import SPECIALS, train_tokenizer, training_texts
from src.errors import UserError
from tests.unit.data_tools import WORDS, pair

TEXTS = [f"The {one} {two} thing costs {number} €." for number, one in enumerate(WORDS) for two in WORDS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_special_tokens_come_first(cache: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300, cache)
    assert len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIALS)))) == list(SPECIALS)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<|pad|>", "<|bos|>", "<|end|>")
    assert "<|assistant|>" in tokenizer.chat_template
    assert set(tokenizer.all_special_tokens) == set(SPECIALS)
    assert len(tokenizer("The red thing")["input_ids"]) <= 6  # 13 bytes
    assert len(tokenizer("12345")["input_ids"]) == 5


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_every_text_comes_back(cache: Path, text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400, cache)
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_same_texts_give_the_same_tokenizer_whatever_the_threads() -> None:
    """Trained in two processes with different numbers of threads."""
    script = (
        "import json, sys; from src.data.tokenizer import _train; print(_train(json.load(sys.stdin), 320).to_str())"
    )
    results = [
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(TEXTS),
            env={"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": "."},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in ("1", "4")
    ]
    assert len(json.loads(results[0])["model"]["vocab"]) == 320
    assert results[0] == results[1]


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    files = []
    for name in ("here", "there"):
        train_tokenizer(TEXTS, 300, tmp_path / name)
        (folder,) = (path for path in (tmp_path / name / "tokenizers").iterdir() if path.is_dir())
        files.append({path.name: path.read_bytes() for path in folder.iterdir()} | {"folder": folder.name.encode()})
    assert "tokenizer.json" in files[0]
    assert files[0] == files[1]


def test_a_small_corpus_gives_a_small_vocabulary(cache: Path) -> None:
    """There is nothing more to merge: the embedding must be sized by the tokenizer, not by the wish."""
    assert len(train_tokenizer(["ab ab"], 1000, cache)) == len(SPECIALS) + 256 + 2


def test_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_tokenizer(iter(TEXTS), 300, tmp_path)
    monkeypatch.setattr("src.data.tokenizer._train", lambda *_: pytest.fail("trained again"))
    again = train_tokenizer(TEXTS, 300, tmp_path)
    assert tokenizer_hash(first) == tokenizer_hash(again)
    assert first.chat_template == again.chat_template


def test_texts_of_a_known_origin_are_not_read_again(tmp_path: Path) -> None:
    first = train_tokenizer(iter(TEXTS), 300, tmp_path, "origin")
    unread = (pytest.fail("read again") for _ in range(1))
    again = train_tokenizer(unread, 300, tmp_path, "origin")
    assert (tokenizer_hash(again), again.name_or_path) == (tokenizer_hash(first), first.name_or_path)
    for texts, size, origin in ((TEXTS[:30], 300, "other origin"), (TEXTS, 301, "origin")):
        assert train_tokenizer(texts, size, tmp_path, origin).name_or_path != first.name_or_path
    for path in (tmp_path / "tokenizers").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    assert tokenizer_hash(train_tokenizer(TEXTS, 300, tmp_path, "origin")) == tokenizer_hash(first)


def test_other_texts_or_size_give_another(cache: Path) -> None:
    hashes = {
        tokenizer_hash(train_tokenizer(texts, size, cache))
        for texts, size in ((TEXTS, 300), (TEXTS, 301), (TEXTS[:30], 300))
    }
    assert len(hashes) == 3


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a vocabulary of 261 is too small: bytes and special tokens alone are 262"):
        train_tokenizer(TEXTS, 261, tmp_path)
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer([""], 300, tmp_path)


def test_texts_that_are_no_unicode_do_not_stop_training(tmp_path: Path) -> None:
    assert len(train_tokenizer(["\ud800 broken", *TEXTS], 300, tmp_path)) == 300


def test_training_texts_are_those_of_the_train_split() -> None:
    pairs = [pair(number) for number in range(60)]
    train = [found for found in pairs if split_of(found.prompt, 0.3, 1) == TRAIN]
    assert 0 < len(train) < 60
    texts = list(training_texts(pairs, 0.3, 1))
    assert {text for found in train for text in (found.prompt[0].content, found.chosen, found.rejected)} == set(texts)
    assert len(texts) < 3 * len(train)
