"""`python -m src.generate` as a user types it: kills, endpoints that fail, contradictions, and what it leaves."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from src.generation.base import Request, Response
from src.generation.shards import read_manifest, read_records, whole_lines
from src.generation.transformers_backend import TransformersGenerator
from tests.entry import Outcome, assert_says, call, refused
from tests.support import SMALL_RUN, places, start
from tests.unit.chat_server import ChatServer, Reply, answer, serving
from tests.unit.generation_tools import tiny_model

ENDPOINT = ("generator=openai", "generator.model=m", "n=2", "seeds=[1,2]", "shard_size=3", "max_prompts=8")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    trained = call("src.train", "method=simpo", *SMALL_RUN, "training.max_steps=2", *places(folder))
    assert trained.code == 0, trained.err
    (directory,) = (folder / "runs").iterdir()
    return directory


def directory_of(outcome: Outcome) -> Path:
    """The last line of standard output."""
    return Path(outcome.out.splitlines()[-1])


def generate(folder: Path, *overrides: str) -> Outcome:
    outcome = call("src.generate", f"output_root={folder}", *overrides)
    assert outcome.code == 0, outcome.err
    return outcome


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_responds_to_its_own_prompts(run_directory: Path, tmp_path: Path) -> None:
    settings = (f"checkpoint={run_directory}", "max_prompts=5", "max_new_tokens=12", "shard_size=2")
    outcome = generate(tmp_path, *settings)
    directory = directory_of(outcome)
    assert outcome.out.startswith("generated: 25 responses to 5 prompts, ")
    assert directory.parent == tmp_path
    assert directory.name.startswith(f"{run_directory.name}__toy__")
    records = list(read_records(directory))
    assert [(record["prompt_id"], record["sample"]) for record in records] == [
        (f"toy-0-{prompt:06d}", sample) for prompt in range(5) for sample in range(5)
    ]
    first = records[0]
    assert set(first) == {
        "prompt_id",
        "prompt",
        "response",
        "writer",
        "sample",
        "seed",
        "temperature",
        "finish_reason",
        "tokens",
    }
    assert [record["seed"] for record in records[:5]] == [13, 21, 42, 79, 100]
    assert first["writer"] == run_directory.name
    assert first["prompt"][-1]["role"] == "user"
    manifest = read_manifest(directory)
    assert manifest["counts"]["responses"] == 25
    assert manifest["counts"]["tokens"] == sum(record["tokens"] for record in records)
    assert manifest["run"]["checkpoint"] == "best"
    assert manifest["chain"][-1]["content"] == manifest["content"]

    again = generate(tmp_path, *settings, "generator.batch_size=3")
    assert again.out.startswith("finished already: 25 responses")
    assert directory_of(again) == directory
    others = (("which=last",), ("seeds=[1]",), ("top_p=1",), ("max_new_tokens=13",), ("max_prompts=4",), ("writer=w",))
    for other in others[1:]:
        assert directory_of(generate(tmp_path, *settings, *other)) != directory


def test_the_splits_are_those_of_training(run_directory: Path, tmp_path: Path) -> None:
    sides = {}
    for split in ("all", "train", "validation"):
        settings = (f"checkpoint={run_directory}", f"split={split}", "n=1", "seeds=[1]", "max_new_tokens=1")
        records = read_records(directory_of(generate(tmp_path, *settings)))
        sides[split] = [record["prompt_id"] for record in records]
    trained = json.loads((run_directory / "manifest.json").read_text())["counts"]
    assert [len(sides["train"]), len(sides["validation"])] == [trained["train"], trained["validation"]]
    assert sorted(sides["train"] + sides["validation"]) == sides["all"]


def test_killed_and_started_again_it_repeats_nothing(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("max_prompts=40", "max_new_tokens=60")
    settings = (f"checkpoint={run_directory}", *short, "shard_size=16", "generator.batch_size=4")
    process = start("src.generate", *settings, f"output_root={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while (
        not (begun := list((tmp_path / "killed").glob("*/partial/000001.jsonl")))
        or begun[0].read_bytes().count(b"\n") < 5
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    directory = begun[0].parent.parent
    kept = whole_lines(begun[0])[0]
    assert (directory / "shards" / "000000.jsonl").exists()
    assert not (directory / "manifest.json").exists()

    asked: list[Request] = []
    respond = TransformersGenerator.respond

    def counted(self: TransformersGenerator, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        asked.extend(requests)
        return respond(self, requests)

    monkeypatch.setattr(TransformersGenerator, "respond", counted)
    resumed = generate(tmp_path / "killed", *settings)
    assert directory_of(resumed) == directory
    assert f"{len(kept)} of them kept from before" in resumed.err
    assert len(asked) == 40 * 5 - 16 * 5 - len(kept)
    assert len(kept) >= 5

    asked.clear()
    whole = directory_of(generate(tmp_path / "whole", *settings, "generator.batch_size=32"))
    assert len(asked) == 200
    for shard in ("000000", "000001", "000002"):
        ours, theirs = (place / "shards" / f"{shard}.jsonl" for place in (directory, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    assert read_manifest(directory)["hash"] == read_manifest(whole)["hash"]


def test_a_model_that_is_no_run_and_a_file_of_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": "a", "prompt": "Hi"}, {"prompt": [{"role": "user", "content": "x" * 999}]}, {"prompt": "Sort 2, 1"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = (f"checkpoint={tiny_model()}", f"prompts={prompts}", "max_new_tokens=5", "n=2", "seeds=[1,2]")
    outcome = generate(tmp_path, *settings)
    assert "prompts without a response: 1 × prompt fills the model's context" in outcome.out
    records = list(read_records(directory_of(outcome)))
    assert [record["prompt_id"] for record in records] == ["a", "a", "line-000003", "line-000003"]
    assert {record["writer"] for record in records} == {"model"}
    manifest = read_manifest(directory_of(outcome))
    assert manifest["counts"]["skipped"] == {
        "prompt fills the model's context": {"count": 1, "examples": ["line-000002"]}
    }
    assert manifest["inputs"][0]["path"] == str(prompts)
    prompts.write_text(json.dumps({"prompt": "x" * 999}))
    assert_says(refused("src.generate", f"output_root={tmp_path}", *settings), "none of 1 prompts", "fills the model's")


def test_an_explicit_directory_refuses_other_settings(tmp_path: Path) -> None:
    settings = (f"checkpoint={tiny_model()}", "dataset=toy", "max_prompts=2", "n=1", "seeds=[1]", "max_new_tokens=2")
    place = f"output={tmp_path / 'here'}"
    assert directory_of(generate(tmp_path, *settings, place)) == tmp_path / "here"
    outcome = call("src.generate", *settings, place, "top_p=0.5")
    assert (outcome.code, outcome.out) == (2, "")
    assert_says(outcome.err, "holds records of other settings (different: decoding)")


# --- endpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def echo(payload: dict[str, Any], number: int) -> Reply:
    return answer(f"{payload['messages'][-1]['content']} {payload['seed']}")


def test_an_endpoint_that_breaks_keeps_what_it_gave_and_is_not_asked_again(tmp_path: Path) -> None:
    broken: set[int] = set()

    def script(payload: dict[str, Any], number: int) -> Reply:
        if number > 9 and server.healthy is False:
            broken.add(payload["seed"])
            return Reply(status=500, body=b"out of memory")
        return echo(payload, number)

    class Server(ChatServer):
        healthy = False

    with serving(script) as plain:
        server: Any = plain
        server.healthy = False
        settings = ("dataset=toy", *ENDPOINT, f"generator.base_url={server.base_url}", f"output_root={tmp_path}")
        outcome = call("src.generate", *settings, "generator.tries=2", "generator.concurrency=2")
        assert outcome.code == 75, outcome.err
        assert_says(outcome.err, "gave no usable answer in", "status 500: out of memory", "everything finished is kept")
        (directory,) = tmp_path.iterdir()
        good = {payload["seed"] for payload in server.payloads[:9]}
        server.healthy = True
        server.payloads.clear()
        resumed = call("src.generate", *settings, "generator.concurrency=8")
        assert resumed.code == 0, resumed.err
        assert len(server.payloads) == 16 - len(good)
        assert good.isdisjoint(payload["seed"] for payload in server.payloads)
        assert broken <= {payload["seed"] for payload in server.payloads}
    records = list(read_records(directory))
    assert len(records) == 16
    for record in records:
        assert record["response"].startswith(record["prompt"][-1]["content"])
        assert record["writer"] == "m"
        assert (record["finish_reason"], record["tokens"]) == ("stop", 3)


def test_what_an_endpoint_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    extra = ("+generator.extra.top_k=5", "generator.key_variable=MY_KEY", "max_new_tokens=77", "max_prompts=1")
    with serving(echo) as server:
        address = f"generator.base_url={server.base_url}"
        outcome = generate(tmp_path, "dataset=toy", *ENDPOINT, address, *extra, "temperatures=[0.3,0.6]")
    first, second = sorted(server.payloads, key=lambda payload: payload["temperature"])
    assert {name: first[name] for name in ("model", "temperature", "top_p", "max_tokens", "top_k")} == {
        "model": "m",
        "temperature": 0.3,
        "top_p": 0.95,
        "max_tokens": 77,
        "top_k": 5,
    }
    assert first["seed"] != second["seed"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    written = "".join(path.read_text() for path in directory_of(outcome).rglob("*") if path.is_file())
    assert "secret" not in written


# --- contradictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        ((), ("1. checkpoint has no value", "2. there are no prompts; give dataset=NAME")),
        (("checkpoint=/no/where", "dataset=toy"), ("checkpoint=/no/where: no such directory",)),
        (("checkpoint=x", "prompts=f", "dataset=toy"), ("prompts=f takes the place of dataset and split",)),
        (("checkpoint=x", "dataset=toy", "which=last"), ("which=last would not be read",)),
        (("checkpoint=x", "dataset=toy", "dtype=float16"), ("dtype=float16 is not known",)),
        (("checkpoint=x", "dataset=toy", "n=0"), ("n=0 is too small",)),
        (("checkpoint=x", "dataset=toy", "split=test"), ("split=test is not known",)),
        (("checkpoint=x", "dataset=toy", "n=1"), ("seeds=[13, 21, 42, 79, 100] are 5, more than the n=1",)),
        (("checkpoint=x", "dataset=toy", "generator.device=tpu"), ("device=tpu is unknown",)),
        (("checkpoint=x", "dataset=toy", "generator=nonsense"), ("generator=nonsense does not exist",)),
        (("dataset=toy", *ENDPOINT), ("generator.base_url",)),
        (("dataset=toy", *ENDPOINT, "generator.base_url=here"), ("base_url=here is no address",)),
        (
            ("dataset=toy", *ENDPOINT, "generator.base_url=http://h/v1", "checkpoint=x", "template=plain"),
            ("template=plain would not be read", "checkpoint=x would not be read"),
        ),
        (("dataset=toy", *ENDPOINT, "generator.base_url=http://h/v1", "top_k=3"), ("+generator.extra.top_k=3",)),
        (
            ("dataset=toy", *ENDPOINT, "generator.base_url=http://h/v1", "+generator.extra.seed=3"),
            ("generator.extra.seed would take the place",),
        ),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_what_cannot_work_is_said(overrides: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    assert_says(refused("src.generate", *overrides), *fragments)


def test_keys_that_a_run_answers_itself_are_refused(run_directory: Path) -> None:
    message = refused("src.generate", f"checkpoint={run_directory}", "template=plain", "dtype=bfloat16")
    assert_says(message, "template=plain would not be read: a run has its own", "dtype=bfloat16 would not be read")


def test_a_run_without_a_whole_checkpoint(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text((run_directory / "config.yaml").read_text())
    assert_says(refused("src.generate", f"checkpoint={tmp_path}"), "has no whole checkpoint 'best'")


def test_vllm_that_is_not_installed(tmp_path: Path) -> None:
    message = refused("src.generate", f"checkpoint={tiny_model()}", "dataset=toy", "generator=vllm", "max_prompts=2")
    assert_says(message, "generator=vllm, but vllm is not installed here", "generator=transformers")
