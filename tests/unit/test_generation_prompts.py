"""Prompts of sources and files, and the vLLM backend against an engine that records what it is asked."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.data.pairs import Demonstration, Message, PreferencePair, Prompt, ScoredResponses
from src.data.toy.source import ToySource
from src.errors import UserError
from src.generation.base import Decoding
from src.generation.prompts import prompts_hash, prompts_of_file, prompts_of_source
from src.generation.vllm_backend import VllmGenerator
from tests.unit.generation_tools import PROMPTS, all_requests, tiny_policy


def user(text: str) -> Prompt:
    return (Message("user", text),)


@dataclass
class Listed:
    """A source of the pairs and demonstrations it is given."""

    given: list[tuple[str, str]]
    only_demonstrations: bool = False

    def pairs(self) -> Iterator[PreferencePair]:
        if not self.only_demonstrations:
            yield from (PreferencePair(name, user(text), "a", "b") for name, text in self.given)

    def demonstrations(self) -> Iterator[Demonstration]:
        yield from (Demonstration(name, user(text), "a") for name, text in self.given)

    def fingerprint(self) -> str:
        return ""


def test_each_prompt_comes_once_under_its_first_id() -> None:
    source = Listed([("1", "x"), ("2", "y"), ("3", "x"), ("4", "z")])
    for reading in (source, Listed(source.given, only_demonstrations=True)):
        assert [item.id for item in prompts_of_source(reading, "all", 0.5, 0)] == ["1", "2", "4"]
        assert [item.id for item in prompts_of_source(reading, "all", 0.5, 0, limit=2)] == ["1", "2"]
    with pytest.raises(UserError, match="the id '1' has two different prompts"):
        prompts_of_source(Listed([("1", "x"), ("1", "y")]), "all", 0.5, 0)
    with pytest.raises(UserError, match="no prompt in split=validation"):
        prompts_of_source(Listed([("1", "x")]), "validation", 1e-9, 0)


def test_all_responses_to_a_prompt_are_read_where_there_are_any() -> None:
    source = ToySource(prompts=20, demonstration_prompts=0)
    expected: list[ScoredResponses] = list(source.scored_responses())
    assert [(item.id, item.prompt) for item in prompts_of_source(source, "all", 0.1, 0)] == [
        (record.id, record.prompt) for record in expected
    ]
    train, held_out = (prompts_of_source(source, split, 0.3, 1) for split in ("train", "validation"))
    assert {item.id for item in train} | {item.id for item in held_out} == {record.id for record in expected}
    assert len(train) + len(held_out) == 20


def test_files_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"

    def lines(*records: dict[str, Any]) -> str:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    found = prompts_of_file(lines({"prompt_id": "a", "prompt": "x"}, {"prompt": "y"}))
    assert [(item.id, item.prompt) for item in found] == [("a", user("x")), ("line-000002", user("y"))]
    assert prompts_hash(found) != prompts_hash(found[::-1])
    assert prompts_hash(found) != prompts_hash(found[:1])
    assert len(prompts_of_file(str(path), limit=1)) == 1
    for bad, fragment in (
        (({"id": 1, "prompt": "x"}, {"id": 1, "prompt": "y"}), r"prompts\.jsonl:2: the id '1' occurs twice"),
        (({"id": 1, "text": "x"},), r"prompts\.jsonl:1: field 'prompt' is missing"),
        (({"prompt": [{"role": "assistant", "content": "x"}]},), "must end with a user turn"),
    ):
        with pytest.raises(UserError, match=fragment):
            prompts_of_file(lines(*bad))
    with pytest.raises(UserError, match="prompts=/no/file: no such file"):
        prompts_of_file("/no/file")


class SamplingParams:
    """vLLM's class of this name, as far as it is used."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class LLM:
    """An engine that writes the seed's digits, the prompt's first id and a stop token."""

    made: list[dict[str, Any]] = []  # noqa: RUF012 - what the test looks at

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)

    def generate(self, prompts: list[dict[str, Any]], parameters: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        self.made.append({"prompts": prompts, "parameters": [one.settings for one in parameters]})
        outputs = []
        for one in parameters:
            ids = [70, 71, 72][: one.settings["max_tokens"]]
            ids += one.settings["stop_token_ids"][:1] if one.settings["max_tokens"] > 3 else []
            outputs.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids)]))
        return outputs


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made.clear()
    return LLM.made


def test_vllm_gets_the_ids_of_training_and_a_seed_for_each_response(engine: list[dict[str, Any]]) -> None:
    policy = tiny_policy()
    decoding = Decoding(n=2, temperatures=(0.0, 0.7), seeds=(1, 2), top_p=0.9, top_k=40, max_new_tokens=4096)
    generator = VllmGenerator(policy, decoding, memory=0.5, gpus=2)
    assert engine == []
    requests = all_requests(decoding)
    given = dict(generator.respond(requests))
    assert engine[0]["model"] == str(policy.directory)
    assert (engine[0]["dtype"], engine[0]["tensor_parallel_size"]) == ("float32", 2)
    asked = engine[1]["parameters"]
    ids = [prompt["prompt_token_ids"] for prompt in engine[1]["prompts"]]
    assert ids == [policy.template.encode_prompt(request.prompt) for request in requests]
    assert len({one["seed"] for one in asked}) == len(asked)
    assert [one["temperature"] for one in asked[:2]] == [0.0, 0.7]
    assert (asked[0]["top_p"], asked[0]["top_k"], asked[0]["n"]) == (0.9, 40, 1)
    assert [one["max_tokens"] for one in asked] == [256 - len(prompt) for prompt in ids]
    assert asked[0]["stop_token_ids"] == list(policy.stop_ids)
    assert {response.finish_reason for response in given.values()} == {"stop"}
    assert given[0].text == policy.text_of([70, 71, 72])
    assert given[0].tokens == 4
    generator.close()
    assert generator.refusal(PROMPTS[0]) is None


def test_vllm_refuses_an_adapter(engine: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.generation.vllm_backend.saved_settings", lambda path: object())
    with pytest.raises(UserError, match="holds an adapter"):
        VllmGenerator(tiny_policy(), Decoding(), memory=0.5, gpus=1)
