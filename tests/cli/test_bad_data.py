"""Bad data files: every message says which file, which line, and what is wrong."""

from __future__ import annotations

import gzip
import json
import ssl
import time
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from src.data import hub
from src.data.cache import build_once
from src.data.sources import HHRLHF, LocalPairs, ScoredResponsesFile, UltraFeedbackBinarized
from src.data.tokenizer import load_tokenizer
from src.errors import UserError
from tests.unit.data_tools import pair, write_lines

GOOD = pair(0).to_json()
ONE = {"prompt_id": 1, "prompt": "p", "responses": [{"model": "m", "text": "a", "score": 1.0}]}
SOURCES = [LocalPairs, ScoredResponsesFile, HHRLHF, UltraFeedbackBinarized]


def message_of(source: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(source.pairs())
    return str(caught.value)


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize("source", SOURCES)
def test_missing_file(source: Callable[..., Any], tmp_path: Path) -> None:
    found = message_of(source(path=f"{tmp_path}/none.jsonl"))
    assert "no such file" in found
    assert f"{tmp_path}/none.jsonl" in found
    assert "set dataset.source.path" in found
    with pytest.raises(UserError, match="no such file"):
        source(path=f"{tmp_path}/none.jsonl").fingerprint()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0), b"\n \n"], ids=["empty", "gzip", "blank"])
def test_empty_file(source: Callable[..., Any], content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    found = message_of(source(path=str(path)))
    assert str(path) in found
    assert "one JSON object a line" in found


@pytest.mark.parametrize("source", SOURCES)
def test_truncated_gzip(source: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 200)[:-20])
    found = message_of(source(path=str(path)))
    assert f"{path} is a damaged or truncated gzip file" in found
    assert "download it again" in found
    with pytest.raises(UserError, match="truncated gzip"):
        source(path=str(path)).fingerprint()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"id": 1, ', "not valid JSON: Expecting property name enclosed in double quotes at column"),
        (b"[1]", "must be a JSON object, this one is a list"),
        (b'{"id": "\xff"}', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "is missing"),
    ],
)
def test_bad_line(source: Callable[..., Any], line: bytes, complaint: str, tmp_path: Path) -> None:
    """Behind a blank line, which counts: the number must be that of an editor."""
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + line + b"\n"))
    found = message_of(source(path=str(path)))
    assert found.startswith(f"{path}:2: ")
    assert complaint in found


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (without(GOOD, "chosen"), "field 'chosen' is missing (the record has: "),
        (GOOD | {"rejected": None}, "field 'rejected' is missing"),
        (GOOD | {"rejected": 3}, "field 'rejected' must be a string, not int: 3"),
        (GOOD | {"chosen": ["a"]}, "field 'chosen' must be a string, not list"),
        (GOOD | {"chosen_score": float("nan")}, "field 'chosen_score' is nan: scores must be finite"),
        (GOOD | {"rejected_score": float("-inf")}, "field 'rejected_score' is -inf"),
        (GOOD | {"rejected_score": "4"}, "field 'rejected_score' must be a number, not str"),
        (GOOD | {"prompt": []}, "field 'prompt' must be a string or a non-empty list"),
        (GOOD | {"prompt": [{"role": "bot", "content": ""}]}, "message role 'bot' is unknown"),
        (GOOD | {"prompt": [{"role": "assistant", "content": ""}]}, "must end with a user turn"),
    ],
)
def test_bad_pair(record: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", [GOOD, record])
    found = message_of(LocalPairs(path))
    assert found.startswith(f"{path}:2: ")
    assert complaint in found


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (without(ONE, "prompt"), "field 'prompt' is missing"),
        (without(ONE, "prompt_id"), "field 'prompt_id' is missing"),
        (ONE | {"responses": "a"}, "field 'responses' must be a list"),
        (ONE | {"responses": [1]}, "response 0: must be an object"),
        (ONE | {"responses": [*ONE["responses"], {"text": "b"}]}, "response 1: field 'score' is missing"),  # type: ignore[misc]
        (ONE | {"responses": [{"text": "b", "score": float("nan")}]}, "response 0: field 'score' is nan"),
        (ONE | {"responses": [{"text": 5, "score": 1}]}, "response 0: field 'text' must be a string, not int"),
    ],
)
def test_bad_scored_responses(record: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "scored.jsonl.gz", [ONE, record])
    found = message_of(ScoredResponsesFile(path))
    assert found.startswith(f"{path}:2: ")
    assert complaint in found


def test_bad_transcript(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl", [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": 1.5}])
    assert message_of(HHRLHF(path=path)) == f"{path}:1: field 'rejected' must be a string, not float: 1.5"


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"chosen": "a", "rejected": "b"}, "field 'chosen' must be a list of messages"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": []}, "and then the assistant's response"),
    ],
)
def test_bad_feedback(record: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "uf.jsonl", [record])
    found = message_of(UltraFeedbackBinarized(path=path))
    assert found.startswith(f"{path}:1: ")
    assert complaint in found


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "uf.parquet"
    path.write_bytes(b"PAR1 is not all there is")
    assert f"{path} is not a readable parquet file" in message_of(UltraFeedbackBinarized(path=str(path)))


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory; name a .jsonl" in message_of(LocalPairs(str(tmp_path)))


# --- no network -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub address where nothing listens, and empty hub caches."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)


@pytest.mark.usefixtures("no_network")
def test_hub_data_without_network_fails_in_seconds() -> None:
    started = time.monotonic()
    for source in (UltraFeedbackBinarized(hub_id="nobody/nothing-at-all"), HHRLHF(hub_id="nobody/nothing-at-all")):
        found = message_of(source)
        assert "dataset 'nobody/nothing-at-all': the hub cannot be reached from this machine" in found
        assert found.endswith("set dataset.source.path to a local copy")
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("no_network")
def test_hub_tokenizer_without_network_fails_in_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"tokenizer of 'nobody/none': the hub cannot be reached .* set model.path to"):
        load_tokenizer("nobody/none")
    with pytest.raises(UserError, match="downloads are switched off"):
        load_tokenizer("nobody/none", local_only=True)
    assert time.monotonic() - started < 15


def test_offline_by_choice_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert not hub.hub_reachable()


@pytest.mark.parametrize(
    ("failure", "reachable"),
    [
        (urllib.error.HTTPError("https://hub", 403, "Forbidden", Message(), None), True),
        (urllib.error.URLError(ssl.SSLCertVerificationError("own certificate authority")), True),
        (urllib.error.URLError(OSError("Name or service not known")), False),
        (TimeoutError(), False),
    ],
)
def test_any_answer_counts_as_reachable(monkeypatch: pytest.MonkeyPatch, failure: Exception, reachable: bool) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", fail)
    assert hub.hub_reachable() is reachable


def test_offline_is_undone() -> None:
    import datasets.config
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with hub.offline():
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert before == (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)


@pytest.mark.parametrize("path", ["./no/such", "/no/such", "~/no-such-folder", "a/b/c"])
def test_tokenizer_folder_that_does_not_exist(path: str) -> None:
    with pytest.raises(UserError, match=rf"model.path={path}: no such folder .* set model.path to a local folder"):
        load_tokenizer(path)


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the folder {tmp_path} holds no usable tokenizer"):
        load_tokenizer(str(tmp_path))


# --- cache ------------------------------------------------------------------------------------------------------------


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); set cache_root to a folder you own"):
        build_once(tmp_path / "file" / "x", lambda _: None)
