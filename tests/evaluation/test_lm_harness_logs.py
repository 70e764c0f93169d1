"""Per-sample logs of lm-eval scored again: from ours, from lm-eval's own files, and every rule for damaged ones."""

from __future__ import annotations

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from tests.entry import assert_says, refused
from tests.evaluation.harness_tools import PROGRAM, harness, printed, riddles, sums, write_lines

NAN = float("nan")


def choice_row(number: int, lls: list[float], document: dict[str, Any] | None = None) -> dict[str, Any]:
    """A sample of arc_challenge as ``simple_evaluate`` gives it, the metrics left at 0."""
    document = document or riddles(number, 1)[0]
    texts = document["choices"]["text"]
    return {
        "doc_id": number,
        "doc": document,
        "target": document["choices"]["label"].index(document["answerKey"]),
        "arguments": [(f"Question: {document['question']}\nAnswer:", f" {text}") for text in texts],
        "resps": [[(ll, False)] for ll in lls],
        "filtered_resps": [(ll, False) for ll in lls],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": 0.0,
        "acc_norm": 0.0,
    }


def document(texts: list[str], answer: int) -> dict[str, Any]:
    choices = {"text": texts, "label": list("ABCD")[: len(texts)]}
    return {"id": "x", "question": "Which?", "choices": choices, "answerKey": "ABCD"[answer]}


def sum_rows(number: int, response: str) -> list[dict[str, Any]]:
    """The two samples of a gsm8k document, one for each filter, with wrong logged values."""
    row = sums(number, 1)[0]
    base = {
        "doc_id": number,
        "doc": row,
        "target": row["answer"],
        "arguments": [(f"Question: {row['question']}\nAnswer:", {"until": ["Question:"]})],
        "resps": [[response]],
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": 0.0,
    }
    return [{**base, "filter": name, "filtered_resps": ["?"]} for name in ("strict-match", "flexible-extract")]


def right(number: int) -> str:
    return sums(number, 1)[0]["answer"].rpartition(" ")[2]


GENERATED = [
    *sum_rows(0, f"So it is {right(0)}.\n#### {right(0)}"),  # right for both
    *sum_rows(1, f"The answer is ${right(1)}."),  # no ####: right for the flexible filter alone
    *sum_rows(2, f"#### {int(right(2)) + 1} or rather {right(2)}"),  # the last number counts for the flexible one
    *sum_rows(3, "no number at all"),
]


def scored(tmp_path: Path, *overrides: str) -> list[dict[str, Any]]:
    return printed(harness(tmp_path, "stage=score", *overrides))


def ours(path: Path, rows: list[dict[str, Any]], model: str = "m", task: str = "arc_challenge") -> Path:
    """A log as this program writes it."""
    from src.evaluation.harness.samples import sample_line

    path.write_bytes(b"".join(sample_line(model, task, row) for row in rows))
    return path


def by_lm_eval(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    """The same by lm-eval's own writer (``--log_samples``)."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "their__model"
    tracker.date_id = "2024-11-20T10-11-12.131415"
    tracker.save_results_samples(task_name=task, samples=copy.deepcopy(rows))
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return path


def test_generated_answers_are_extracted_and_compared_again(tmp_path: Path) -> None:
    (scores,) = scored(tmp_path, f"samples={ours(tmp_path / 'log.jsonl', GENERATED, task='gsm8k')}")
    assert scores["gsm8k/exact_match/strict-match"] == 0.25
    assert scores["gsm8k/exact_match/flexible-extract"] == 0.75
    assert scores["gsm8k/exact_match/strict-match_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert scores["gsm8k/exact_match/strict-match_high"] == pytest.approx(0.25 + 1.96 * 0.25)
    assert scores["counts"]["gsm8k/documents"] == 4
    assert scores["counts"]["gsm8k/differs_from_log"] == 4
    assert scores["notes"] == []
    assert not (tmp_path / "records").exists()


def test_choices_are_taken_by_sum_and_by_sum_over_characters(tmp_path: Path) -> None:
    texts = ["ox", "a much longer answer", "cat"]
    rows = [
        choice_row(0, [-4.0, -9.0, -8.0], document(texts, 1)),  # -2, -.45, -2.7: the long one by characters
        choice_row(1, [-4.0, -9.0, -8.0], document(texts, 0)),
        choice_row(2, [-9.0, -99.0, -3.0], document(texts, 2)),  # -4.5, -4.95, -1
    ]
    (scores,) = scored(tmp_path, f"samples={ours(tmp_path / 'log.jsonl', rows)}")
    assert scores["arc_challenge/acc"] == pytest.approx(2 / 3)
    assert scores["arc_challenge/acc_norm"] == pytest.approx(2 / 3)
    assert scores["counts"]["arc_challenge/ties_acc"] == 0
    assert scores["counts"]["arc_challenge/differs_from_log"] == 4


def test_lm_evals_own_files_score_as_ours(tmp_path: Path) -> None:
    choices = [choice_row(number, [-3.0 - number, -4.0, -2.5 - 1e-9 * number][:3]) for number in (3, 7)]
    theirs = [
        by_lm_eval(tmp_path / "theirs", "arc_challenge", choices),
        by_lm_eval(tmp_path / "theirs", "gsm8k", GENERATED),
    ]
    mine = [
        ours(tmp_path / "arc.jsonl", choices, "their__model"),
        ours(tmp_path / "gsm8k.jsonl", GENERATED, "their__model", "gsm8k"),
    ]
    assert isinstance(json.loads(theirs[0].read_text().splitlines()[0])["arguments"], dict)
    files = [f"samples=[{one[0]},{one[1]}]" for one in (theirs, mine)]
    assert scored(tmp_path, files[0]) == scored(tmp_path, files[1])
    assert scored(tmp_path, f"samples={tmp_path / 'theirs'}") == scored(tmp_path, files[1])
    with gzip.open(tmp_path / "samples_gsm8k_2024-11-20T10-11-12.13.jsonl.gz", "wb") as file:
        file.write(theirs[1].read_bytes())
    (packed,) = scored(tmp_path, f"samples={tmp_path / 'samples_gsm8k_2024-11-20T10-11-12.13.jsonl.gz'}")
    assert packed["model"] == tmp_path.name
    assert packed["gsm8k/exact_match/flexible-extract"] == 0.75


def test_ties_nan_repetitions_and_gaps(tmp_path: Path) -> None:
    texts = ["aa", "bb", "cc"]
    rows = [
        choice_row(0, [-2.0, -2.0, -3.0], document(texts, 1)),  # a tie: the first is taken, which is wrong
        choice_row(1, [-2.0, -2.0, -3.0], document(texts, 0)),  # a tie: right
        choice_row(2, [-1.0, NAN, -3.0], document(texts, 1)),  # NaN is taken: right
        choice_row(2, [-1.0, NAN, -3.0], document(texts, 1)),  # the same again
        choice_row(5, [-1.0, -2.0, -3.0], document(texts, 0)),  # 3 and 4 have no row
        choice_row(5, [-4.0, -2.0, -3.0], document(texts, 0)),  # another answer to the same
    ]
    (scores,) = scored(tmp_path, f"samples={ours(tmp_path / 'log.jsonl', rows)}")
    assert scores["arc_challenge/acc"] == 0.75
    counts = {name.removeprefix("arc_challenge/"): count for name, count in scores["counts"].items()}
    assert counts == {
        "documents": 4,
        "missing": 2,
        "duplicates": 1,
        "conflicting_duplicates": 1,
        "nan_loglikelihoods": 1,
        "ties_acc": 2,
        "ties_acc_norm": 2,
        "differs_from_log": 6,
    }
    assert_says(" ".join(scores["notes"]), "2 documents before the last one have no row", "contradict each other")


def test_several_models_keep_their_order_and_a_list_file_is_read(tmp_path: Path) -> None:
    one = choice_row(0, [-1.0, -2.0], document(["a", "b"], 0))
    other = choice_row(0, [-3.0, -2.0], document(["a", "b"], 0))
    first = ours(tmp_path / "first.jsonl", [one], "zebra")
    second = ours(tmp_path / "second.jsonl", [other], "ant")
    found = scored(tmp_path, f"samples=[{first},{second}]")
    assert [(scores["model"], scores["arc_challenge/acc"]) for scores in found] == [("zebra", 1.0), ("ant", 0.0)]
    assert found[0]["arc_challenge/acc_stderr"] is None  # of a single document
    listed = tmp_path / "samples_arc_challenge.json"
    listed.write_text(json.dumps([one, other | {"doc_id": 1}]))
    (scores,) = scored(tmp_path, f"samples={listed}")
    assert (scores["model"], scores["arc_challenge/acc"]) == ("samples_arc_challenge", 0.5)
    (shaped,) = scored(tmp_path, f"samples={first.rename(tmp_path / 'any.jsonl')}", "tasks=[arc_challenge]")
    assert shaped["arc_challenge/acc"] == 1.0


def test_tasks_that_lm_eval_does_not_know(tmp_path: Path) -> None:
    """Choices by their continuations; anything else by what was logged."""
    row = choice_row(0, [-4.0, -9.0], document(["ox", "a much longer one"], 1))
    unknown = {**row, "doc": {"q": "Which?"}, "acc": 0.0, "acc_norm": 1.0}
    (scores,) = scored(tmp_path, f"samples={ours(tmp_path / 'a.jsonl', [unknown], task='my_choice')}")
    assert (scores["my_choice/acc"], scores["my_choice/acc_norm"]) == (0.0, 1.0)
    assert scores["counts"]["my_choice/differs_from_log"] == 0
    logged = [
        {**sum_rows(number, "x")[0], "doc": {"q": "?"}, "metrics": ["rouge", "pairs"], "rouge": value, "pairs": [1, 2]}
        for number, value in enumerate((0.25, 0.75))
    ]
    (scores,) = scored(tmp_path, f"samples={ours(tmp_path / 'b.jsonl', logged, task='my_summary')}")
    assert scores["my_summary/rouge/strict-match"] == 0.5
    assert_says(" ".join(scores["notes"]), "means of the logged values", "pairs cannot be averaged")


def test_averages_of_suites_need_every_member(tmp_path: Path) -> None:
    from src.evaluation.harness.metrics import suite_average
    from src.evaluation.harness.suites import read_suite

    log = ours(tmp_path / "log.jsonl", GENERATED, task="gsm8k")
    (scores,) = scored(tmp_path, f"samples={log}", "tasks=[open_llm_v1]")
    assert scores["open_llm_v1/average"] is None
    assert_says(" ".join(scores["notes"]), "5 of 6 members are missing: arc_challenge, hellaswag, truthfulqa_mc2, mmlu")
    suite = read_suite("open_llm_v1")
    names = ["arc_challenge/acc_norm", "hellaswag/acc_norm", "truthfulqa_mc2/acc", "mmlu/acc", "winogrande/acc"]
    metrics: dict[str, Any] = {}
    for number, name in enumerate([*names, "gsm8k/exact_match/strict-match"]):
        metrics[name] = {"value": 0.1 * number, "low": None, "high": None, "n": 9}
        metrics[f"{name}_stderr"] = {"value": 0.03, "low": None, "high": None, "n": 9}
    average = suite_average(suite, metrics)
    assert average["open_llm_v1/average"]["value"] == pytest.approx(0.25)
    assert average["open_llm_v1/average_stderr"]["value"] == pytest.approx(0.03 / math.sqrt(6))
    members = {member.wanted.task: (member.wanted.num_fewshot, member.metric) for member in suite.members}
    assert members["arc_challenge"] == (25, ("acc_norm",))
    assert members["gsm8k"] == (5, ("exact_match/strict-match",))
    assert [shots for shots, _ in members.values()] == [25, 10, 0, 5, 5, 5]
    assert all(member.wanted.num_fewshot is None for member in read_suite("amapo_script").members)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    score = ["stage=score", f"cache_root={tmp_path}"]
    good = choice_row(0, [-1.0, -2.0], document(["a", "b"], 0))
    log = ours(tmp_path / "log.jsonl", [good])
    again = ours(tmp_path / "again.jsonl", [good])
    plain = write_lines(tmp_path / "plain.jsonl", [{"text": "x"}])
    assert_says(refused(PROGRAM, *score), "stage=score needs samples=FILE")
    assert_says(refused(PROGRAM, *score, f"samples={plain}"), "plain.jsonl:1: no sample of lm-eval", "doc_id, doc")
    assert_says(refused(PROGRAM, *score, f"samples=[{log},{again}]"), "both hold arc_challenge of m", "give one")
    assert_says(refused(PROGRAM, *score, f"samples={log}", "checkpoint=x"), "checkpoint=x would not be read")
    assert_says(refused(PROGRAM, *score, f"samples={tmp_path / 'none'}"), "no such file")
    assert_says(refused(PROGRAM, *score, f"samples={log}", "tasks=[a,b]"), "hold no log of these")
    (tmp_path / "empty").mkdir()
    assert_says(refused(PROGRAM, *score, f"samples={tmp_path / 'empty'}"), "a folder without a file named samples_")
