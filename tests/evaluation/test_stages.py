"""The stages of a judged benchmark, from the checkpoint to the record; each can be repeated and left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.errors import Problems, UserError
from src.evaluation.stages import run_judged
from tests.evaluation.small import (
    Grades,
    answers_of,
    config_of,
    grades,
    openai_judge,
    read_outputs,
    records_in,
    write_outputs,
)
from tests.unit.chat_server import Reply, answer, serving
from tests.unit.generation_tools import tiny_model

MODULE = "src.evaluation.mt_bench"
OPENAI = "src.generation.generators.OpenAI"


def run(folder: Path, benchmark: Grades, **changes: Any) -> int:
    return run_judged(config_of(folder, **changes), benchmark, MODULE, read_outputs)


def writer(url: str, **changes: Any) -> dict[str, Any]:
    return {"_target_": OPENAI, "base_url": url, "model": "writer-1", "concurrency": 2, "tries": 1, **changes}


def script(payload: dict[str, Any], number: int) -> Reply:
    """A writer that quotes what it was asked, and a judge that likes all of it."""
    if payload["model"] == "writer-1":
        return answer(f"{len(payload['messages'])} messages, t={payload['temperature']}")
    return answer("[[4]]", tokens=10)


def test_all_stages_of_a_model_that_answers_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = grades(4, turns=2)
    model = str(tiny_model())
    assert run(tmp_path, benchmark, checkpoint=model, output="json") == 0
    first = capsys.readouterr()
    line = json.loads(first.out)
    assert (line["benchmark"], line["model"], line["judge"]) == ("mt_bench", "model", "oracle")
    assert line["counts"] == {"graded": 8, "unparsable": 0}
    assert "judge: 8 calls" in first.err
    (record,) = records_in(tmp_path)
    assert record["judge"]["name"] == "oracle"
    assert record["judge"]["first"] <= record["judge"]["last"]
    assert record["settings"]["decoding.temperature"] == 0.0
    assert record["command"].startswith("python -m src.evaluation.mt_bench")
    kept = [name for name in record["sources"] if name.startswith("answers ")]
    assert len(kept) == 4  # two turns at two temperatures
    for source in record["sources"].values():
        assert json.loads((Path(source["path"]) / "manifest.json").read_text())["hash"] == source["hash"]
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for stage in ("generate", "judge", "score", "all"):
        assert run(tmp_path, benchmark, checkpoint=model, output="json", stage=stage) == 0
        out = capsys.readouterr().out
        assert out == ("" if stage in ("generate", "judge") else first.out)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert records_in(tmp_path)[0]["metrics"] == record["metrics"]


def test_later_turns_hold_the_models_own_answers_and_each_item_its_temperature(tmp_path: Path) -> None:
    benchmark = grades(4, turns=2)
    with serving(script) as server:
        changes = {"generator": writer(server.base_url), "judge": openai_judge(server.base_url)}
        assert run(tmp_path, benchmark, **changes) == 0
        written = [payload for payload in server.payloads if payload["model"] == "writer-1"]
        assert len(server.payloads) == 16
        assert run(tmp_path, benchmark, **changes) == 0
        assert len(server.payloads) == 16
    drawn = {item.turns[0]: item.temperature for item in benchmark.items()}
    for payload in written:
        messages = payload["messages"]
        assert payload["temperature"] == drawn[messages[0]["content"]]
        if len(messages) > 1:
            roles = [message["role"] for message in messages]
            assert roles == ["user", "assistant", "user"]
            assert messages[1]["content"] == f"1 messages, t={payload['temperature']}"
    assert sum(len(payload["messages"]) == 3 for payload in written) == 4
    assert records_in(tmp_path)[0]["run"]["model"] == "writer-1"


def test_a_dry_run_asks_nobody_and_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = grades(5)
    with serving(script) as server:
        judge = openai_judge(server.base_url, input_price=10.0, output_price=30.0, seconds_per_answer=30.0)
        changes = {"generator": writer(server.base_url), "judge": judge}
        assert run(tmp_path, benchmark, **changes, dry_run=True) == 0
        assert server.payloads == []
        said = capsys.readouterr()
        assert said.out == ""
        assert "answers: 5 to write with OpenAI" in said.err
        assert "judge: 5 calls, about" in said.err
        assert "USD, about 75 s with judge.concurrency=2" in said.err
        assert "not written yet" in said.err
        run(tmp_path, benchmark, **changes, stage="generate")
        capsys.readouterr()
        run(tmp_path, benchmark, **changes, dry_run=True)
        said_then = capsys.readouterr().err
        assert "answers: all 5 are there" in said_then
        assert "judge: 5 calls, about" in said_then
        assert "not written yet" not in said_then
        run(tmp_path, benchmark, **changes)
        capsys.readouterr()
        run(tmp_path, benchmark, **changes, dry_run=True)
        assert "nothing to ask, all 5 judgments are there" in capsys.readouterr().err
        assert len(server.payloads) == 10


def test_a_half_judged_benchmark_is_estimated_by_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, outputs = grades(5), write_outputs(tmp_path / "o.json", answers_of(grades(5)))
    with serving(lambda payload, number: answer("[[1]]") if number < 4 else Reply(status=500)) as server:
        changes = {"outputs": str(outputs), "judge": openai_judge(server.base_url, concurrency=1)}
        with pytest.raises(UserError, match="everything finished is kept"):
            run(tmp_path, benchmark, **changes)
        for kept in ("journal and cache", "journal alone"):
            capsys.readouterr()
            run(tmp_path, benchmark, **changes, dry_run=True)
            assert "judge: 2 calls (3 are there already)" in capsys.readouterr().err, kept
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_stored_answers_take_the_place_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = grades(3)
    answers = dict(reversed(answers_of(benchmark).items()))
    path = write_outputs(tmp_path / "o.json", answers)
    assert run(tmp_path, benchmark, outputs=str(path), output="json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "stored"
    (record,) = records_in(tmp_path)
    assert record["sources"]["answers 1"]["path"] == str(path)
    shards = Path(record["sources"]["judgments"]["path"]) / "shards"
    asked = [json.loads(line) for shard in sorted(shards.iterdir()) for line in shard.open()]
    assert [line["id"] for line in asked] == ["q0:0", "q1:0", "q2:0"]
    assert all(f"answer 0 of q{number}" in line["messages"][0]["content"] for number, line in enumerate(asked))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q1": None}, "1 of 3 questions have no answer (q1)"),
        ({"q9": ("x",)}, "1 answers are to no question of the benchmark (q9)"),
        ({"q1": ("x", "y")}, "1 questions have another number of turns than answers (q1)"),
    ],
)
def test_a_wrong_number_of_answers_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    answers = {**answers_of(grades(3)), **change}
    path = write_outputs(tmp_path / "o.json", {name: value for name, value in answers.items() if value is not None})
    with pytest.raises(UserError) as error:
        run(tmp_path, grades(3), outputs=str(path))
    assert message in str(error.value)
    assert "Give all 3, in any order" in str(error.value)
    assert not (tmp_path / "evaluations").exists()


def test_what_cannot_work_is_said_in_one_list_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    far = "https://api.example.org/v1"
    with pytest.raises(Problems) as error:
        run(tmp_path, grades(2), generator=writer(far), judge=openai_judge(far), checkpoint="runs/x")
    assert len(error.value.problems) == 3
    for fragment in ("checkpoint=runs/x would not be read", "the generator writer-1", "the judge judge-1"):
        assert fragment in str(error.value)
    with pytest.raises(Problems, match="checkpoint has no value"):
        run(tmp_path, grades(2))
    with pytest.raises(Problems, match="judge=oracle knows the toy world alone"):
        run_judged(config_of(tmp_path, benchmark="official", checkpoint="x"), grades(2), MODULE, read_outputs)
    with pytest.raises(Problems, match=r"checkpoint=runs/x would not be read: outputs=o.json"):
        run(tmp_path, grades(2), checkpoint="runs/x", outputs="o.json")
    with pytest.raises(Problems, match="stage=generate has nothing to do"):
        run(tmp_path, grades(2), outputs="o.json", stage="generate")
    judge = {"_target_": "src.evaluation.judges.settings.Replay", "file": "nowhere"}
    with pytest.raises(Problems, match=r"judge.file=nowhere: no such file"):
        run(tmp_path, grades(2), checkpoint=str(tiny_model()), judge=judge)
    assert list(tmp_path.iterdir()) == []


def test_no_key_is_needed_for_what_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    far, model = openai_judge("https://api.example.org/v1"), str(tiny_model())
    assert run(tmp_path, grades(2), checkpoint=model, judge=far, stage="generate") == 0
    assert run(tmp_path, grades(2), checkpoint=model, judge=far, dry_run=True) == 0
    with pytest.raises(UserError, match=r"judgments are not there.*make them by: python -m .*stage=judge"):
        run(tmp_path, grades(2), checkpoint=model, judge=far, stage="score")


def test_scoring_alone_says_how_to_write_the_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"answers of model .* are not there.*stage=generate"):
        run(tmp_path, grades(2), checkpoint=str(tiny_model()), stage="score")
    assert list(tmp_path.iterdir()) == []


def test_replayed_judgments_give_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = grades(3)
    path = write_outputs(tmp_path / "o.json", answers_of(benchmark))
    run(tmp_path, benchmark, outputs=str(path), output="json")
    first = capsys.readouterr().out
    (record,) = records_in(tmp_path)
    judge = {
        "_target_": "src.evaluation.judges.settings.Replay",
        "file": record["sources"]["judgments"]["path"],
    }
    assert run(tmp_path / "again", benchmark, outputs=str(path), judge=judge, output="json") == 0
    assert capsys.readouterr().out == first
    (again,) = records_in(tmp_path / "again")
    assert again["judge"] == record["judge"]


def test_another_rule_of_scoring_needs_no_other_judgments(tmp_path: Path) -> None:
    path = write_outputs(tmp_path / "o.json", answers_of(grades(2)))
    run(tmp_path, grades(2), outputs=str(path))
    assert run(tmp_path, replace(grades(2), rule="median"), outputs=str(path), stage="score") == 0
    first, second = records_in(tmp_path)
    assert first["sources"]["judgments"] == second["sources"]["judgments"]
    assert first["settings"]["rules"] != second["settings"]["rules"]


def test_a_question_that_cannot_be_asked_has_the_empty_answer_and_a_note(tmp_path: Path) -> None:
    benchmark = grades(3)
    long = replace(benchmark.questions[1], turns=(benchmark.questions[1].turns[0] + " please" * 300,))
    benchmark = replace(benchmark, questions=(benchmark.questions[0], long, benchmark.questions[2]))
    with serving(lambda payload, number: answer("[[1]]")) as server:
        judge = openai_judge(server.base_url)
        assert run(tmp_path, benchmark, checkpoint=str(tiny_model()), judge=judge) == 0
        assert len(server.payloads) == 3
    (record,) = records_in(tmp_path)
    assert record["counts"]["not_asked"] == 1
    assert "1 answers are empty because the model could not be asked" in " ".join(record["notes"])


def test_a_trial_says_that_it_is_one(tmp_path: Path) -> None:
    path = write_outputs(tmp_path / "o.json", answers_of(grades(2)))
    run(tmp_path, grades(2), outputs=str(path), max_items=2)
    run(tmp_path, grades(2), outputs=str(path))
    trial = next(record for record in records_in(tmp_path) if record["settings"]["max_items"] == 2)
    assert "only the first 2 items: a trial, not the benchmark" in trial["notes"]
    assert len(records_in(tmp_path)) == 2
