"""The judges one by one: oracle, replay, and what settings refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.build import build
from src.data.pairs import Message
from src.data.toy.benchmarks import instructions
from src.data.toy.scorer import judge_preference, score_response
from src.errors import UserError
from src.evaluation.judges.base import JudgeRequest, Opinion
from src.evaluation.judges.settings import OpenAI, Oracle, Replay, on_this_machine
from src.evaluation.judging import judge_all
from src.generation.client import Completion
from tests.evaluation.small import answers_of, grades, spoken
from tests.support import ROOT

PROMPT = instructions(1)[0]


def request_of(*answers: str, prompt: Any = PROMPT, heard: list[Opinion] | None = None) -> JudgeRequest:
    def speak(opinion: Opinion) -> Completion:
        if heard is not None:
            heard.append(opinion)
        return spoken(opinion)

    return JudgeRequest("r", ({"role": "user", "content": "?"},), {}, prompt, answers, speak)


def test_the_oracle_grades_by_the_toy_worlds_rules(tmp_path: Path) -> None:
    heard: list[Opinion] = []
    one, two = request_of("red", heard=heard), request_of("red", "a longer one, blue", heard=heard)
    found = dict(Oracle(length_bias=0.8, temperature=0.5).open(tmp_path).answer([one, two]))
    assert sorted(found) == [0, 1]
    assert "[[" in found[0].text
    assert found[0].date
    graded, compared = heard
    assert graded.preference is None
    assert graded.scores[0] == pytest.approx(score_response(PROMPT, "red").overall + 0.8 * 3 / 120)
    assert compared.preference == judge_preference(PROMPT, *two.answers, length_bias=0.8, temperature=0.5)
    assert len(compared.scores) == 2


def test_the_oracle_knows_the_toy_world_alone(tmp_path: Path) -> None:
    foreign = request_of("x", prompt=(Message("user", "Who wrote Hamlet?"),))
    with pytest.raises(UserError, match=r"judge=oracle cannot judge request r.*benchmark=toy"):
        list(Oracle().open(tmp_path).answer([foreign]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"tries": 0}, "tries=0"),
        ({"timeout": 0.0}, "timeout=0"),
        ({"input_price": -1.0}, "input_price=-1"),
        ({"seconds_per_answer": -1.0}, "seconds_per_answer=-1"),
        ({"extra": {"messages": []}}, "extra.messages"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OpenAI("http://127.0.0.1:1/v1", "m", **change)
    with pytest.raises(UserError, match="temperature=-1"):
        Oracle(temperature=-1)


def test_a_key_is_wanted_elsewhere_but_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    far = OpenAI("https://api.example.org/v1", "m", "SOME_KEY")
    (problem,) = far.problems()
    assert "SOME_KEY" in problem
    assert "export SOME_KEY=" in problem
    assert OpenAI("http://127.0.0.1:8000/v1", "m", "SOME_KEY").problems() == []
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    assert far.problems() == []
    assert "sk-secret" not in repr(far)
    monkeypatch.setenv("SOME_KEY", "sk-\nsecret")
    assert "holds no key" in far.problems()[0]
    assert "no address" in OpenAI("api.example.org", "m").problems()[0]


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.3.2.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://10.0.0.1/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example.org/v1", False),
    ],
)
def test_loopback_addresses(url: str, here: bool) -> None:
    assert on_this_machine(url) is here


def test_every_choice_of_conf_judge_can_be_built() -> None:
    given = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "file": "x"}
    models = {}
    for path in sorted((ROOT / "conf" / "judge").glob("*.yaml")):
        node: Any = OmegaConf.load(path)
        bases = [
            OmegaConf.load(path.with_name(f"{name}.yaml")) for name in node.pop("defaults", []) if name != "_self_"
        ]
        merged: Any = OmegaConf.merge(*bases, node)
        for key in OmegaConf.missing_keys(merged):
            merged[key] = given[key]
        models[path.stem] = build(merged, "judge")
    assert models["gpt4_1106_preview"].model == "gpt-4-1106-preview"
    assert (models["gpt4_1106_preview"].input_price, models["gpt4_1106_preview"].output_price) == (10.0, 30.0)
    assert (models["gpt4"].model, models["gpt4"].input_price, models["gpt4"].output_price) == ("gpt-4", 30.0, 60.0)
    assert isinstance(models["oracle"], Oracle)
    assert isinstance(models["replay"], Replay)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Judgments of the oracle about four answers."""
    benchmark = grades(4)
    directory = tmp_path / "stored"
    judge_all(Oracle().open(tmp_path), benchmark, benchmark.requests(answers_of(benchmark)), directory, 3, print)
    return directory


def test_replay_answers_as_the_stored_judge_did(stored: Path, tmp_path: Path) -> None:
    benchmark = grades(4)
    requests = benchmark.requests(answers_of(benchmark))
    replay = Replay(str(stored)).open(tmp_path)
    assert replay.describe() == Oracle().open(tmp_path).describe()
    again = judge_all(replay, benchmark, requests, tmp_path / "again", 2, print)
    first = judge_all(Oracle().open(tmp_path), benchmark, requests, stored, 3, print)
    assert again == first
    assert [one.answers[0].date for one in again] == [one.answers[0].date for one in first]
    one_file = tmp_path / "all.jsonl"
    one_file.write_text("".join(path.read_text() for path in sorted((stored / "shards").iterdir())))
    assert dict(Replay(str(one_file)).open(tmp_path).answer(requests)) == dict(replay.answer(requests))


def test_replay_refuses_what_was_judged_about_something_else(stored: Path, tmp_path: Path) -> None:
    benchmark = grades(5)
    answers = {**answers_of(benchmark), "q1": ("another answer",)}
    replay = Replay(str(stored)).open(tmp_path)
    with pytest.raises(UserError) as error:
        list(replay.answer(benchmark.requests(answers)))
    message = str(error.value)
    assert "1 of 5 requests were judged about something else" in message
    assert "(q1:0)" in message
    assert "1 of 5 were not judged (q4:0)" in message
    changed = replace(grades(4), settings={"temperature": 1})
    with pytest.raises(UserError, match="4 of 4 requests were judged about something else"):
        list(replay.answer(changed.requests(answers_of(changed))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a"}\n', "1: field 'text' is missing"),
        ("{}\n[]\n", "field 'text' is missing"),
        ("not json\n", "not valid JSON"),
        ("", "is empty"),
    ],
)
def test_replay_of_what_is_no_judgment(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        Replay(str(path)).open(tmp_path)


def test_replay_of_two_judges_or_of_nothing(stored: Path, tmp_path: Path) -> None:
    shard = stored / "shards" / "000001.jsonl"
    line = json.loads(shard.read_text())
    shard.write_text(json.dumps({**line, "judge": {"name": "openai", "model": "gpt-4"}}) + "\n")
    with pytest.raises(UserError, match=r"2 judges \(oracle oracle, openai gpt-4\)"):
        Replay(str(stored)).open(tmp_path)
    assert "no such file" in Replay(str(tmp_path / "nowhere")).problems()[0]
    with pytest.raises(UserError, match="holds no shards"):
        Replay(str(tmp_path)).open(tmp_path)
