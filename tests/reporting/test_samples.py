"""Samples behind records, read from answers and judgments, and a run's configuration beside its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.config import composed_train
from src.evaluation.records import Record
from src.reporting.pages.comparison import comparison_of, sources_of
from src.reporting.pages.fragments import cleaned
from src.reporting.pages.samples import LONGEST, SHOWN, samples_of
from src.reporting.runs import Run
from tests.reporting.made_up import make_record


def shards(folder: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A directory of one shard, as a source of a record."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder), "hash": "x"}


def said(identity: str, text: str, *shown: str, **more: Any) -> dict[str, Any]:
    """A judgment."""
    return {"id": identity, "text": text, "shown": list(shown), "judge": {"model": "gpt"}, "logprobs": None, **more}


def reply(identity: str, response: str, *turns: str) -> dict[str, Any]:
    """An answer, after user turns with answers between them."""
    prompt = [{"role": "user", "content": turns[0]}]
    for turn in turns[1:]:
        prompt += [{"role": "assistant", "content": "before"}, {"role": "user", "content": turn}]
    return {"prompt_id": identity, "prompt": prompt, "response": response}


def record_of(benchmark: str, **sources: Any) -> Record:
    """A record with these sources."""
    named = {name.replace("_", " ").replace("samples ", "samples/"): source for name, source in sources.items()}
    return replace(make_record(), benchmark=benchmark, sources=named)


def test_both_games_of_arena_hard_make_one_sample(tmp_path: Path) -> None:
    answers = shards(tmp_path / "a", [reply("q1", "mine", "why?"), reply("q2", "also mine", "how?")])
    judgments = [
        said("q1:game-1", "[[B>A]]", "base", "mine"),
        said("q1:game-2", "[[A>>B]]", "mine", "base"),
        said("q2:game-1", "[[A>>B]]", "base", "also mine"),
        said("q2:game-2", "no label", "also mine", "base"),
    ]
    found = samples_of(record_of("arena_hard", answers_1=answers, judgments=shards(tmp_path / "j", judgments)))
    lost, won = found.shown
    assert (won.outcome, won.score) == ("won", "B>A, A>>B: 1.00 of a win")
    assert [text.text for text in won.answers] == ["mine", "base"]
    assert [text.title for text in won.verdicts] == ["gpt, shown the baseline first", "gpt, shown the model first"]
    assert won.prompt[0].text == "why?"
    assert (lost.outcome, lost.score) == ("lost", "A>>B, no label: 0.00 of a win")


def test_turns_of_mt_bench_are_samples_of_their_own(tmp_path: Path) -> None:
    first = shards(tmp_path / "a1", [reply("81", "one", "first?")])
    second = shards(tmp_path / "a2", [reply("81", "two", "first?", "second?")])
    judgments = shards(tmp_path / "j", [said("81:turn-1", "[[7]]", "one"), said("81:turn-2", "none", "two")])
    found = samples_of(record_of("mt_bench", answers_1=first, answers_2=second, judgments=judgments))
    unread, graded = found.shown
    assert (graded.id, graded.outcome, graded.score) == ("81", "graded", "rated 7 of 10")
    assert (unread.id, unread.outcome) == ("81:turn-2", "no verdict")
    assert [text.title for text in unread.prompt] == ["user", "assistant", "user"]
    assert [text.text for text in unread.answers] == ["two"]


@pytest.mark.parametrize(
    ("shown", "likely", "outcome"),
    [(("mine", "base"), "m", "won"), (("mine", "base"), "M", "lost"), (("base", "mine"), "M", "won")],
)
def test_the_first_answer_of_alpaca_eval_is_m(
    tmp_path: Path, shown: tuple[str, str], likely: str, outcome: str
) -> None:
    other = "M" if likely == "m" else "m"
    top = [{"token": likely, "logprob": -0.105360516}, {"token": other, "logprob": -2.302585093}]
    answers = shards(tmp_path / "a", [reply("000", "mine", "why?")])
    judgments = shards(tmp_path / "j", [said("000", likely, *shown, logprobs=[{"top_logprobs": top}])])
    (sample,) = samples_of(record_of("alpaca_eval", answers_1=answers, judgments=judgments)).shown
    assert sample.outcome == outcome
    assert sample.score == f"preferred with probability {0.9 if outcome == 'won' else 0.1:.2f}"


def test_choices_and_answers_of_lm_eval(tmp_path: Path) -> None:
    options = [["2 + 2 =", " 3"], ["2 + 2 =", " 4"]]
    chosen = {"arguments": options, "resps": [[[-3.0, False]], [[-1.0, True]]], "target": 0, "acc": 0.0}
    free = {"arguments": [["1 + 1 ="]], "resps": [["2"]], "target": "2", "exact_match": 1.0}
    path = tmp_path / "s.jsonl"
    lines = [{"doc_id": number, "doc": {}, **row} for number, row in enumerate((chosen, free))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wrong, right = samples_of(record_of("lm_harness", samples_task={"path": str(path)})).shown
    assert [text.text for text in wrong.answers] == [" 4", " 3"]
    assert (wrong.outcome, right.outcome) == ("wrong", "right")
    assert [text.text for text in right.answers] == ["2", "2"]


def test_hard_pairs_of_rm_bench(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "why?", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"]}
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({**row, "score_chosen": [1.0, 2.0, 3.0], "score_rejected": [0.0, 1.5, 2.5]}))
    (sample,) = samples_of(record_of("rm_bench", samples={"path": str(path)})).shown
    assert [text.text for text in sample.answers] == ["c0", "r2"]
    assert (sample.outcome, sample.score) == ("wrong", "6 of 9 comparisons right")


def test_the_worst_and_the_best_of_many_are_shown(tmp_path: Path) -> None:
    answers = shards(tmp_path / "a", [reply(str(number), "x" * (LONGEST + 5), "?") for number in range(100)])
    judged = [said(f"{number}:turn-1", f"[[{number / 10}]]") for number in range(100)]
    found = samples_of(record_of("mt_bench", answers_1=answers, judgments=shards(tmp_path / "j", judged)))
    assert (len(found.shown), found.total) == (SHOWN, 100)
    assert [sample.rank for sample in found.shown[:2]] == [0.0, 0.1]
    assert [sample.rank for sample in found.shown[-2:]] == [9.8, 9.9]
    assert found.notes == ("20 of 100: the 8 worst, 4 from the middle and the 8 best.",)
    assert (len(found.shown[0].answers[0].shown), found.shown[0].answers[0].rest) == (LONGEST, 5)


def test_absent_and_damaged_files_are_notes(tmp_path: Path) -> None:
    gone = {"path": str(tmp_path / "gone")}
    (note,) = samples_of(record_of("mt_bench", answers_1=gone, judgments=gone)).notes
    assert str(tmp_path / "gone") in note
    assert "not on this machine" in note
    shards(tmp_path / "a", [])
    (tmp_path / "a" / "shards" / "000000.jsonl").write_text("{half")
    (note,) = samples_of(record_of("mt_bench", judgments={"path": str(tmp_path / "a")})).notes
    assert "cannot be read" in note
    assert samples_of(record_of("mt_bench")).notes
    assert samples_of(make_record()).shown == ()


# --- the configuration beside its recipe


def test_what_differs_from_the_recipe_and_the_defaults_is_said(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    given = [
        "method=amapo",
        "model=tiny",
        "dataset=toy",
        "method.beta=7.5",
        "noise=random_flip",
        "training.max_steps=9",
    ]
    composed = OmegaConf.to_container(composed_train(given), resolve=True)
    assert isinstance(composed, dict)
    del composed["adapter"]
    found = comparison_of(Run(tmp_path, {str(key): value for key, value in composed.items()}))
    assert found.file == "conf/recipe/amapo__tiny.yaml"
    assert [(one.key, one.here, one.there) for one in found.different] == [("method.beta", "7.5", "10")]
    assert found.different[0].source == "calibration on the toy world, docs/toy_world.md"
    others = {one.key: (one.here, one.there) for one in found.others}
    assert others.pop("training.max_steps") == ("9", "null")
    assert {key.partition(".")[0] for key in others} == {"noise"}
    assert "adapter.name" in found.missing


def test_a_run_of_unknown_names_has_nothing_to_compare_with(tmp_path: Path) -> None:
    for name in ("../../etc", "nothing_of_the_kind"):
        found = comparison_of(Run(tmp_path, {"method": {"name": name}}))
        assert found.note == f"there is no conf/method/{name}.yaml to compare with"


def test_every_key_of_a_recipe_has_its_comment(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("a:  # section\n  b: 1.0e-4  # source: here\n  c: {d: x}  # source: there\ne: 2\n")
    assert sources_of(file) == {"a.b": "here", "a.c.d": "", "e": ""}
    assert yaml.safe_load(file.read_text())["a"]["b"] == 1.0e-4


# --- fragments


def test_a_fragment_keeps_tables_and_nothing_that_runs() -> None:
    text = '<table class="x" style="a" onclick="b"><caption>T &amp; t</caption><tr><td>1 < 2 abcdef0123</td></table>'
    found = cleaned(f"{text}<script>x()</script><a href='javascript:y()'>z</a>", "name", {"abcdef0123": "run.html"})
    assert "script" not in found.body
    assert "onclick" not in found.body
    assert '<table class="x"><caption>T &amp; t</caption>' in found.body
    assert '1 &lt; 2 <a href="run.html">abcdef0123</a></td></tr></table></div>z' in found.body
    assert (found.title, found.hashes) == ("T & t", ("abcdef0123",))
    assert cleaned("text alone", "a_name", {}).title == "a name"
