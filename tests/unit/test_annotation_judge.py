"""The judge, before an endpoint on this machine that answers as each test wants."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from src.annotation.annotate import annotate
from src.annotation.inputs import read_corpus
from src.annotation.judge import UNPARSED, Judge, judge_text
from src.data.sources import LocalPairs
from src.errors import UserError
from tests.support import ROOT
from tests.unit.annotation_tools import candidates, options, shard_of, write_generations
from tests.unit.chat_server import ChatServer, Reply, answer, serving

SHARD = shard_of(3, 2)


def graded_text(payload: dict[str, Any]) -> str:
    """The response that a request asks about."""
    match = re.search(r"<answer>\n(.*)\n</answer>", payload["messages"][0]["content"], re.DOTALL)
    assert match
    return match.group(1)


def by_length(payload: dict[str, Any], number: int) -> Reply:
    """A grade from 1 to 10, by the length of the response, after some thoughts."""
    return answer(f"Clear, but long [1].\n[[{1 + len(graded_text(payload)) // 10}]]")


def judge(server: ChatServer, **changes: Any) -> Judge:
    return Judge(server.base_url, "grader", **({"tries": 2, "timeout": 5.0, "concurrency": 2} | changes))


def grades(scorer: Judge, folder: Path) -> list[tuple[float | None, str]]:
    score = scorer.open(folder)
    return [(found.value, found.reason) for batch in scorer.batches(SHARD) for found in score(SHARD, batch)]


def wanted() -> list[tuple[float | None, str]]:
    return [(1.0 + len(response.text) // 10, "") for item in SHARD for response in item.responses]


def test_every_response_is_graded_at_temperature_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-test")
    with serving(by_length) as server:
        scorer = judge(server, key_variable="JUDGE_KEY", extra={"top_p": 1})
        assert grades(scorer, tmp_path) == wanted()
        asked = server.payloads
        assert len(asked) == 6
        assert {header["Authorization"] for header in server.headers} == {"Bearer secret-of-the-test"}
    for payload in asked:
        assert (payload["model"], payload["temperature"], payload["max_tokens"], payload["top_p"]) == (
            "grader",
            0,
            1024,
            1,
        )
        assert "seed" not in payload
    questions = {payload["messages"][0]["content"].split("<conversation>\n")[1].split("\n")[0] for payload in asked}
    assert questions == {item.prompt[0].content for item in SHARD}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "secret-of-the-test" not in kept + json.dumps(scorer.describe())


def test_equal_requests_are_asked_once_and_others_anew(tmp_path: Path) -> None:
    with serving(by_length) as server:
        first = grades(judge(server), tmp_path)
        assert grades(judge(server), tmp_path) == first
        assert len(server.payloads) == 6
        grades(judge(server, max_tokens=99), tmp_path)
        assert len(server.payloads) == 12


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good. [[7]]", 7.0),
        ("[[7]] ... so [[7.0]]", 7.0),
        ("[[6.5]]", 6.5),
        ("[[3]] or rather [[4]]", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("Seven.", None),
        ("", None),
    ],
)
def test_reading_a_grade(text: str, grade: float | None) -> None:
    assert Judge("http://localhost:1/v1", "m").grade(text) == grade


def test_another_pattern_and_scale() -> None:
    scorer = Judge("http://localhost:1/v1", "m", pattern=r"Score: (\S+)", lowest=-1, highest=1)
    assert [scorer.grade(text) for text in ("Score: -0.5", "Score: high", "Score: nan", "Score: 2")] == [
        -0.5,
        None,
        None,
        None,
    ]


def test_an_unreadable_answer_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    shy = SHARD[1].responses[0].text

    def script(payload: dict[str, Any], number: int) -> Reply:
        return (
            answer("I would rather not.")
            if graded_text(payload) == shy and "seed" not in payload
            else by_length(payload, number)
        )

    with serving(script) as server:
        assert grades(judge(server), tmp_path) == wanted()
        assert len(server.payloads) == 7
        assert server.payloads[-1]["seed"] == 1


def test_unreadable_answers_are_bounded_and_counted(tmp_path: Path) -> None:
    mute = SHARD[1].responses[0].text

    def script(payload: dict[str, Any], number: int) -> Reply:
        return answer("No grade.") if graded_text(payload) == mute else by_length(payload, number)

    corpus = read_corpus([str(write_generations(tmp_path / "generations", SHARD))])
    with serving(script) as server:
        scorer = judge(server, attempts=3)
        with pytest.raises(UserError, match=rf"1 of 6 responses have no score \(1 × {UNPARSED}\)"):
            annotate(corpus, scorer, tmp_path / "out", options(tmp_path))
        assert sum(graded_text(payload) == mute for payload in server.payloads) == 3
        manifest = annotate(corpus, scorer, tmp_path / "out", options(tmp_path, max_unscored=0.2))
        assert len(server.payloads) == 5 + 3
    assert manifest["counts"]["unscored"] == {UNPARSED: 1}
    assert manifest["counts"]["skipped"]["fewer than two responses"] == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(429, headers={"Retry-After": "0"}), "status 429"),
        (Reply(500, b"out of memory"), "status 500: out of memory"),
        (Reply(200, b"<html>"), "no chat completion: <html>"),
        (Reply(dropped=True), "RemoteProtocolError"),
        (Reply(delay=1.0), "no answer within 0.3 s"),
    ],
)
def test_an_endpoint_that_fails_ends_clearly_with_everything_kept(tmp_path: Path, reply: Reply, said: str) -> None:
    """After two good answers nothing comes any more; later it does, and only the rest is asked for."""
    corpus = read_corpus([str(write_generations(tmp_path / "generations", SHARD))])
    broken = True

    def script(payload: dict[str, Any], number: int) -> Reply:
        return reply if broken and number > 2 else by_length(payload, number)

    with serving(script) as server:
        scorer = judge(server, timeout=0.3, concurrency=1, tries=1)
        with pytest.raises(UserError, match="gave no usable answer") as failure:
            annotate(corpus, scorer, tmp_path / "out", options(tmp_path))
        assert said in str(failure.value)
        assert "everything finished is kept" in str(failure.value)
        assert failure.value.exit_code == 75
        broken, before = False, len(server.payloads)
        annotate(corpus, scorer, tmp_path / "out", options(tmp_path))
        assert len(server.payloads) - before == 4
    assert LocalPairs(str(tmp_path / "out" / "pairs.jsonl")).fingerprint()


def test_a_refusal_is_not_repeated(tmp_path: Path) -> None:
    with serving(lambda payload, number: Reply(401, b"bad key")) as server:
        with pytest.raises(UserError, match="status 401: bad key; put a valid key into the environment variable"):
            grades(judge(server, concurrency=1), tmp_path)
        assert len(server.payloads) == 1


def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    def made(**changes: Any) -> Judge:
        return Judge("http://localhost:1/v1", "m", **changes)

    for changes, message in (
        ({"pattern": "("}, r"scorer\.pattern='\(' is no regular expression"),
        ({"pattern": r"\d+"}, "has 0 groups; put"),
        ({"lowest": 5.0, "highest": 5.0}, "scorer.lowest=5 must be below"),
        ({"attempts": 0}, "scorer.attempts=0 cannot work"),
        ({"extra": {"temperature": 1}}, "scorer.extra.temperature is set by the judge itself"),
        ({"template": "no_such"}, "scorer.template=no_such is none of helpfulness"),
    ):
        with pytest.raises(UserError, match=message):
            made(**changes)
    (tmp_path / "own.txt").write_text("Grade {{prompt}}")
    with pytest.raises(UserError, match=r"own.txt has no \{\{response\}\}"):
        made(template=str(tmp_path / "own.txt"))
    (tmp_path / "own.txt").write_text("{{prompt}} -> {{response}}")
    one = made(template=str(tmp_path / "own.txt")).describe()
    (tmp_path / "own.txt").write_text("{{prompt}} => {{response}}")
    assert made(template=str(tmp_path / "own.txt")).describe() != one


def test_a_response_cannot_write_into_the_template(tmp_path: Path) -> None:
    shard = [candidates("Look: {{prompt}} {0} \\1")]
    asked = Judge("http://localhost:1/v1", "m").request(judge_text("helpfulness"), shard, (0, 0), 0)
    content = asked.messages[0]["content"]
    assert content.count("{{prompt}}") == 1
    assert content.count("What is red?") == 1


def test_killed_in_the_middle_no_answer_is_paid_for_twice(tmp_path: Path) -> None:
    """A real process, killed without warning while requests are under way."""
    shard = shard_of(8, 2)
    generations = write_generations(tmp_path / "generations", shard)

    def script(payload: dict[str, Any], number: int) -> Reply:
        reply = by_length(payload, number)
        return Reply(reply.status, reply.body, delay=0.05)

    with serving(script) as server:
        command = [
            *(sys.executable, "-m", "src.annotate", f"generations={generations}", f"output={tmp_path / 'out'}"),
            *("scorer=judge", f"scorer.base_url={server.base_url}", "scorer.model=grader", "scorer.concurrency=1"),
            *(f"cache_root={tmp_path / 'cache'}", "scorer.batch_size=3", "shard_size=4"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        ends = time.monotonic() + 60
        while len(server.payloads) < 7 and time.monotonic() < ends and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 7 <= len(server.payloads) < 16
        assert not (tmp_path / "out" / "manifest.json").exists()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(server.payloads) <= 16 + 1  # the one that was under way had no answer yet
        assert done.stdout.splitlines()[0].endswith("of 8 prompts and 16 responses")
