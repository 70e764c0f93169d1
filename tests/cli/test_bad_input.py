"""Bad input, as a user gives it: every message names what was given, why it cannot work and what to write instead."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.entry import assert_says, call, refused, refused_after_run_directory
from tests.support import SMALL_DATA, SMALL_MODEL, places

PREFLIGHT, TRAIN, RANKING = "src.preflight", "src.train", "src.evaluation.ranking"
FEW = ("dataset.source.prompts=20",)
"""A refused preflight reads all data, to list its problems too: let that be little."""


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        (
            "training.epoch=2",
            ("unknown key training.epoch;", "did you mean training.epochs?", "max_steps, max_tokens_per_forward"),
        ),
        ("trainng.epochs=2", ("unknown key trainng.epochs;", "did you mean training.epochs?", "Keys of the config")),
        ("+training.foo=1", ("unknown key training.foo.", "Keys of training: adam_beta1,")),
        ("+foo=1", ("unknown key foo.", "Keys of the configuration: adapter, cache_root, checkpoint,")),
        ("modl=tiny", ("unknown key modl;", "did you mean model?")),
        ("dataset.source.pair=1", ("did you mean +dataset.source.pairing?", "Keys of dataset.source: _target_,")),
        ("dataset.source.pairing=random", ("write +dataset.source.pairing=... to set it",)),
        ("model.architecture.width=3", ("unknown key model.architecture.width.", "hidden_size, ")),
        ("training.epochs=many", ("training.epochs=many has the wrong type; give a number",)),
        ("seed=1.5", ("seed=1.5 has the wrong type; give a whole number",)),
        ("model.gradient_checkpointing=perhaps", ("=perhaps has the wrong type; give true or false",)),
        ("model.init=null", ("model.init=null has the wrong type; it cannot be null",)),
        ("checkpoint=best", ("checkpoint=best has the wrong type; it is a section, so set a key of it",)),
        ("model=tini", ("model=tini does not exist; did you mean model=tiny?", "Choose one of: gemma2_2b,", "tiny")),
        ("method=dop", ("method=dop does not exist; did you mean method=dpo?", "Choose one of: ", " dpo, ")),
        ("model=null", ("model=null is no choice of model; choose one of: gemma2_2b,",)),
        ("model=", ("model= is no choice of model",)),
        ("recipe=null", ("recipe=null is no choice of recipe", "to compose without a recipe, write ~recipe")),
        ("~model", ("~model leaves the run without a model; choose one: model=NAME",)),
        ("+model=tiny", ("model is chosen twice; write model=NAME once, without a +",)),
        ("+seed=1", ("seed exists already; write seed=1 without a +",)),
        ("method", ("method cannot be read; write key=value",)),
        ("training={", ("training={ cannot be read; write key=value", "in quotes")),
        ("seed=0,1", ("seed=0,1 gives several values: add -m", "'seed=[0,1]'")),
    ],
)
def test_command_line_that_does_not_compose(override: str, fragments: tuple[str, ...]) -> None:
    assert_says(refused(PREFLIGHT, override), *fragments)


@pytest.mark.parametrize(
    "override", ["gamma=1", "+gamma=1", "method.gamma=1", "+method.gamma=1", "method.simpo_gamma=1"]
)
def test_bare_gamma_is_ambiguous(override: str) -> None:
    message = refused(TRAIN, "method=simpo", override)
    key = override.lstrip("+").split("=")[0]
    assert_says(message, f"'{key}' is ambiguous", "method.gamma_beta_ratio=R", "R = G / beta")


def test_gamma_below_a_part_is_ambiguous_too() -> None:
    assert_says(refused(TRAIN, "method=simpo", "method.target.gamma=1"), "'method.target.gamma' is ambiguous")


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["model.init=pretrained"], ["model.init=pretrained needs model.path: a hub id or a directory"]),
        (["training.global_batch_size=32", "training.micro_batch_size=5"],
         ["training.global_batch_size=32 cannot be cut into micro-batches of training.micro_batch_size=5",
          "use training.micro_batch_size=4 or another divisor (1, 2, 4, 8, 16, 32)"]),
        (["training.micro_batch_size=0"], ["training.micro_batch_size=0 is too small; give at least 1"]),
        (["training.learning_rate=0"], ["training.learning_rate=0.0 cannot work; give a value above 0"]),
        (["method=amapo", "method.statistics=3"], ["method.statistics=3 pairs do not divide", "choose a divisor"]),
        (["method.beta=high"], ["method.reward.beta='high' has the wrong type; ReferenceLogRatio wants a number"]),
        (["training.scheduler=linnear"], ["=linnear is not known; choose one of: cosine, linear, constant"]),
        (["dataset.max_prompt_length=256"], ["=256 leaves no room for a response within dataset.max_length=256",
                                            "make max_prompt_length smaller"]),
        (["dataset.validation_fraction=1"], ["=1 leaves a split empty; give a share of the prompts between 0 and 1"]),
        (["checkpoint.best_metric=accuracy"], ["checkpoint.best_metric=accuracy is no validation metric;",
                                               "choose one of: loss, logps/chosen"]),
        (["recipe=amapo__tyni"], ["recipe=amapo__tyni does not exist; did you mean recipe=amapo__tiny?"]),
    ],
)  # fmt: skip
def test_values_that_cannot_work(overrides: list[str], fragments: list[str]) -> None:
    assert_says(refused(PREFLIGHT, *FEW, *overrides), "1 problem found", *fragments)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["+method.foo=1"], ["method.foo is read by no part of method=dpo", "remove it; this method's constants are",
                             "beta, label_smoothing\n"]),
        (["+method.foo.bar=1"], ["method.foo is no part of a method, so it would change", "parts are: reward,"]),
        (["+method.reward.foo=1"], ["method.reward.foo is not read by ReferenceLogRatio (it reads: beta"]),
        (["+dataset.source.foo=1"], ["dataset.source.foo is not read by ToySource (it reads: seed, prompts,"]),
        (["+noise.rate=0.1"], ["noise.rate is not read by NoNoise"]),
        (["+model.architecture.hiden_size=3"], ["model.architecture.hiden_size=3 is read by no llama model",
                                                "did you mean hidden_size?"]),
        (["model.init=scratch", "model.path=here"], ["model.path=here would not be read, since model.init=scratch; "
                                                     "write model.init=pretrained"]),
        (["model.init=scratch", "model.sft_seed=2"], ["model.sft_seed=2 would not be read", "write model.init=sft"]),
        (["model.revision=main"], ["model.revision=main would not be read without model.path"]),
    ],
)  # fmt: skip
def test_keys_that_nothing_would_read(overrides: list[str], fragments: list[str]) -> None:
    assert_says(refused(PREFLIGHT, *FEW, *overrides), "1 problem found", *fragments)


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Whatever their kind: batch, lengths, unread keys, types, metric, places, and the second line of the data."""
    (tmp_path / "file").touch()
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair(0)) + "\n{\n")
    message = refused(
        PREFLIGHT,
        "method=amapo",
        "dataset=local",
        f"dataset.source.path={path}",
        "training.micro_batch_size=5",
        "dataset.max_prompt_length=4000",
        "+method.foo=1",
        "method.beta=high",
        "+noise.rate=1",
        "checkpoint.best_metric=accuracy",
        f"run_dir={tmp_path}/file/run",
        f"cache_root={tmp_path}/file/cache",
    )
    assert_says(message, "10 problems found", "  1. ", "  10. ", f"{path}:2: not valid JSON")
    said = ("micro_batch_size=5", "max_prompt_length=4000", "method.foo", "method.reward.beta", "method.target.beta")
    places_and_names = ("noise.rate", "best_metric=accuracy", f"run_dir={tmp_path}", f"cache_root={tmp_path}")
    assert_says(message, *said, *places_and_names)


def test_missing_value() -> None:
    message = refused(TRAIN, "dataset=local")
    assert message == (
        "error: 1 problem found:\n"
        "  1. dataset.source.path has no value; set it on the command line: dataset.source.path=...\n"
    )


def test_a_missing_path_does_not_hide_other_problems() -> None:
    message = refused(PREFLIGHT, "dataset=local", "training.micro_batch_size=5", "+method.foo=1")
    assert_says(message, "3 problems found", "dataset.source.path has no value", "micro_batch_size=5", "method.foo")


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        ([], ["checkpoint has no value; set it on the command line: checkpoint=..."]),
        (["checkpont=x"], ["unknown key checkpont; did you mean checkpoint?"]),
        (
            ["checkpoint=/no/run"],
            ["/no/run is not a run directory", "give the folder that `python -m src.train` printed"],
        ),
        (["checkpoint=x", "split=test"], ["split=test is not known; choose one of: validation, train"]),
    ],
)
def test_ranking_command_line(overrides: list[str], fragments: list[str]) -> None:
    assert_says(refused(RANKING, *overrides), *fragments)


# --- data -------------------------------------------------------------------------------------------------------------


def pair(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        "id": f"p{number}",
        "prompt": f"question {number}?",
        "chosen": f"good {number}",
        "rejected": f"bad {number}",
    }
    return record | changes


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def with_data(tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a small run on a file of the given content."""

    def overrides(content: bytes, *more: str, name: str = "pairs.jsonl") -> list[str]:
        path = tmp_path / name
        path.write_bytes(content)
        small = [*SMALL_MODEL, "training.global_batch_size=4", "training.micro_batch_size=4", *places(tmp_path)]
        data = ["dataset=local", f"dataset.source.path={path}", "dataset.validation_fraction=0.3"]
        return [*small, *data, *more]

    return overrides


GOOD = [pair(number) for number in range(30)]
LONG = [pair(number, prompt="word " * 300 + str(number)) for number in range(30)]
LIMITS = ("dataset.max_length=64", "dataset.max_prompt_length=32")


CUT = gzip.compress(lines(*GOOD), mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("empty.jsonl", b"", ["empty.jsonl is empty; it must hold one JSON object a line"]),
        ("cut.jsonl.gz", CUT, ["cut.jsonl.gz is a damaged or truncated gzip file", "copy or download it again"]),
        ("bad.jsonl", lines(*GOOD) + b'{"id": \n', ["bad.jsonl:31: not valid JSON", "each line must be one object"]),
        ("field.jsonl", lines(*GOOD, {"id": "x", "prompt": "p", "rejected": "r"}),
         ["field.jsonl:31: field 'chosen' is missing (the record has: id, prompt, rejected)"]),
        ("type.jsonl", lines(*GOOD, pair(30, rejected=3)),
         ["type.jsonl:31: field 'rejected' must be a string, not int"]),
        ("nan.jsonl", lines(*GOOD, pair(30, chosen_score=float("nan"))),
         ["nan.jsonl:31: field 'chosen_score' is nan: scores must be finite", "remove or correct the record"]),
        ("twice.jsonl", lines(*GOOD, pair(7)), ["the id 'p7' occurs twice", "ids must be unique"]),
        ("dropped.jsonl", lines(pair(0, chosen=""), pair(1, rejected=" "), pair(2, chosen="a", rejected="a")),
         ["no record of the data can be used", "2 × empty response, 1 × identical responses", "check dataset.source"]),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(
    name: str, content: bytes, fragments: list[str], with_data: Callable[..., list[str]]
) -> None:
    assert_says(refused(PREFLIGHT, *with_data(content, name=name)), *fragments)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(lines(*GOOD) + b"{\n", "pairs.jsonl:31: not valid JSON"), (lines(pair(0, chosen="")), "1 × empty response")],
)
def test_training_says_the_same(content: bytes, fragment: str, with_data: Callable[..., list[str]]) -> None:
    assert_says(refused_after_run_directory(with_data(content)), fragment)


def test_data_file_that_does_not_exist(with_data: Callable[..., list[str]], tmp_path: Path) -> None:
    missing = f"{tmp_path}/none.jsonl"
    message = refused(TRAIN, *with_data(b""), f"dataset.source.path={missing}")
    assert_says(
        message, f"dataset.source.path={missing}: no such file", "set dataset.source.path to a file that exists"
    )
    assert not (tmp_path / "runs").exists()


def test_records_left_out_are_counted_with_their_reason(with_data: Callable[..., list[str]]) -> None:
    empty = [pair(number, chosen="") for number in range(30, 35)]
    same = pair(40, chosen="same", rejected="same")
    outcome = call(PREFLIGHT, *with_data(lines(*GOOD, *empty, same)))
    assert outcome.code == 0
    assert_says(
        outcome.out, "left out: 5 x empty response (p30, p31, p32, ...)", "left out: 1 x identical responses (p40)"
    )
    assert "cut to the length limits" not in outcome.out


def test_long_prompts_are_cut_or_dropped(with_data: Callable[..., list[str]]) -> None:
    cut = call(PREFLIGHT, *with_data(lines(*LONG), *LIMITS))
    assert_says(cut.out, "cut to the length limits: 30 prompts")
    dropped = refused(PREFLIGHT, *with_data(lines(*LONG), *LIMITS, "dataset.truncation=drop"))
    assert_says(dropped, "no record of the data can be used; dropped: 30 × prompt too long", "max_prompt_length=32)")
    some = call(PREFLIGHT, *with_data(lines(*GOOD, pair(99, prompt="word " * 300)), *LIMITS, "dataset.truncation=drop"))
    assert some.code == 0
    assert_says(some.out, "left out: 1 x prompt too long (p99)")


def test_too_few_pairs_for_one_batch(with_data: Callable[..., list[str]]) -> None:
    message = refused(PREFLIGHT, *with_data(lines(*GOOD), "training.global_batch_size=64"))
    assert_says(message, "do not fill one batch of training.global_batch_size=64; lower it, or raise training.epochs")


# --- no network -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub address where nothing listens, and empty hub caches."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
def test_hub_ids_without_network_fail_in_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    message = refused(TRAIN, "model=llama3_8b_base", "model.path=nobody/none", *SMALL_DATA, *places(tmp_path))
    assert_says(
        message, "'nobody/none': the hub cannot be reached from this machine", "set model.path to a local folder"
    )
    message = refused(TRAIN, "dataset=hh_rlhf", "dataset.source.hub_id=nobody/none", *SMALL_MODEL, *places(tmp_path))
    assert_says(message, "dataset 'nobody/none': the hub cannot be reached", "set dataset.source.path to a local copy")
    assert time.monotonic() - started < 20
    assert not (tmp_path / "runs").exists()


def test_model_folder_that_does_not_exist(tmp_path: Path) -> None:
    message = refused(TRAIN, "model=llama3_8b_base", f"model.path={tmp_path}/none", *SMALL_DATA, *places(tmp_path))
    assert_says(message, f"model.path={tmp_path}/none: no such folder", "set model.path to a local folder")
