"""UltraChat, the whole of UltraFeedback, the on-policy sets and HH's subsets: small files of the hub's schemas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.data.pairs import Message, PreferencePair
from src.data.sources import HHRLHF, OnPolicy, ScoredSource, Skipped, Source, UltraChat, UltraFeedbackFull
from src.errors import UserError
from tests.unit.data_tools import write_lines

FORMATS = ["rows.parquet", "rows.jsonl", "rows.jsonl.gz"]


def written(path: Path, rows: list[Any]) -> str:
    """The rows as parquet or JSON lines, by the name."""
    if path.suffix != ".parquet":
        return write_lines(path, rows)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def reasons(source: Any) -> Counter[str]:
    return Counter(record.reason for record in source.records() if isinstance(record, Skipped))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# --- UltraChat --------------------------------------------------------------------------------------------------------


def chat(*contents: str, system: bool = False) -> dict[str, Any]:
    turns = [turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(contents)]
    head = [turn("system", "be kind")] if system else []
    return {"prompt": contents[0], "prompt_id": "0" * 64, "messages": head + turns}


@pytest.mark.parametrize("name", FORMATS)
def test_every_assistant_turn_is_supervised_once_in_its_context(tmp_path: Path, name: str) -> None:
    rows = [chat("a", "b", "c", "d", system=True), chat("e", "f"), chat("g")]
    source = UltraChat(path=written(tmp_path / name, rows))
    first, second, third = source.demonstrations()
    system, user = Message("system", "be kind"), Message("user", "a")
    assert (first.id, first.prompt, first.response) == ("uc-000001/1", (system, user), "b")
    later = (system, user, Message("assistant", "b"), Message("user", "c"))
    assert (second.id, second.prompt, second.response) == ("uc-000001/2", later, "d")
    assert first.opening == second.opening == first.prompt
    assert (third.id, third.response) == ("uc-000002/1", "f")
    assert list(source.pairs()) == []
    assert reasons(source) == {"no assistant turn": 1}


def test_the_last_turn_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "u.jsonl", [chat("a", "b", "c", "d"), chat("e", "f", "g")])
    last = UltraChat(path=path, turns="last")
    assert [(found.id, found.response) for found in last.demonstrations()] == [
        ("uc-000001/2", "d"),
        ("uc-000002/1", "f"),
    ]
    assert last.fingerprint() != UltraChat(path=path).fingerprint()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "a"}, "u.jsonl:2: field 'messages' is missing"),
        ({"messages": "a"}, "u.jsonl:2: field 'messages' must be a list"),
        ({"messages": [turn("user", "a"), {"role": "assistant"}]}, "u.jsonl:2: message 1: field 'content' is missing"),
        (
            {"messages": [turn("assistant", "a")]},
            "u.jsonl:2: message 0: .* 'prompt' must be a string or a non-empty list",
        ),
        (
            {"messages": [turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")]},
            "u.jsonl:2: message 2: a prompt must end with a user turn",
        ),
    ],
)
def test_a_bad_conversation_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    source = UltraChat(path=written(tmp_path / "u.jsonl", [chat("a", "b"), row]))
    with pytest.raises(UserError, match=complaint):
        list(source.demonstrations())


# --- the whole of UltraFeedback ---------------------------------------------------------------------------------------


def completion(model: str, overall: Any, *ratings: Any) -> dict[str, Any]:
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "because"} for name, rating in zip(names, ratings or "5555", strict=True)
    }
    return {
        "model": model,
        "principle": "honesty",
        "custom_system_prompt": "be honest",
        "response": f"by {model}",
        "overall_score": overall,
        "fine-grained_score": 3.0,
        "critique": "fine",
        "annotations": annotations,
    }


def instruction(text: str, *completions: dict[str, Any], source: str = "flan") -> dict[str, Any]:
    return {
        "source": source,
        "instruction": text,
        "models": [found["model"] for found in completions],
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


ROWS = [
    instruction(
        "why",
        completion("gpt-4", 7.0, "5", "N/A", "4", "3"),
        completion("alpaca-7b", 7.5, "2", "2", "2", "2"),
        completion("bard", 4.0, "N/A", "N/A", "N/A", "N/A"),
    ),
    instruction("true?", completion("gpt-4", 9.0), completion("bard", 1.0), source="truthful_qa"),
    instruction("one", completion("gpt-4", 9.0)),
]


@pytest.mark.parametrize("name", FORMATS)
def test_ultrafeedback_gives_responses_with_writers_and_aspects(tmp_path: Path, name: str) -> None:
    source = UltraFeedbackFull(path=written(tmp_path / name, ROWS), score="aspects")
    first = next(iter(source.scored_responses()))
    assert first.prompt == (Message("user", "why"),)
    assert [found.writer for found in first.responses] == ["gpt-4", "alpaca-7b", "bard"]
    assert [found.score for found in first.responses] == [4.0, 2.0, None]
    assert first.responses[0].aspects == (
        ("instruction_following", 5.0),
        ("honesty", None),
        ("truthfulness", 4.0),
        ("helpfulness", 3.0),
    )
    pair = PreferencePair(
        "ultrafeedback-000001/0-1", first.prompt, "by gpt-4", "by alpaca-7b", 4.0, 2.0, "gpt-4", "alpaca-7b"
    )
    assert list(source.pairs()) == [pair]


def test_unrated_aspects_and_responses_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "uf.jsonl", ROWS)
    assert reasons(UltraFeedbackFull(path=path, score="aspects")) == {
        "rating N/A (left out of a mean)": 1,
        "response without a score": 1,
        "tied scores": 1,
        "fewer than two responses": 1,
    }
    overall = UltraFeedbackFull(path=path, leave_out=("truthful_qa",))
    assert reasons(overall) == {"left out: truthful_qa": 1, "fewer than two responses": 1}
    (only,) = overall.pairs()
    assert (only.id, only.chosen_score, only.rejected_score) == ("ultrafeedback-000001/1-2", 7.5, 4.0)
    assert (only.chosen_writer, only.rejected_writer) == ("alpaca-7b", "bard")


def test_pairing_and_score_are_options(tmp_path: Path) -> None:
    path = written(tmp_path / "uf.jsonl", ROWS)
    variants = [
        UltraFeedbackFull(path=path),
        UltraFeedbackFull(path=path, score="aspects"),
        UltraFeedbackFull(path=path, pairing="all_pairs"),
        UltraFeedbackFull(path=path, min_gap=1.0),
        UltraFeedbackFull(path=path, leave_out=("flan",)),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert [len(list(variant.pairs())) for variant in variants] == [2, 1, 4, 2, 1]


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({"instruction": None}, {}, "uf.jsonl:2: field 'instruction' is missing"),
        ({"completions": {}}, {}, "uf.jsonl:2: field 'completions' must be a list"),
        ({"completions": [{"response": "a"}]}, {}, "uf.jsonl:2: completion 0: field 'model' is missing"),
        (
            {"completions": [{"model": "m", "response": "a"}]},
            {},
            "uf.jsonl:2: completion 0: field 'overall_score' is missing",
        ),
        ({"completions": [completion("m", "high")]}, {}, "completion 0: field 'overall_score' must be a number"),
        (
            {"completions": [{"model": "m", "response": "a", "annotations": {}}]},
            {"score": "aspects"},
            "completion 0: field 'instruction_following' is missing",
        ),
        (
            {"completions": [completion("m", 1.0, "5", "good", "5", "5")]},
            {"score": "aspects"},
            "completion 0: annotations.honesty.Rating must be a number or N/A, not 'good'",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], options: dict[str, Any], complaint: str) -> None:
    path = written(tmp_path / "uf.jsonl", [ROWS[0], ROWS[1] | change])
    with pytest.raises(UserError, match=complaint):
        list(UltraFeedbackFull(path=path, **options).pairs())


def test_one_response_per_prompt_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "uf.jsonl", [ROWS[2], ROWS[2]])
    with pytest.raises(
        UserError, match=r"none of the 2 prompts .* has two responses.* several responses a prompt, or pairs"
    ):
        list(UltraFeedbackFull(path=path).pairs())


def test_a_directory_is_all_its_data_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not data")
    for name, row in zip(("b.jsonl", "a.parquet"), ROWS, strict=False):
        written(tmp_path / name, [row])
    items = list(UltraFeedbackFull(path=str(tmp_path)).scored_responses())
    assert [item.prompt[0].content for item in items] == ["true?", "why"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a directory without a file that ends in .parquet, .jsonl, .jsonl.gz"):
        list(UltraFeedbackFull(path=str(tmp_path / "empty")).pairs())


# --- on-policy sets ---------------------------------------------------------------------------------------------------


def on_policy(number: int, texts: list[str], scores: list[Any], chosen: int, rejected: int) -> dict[str, Any]:
    question = f"question {number}"
    return {
        "prompt_id": f"{number:064d}",
        "prompt": question,
        "all_generated_responses": texts,
        "all_rm_scores": scores,
        "chosen": [turn("user", question), turn("assistant", texts[chosen])],
        "rejected": [turn("user", question), turn("assistant", texts[rejected])],
    }


def armorm(**options: Any) -> OnPolicy:
    return OnPolicy(hub_id="princeton-nlp/llama3-ultrafeedback-armorm", writer="llama", **options)


@pytest.mark.parametrize("name", FORMATS)
def test_published_pairs_find_their_scores(tmp_path: Path, name: str) -> None:
    rows = [
        on_policy(1, ["a", "b", "c"], [0.1, 0.3, 0.2], 1, 0),
        on_policy(2, ["a", "a ", "b", "b"], [0.4, 0.5, 0.2, 0.1], 0, 3),
    ]
    source = armorm(path=written(tmp_path / name, rows))
    first, second = source.pairs()
    assert first == PreferencePair("op-000001", (Message("user", "question 1"),), "b", "a", 0.3, 0.1, "llama", "llama")
    assert (second.chosen_score, second.rejected_score) == (0.5, 0.1)
    items = list(source.scored_responses())
    assert [found.score for found in items[0].responses] == [0.1, 0.3, 0.2]
    assert {found.writer for item in items for found in item.responses} == {"llama"}
    assert items[0].prompt == first.prompt


def test_pairs_of_all_responses(tmp_path: Path) -> None:
    path = written(tmp_path / "o.jsonl", [on_policy(1, ["a", "b", "c"], [0.1, 0.3, None], 0, 1)])
    best = armorm(path=path, pairing="best_worst")
    assert [found.id for found in best.pairs()] == ["op-000001/1-0"]
    assert reasons(best) == {"response without a score": 1}
    published, fewer = armorm(path=path), armorm(path=path, pairing="random", pairs_per_prompt=1)
    assert len({published.fingerprint(), best.fingerprint(), fewer.fingerprint()}) == 3


def test_a_published_response_that_is_not_listed_has_no_score(tmp_path: Path) -> None:
    row = on_policy(1, ["a", "b"], [0.1, 0.3], 1, 0)
    row["chosen"][-1]["content"] = "another"
    (only,) = armorm(path=written(tmp_path / "o.jsonl", [row])).pairs()
    assert (only.chosen_score, only.rejected_score) == (None, 0.1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"all_rm_scores": [0.1]}, "2 responses in 'all_generated_responses', but 1 scores in 'all_rm_scores'"),
        ({"all_rm_scores": None}, "field 'all_rm_scores' is missing"),
        ({"all_rm_scores": [0.1, "b"]}, "response 1: field 'all_rm_scores' must be a number"),
        ({"all_generated_responses": ["a", 1]}, "response 1 of 'all_generated_responses' must be a string"),
        ({"all_generated_responses": "ab"}, "field 'all_generated_responses' must be a list"),
        ({"chosen": "a"}, "field 'chosen' must be a list of messages"),
    ],
)
def test_a_bad_on_policy_row_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    row = on_policy(1, ["a", "b"], [0.1, 0.3], 1, 0)
    source = armorm(path=written(tmp_path / "o.jsonl", [row, row | change]))
    with pytest.raises(UserError, match=f"o.jsonl:2: {complaint}"):
        list(source.pairs())


def test_a_gap_goes_with_a_pairing_of_ours() -> None:
    with pytest.raises(UserError, match=r"min_gap=1 has no meaning with pairing=published; use dataset.min_score_gap"):
        armorm(min_gap=1)


def test_prompts_that_differ_are_skipped(tmp_path: Path) -> None:
    row = on_policy(1, ["a", "b"], [0.1, 0.3], 1, 0)
    other = row | {"rejected": [turn("user", "another"), turn("assistant", "a")]}
    assert reasons(armorm(path=written(tmp_path / "o.jsonl", [row, other]))) == {
        "chosen and rejected have different prompts": 1
    }


# --- all of them ------------------------------------------------------------------------------------------------------

HUB: list[tuple[Callable[..., Any], list[dict[str, Any]], str, dict[str, Any]]] = [
    (UltraChat, [chat("a", "b", "c", "d")], "HuggingFaceH4/ultrachat_200k", {"split": "train_sft"}),
    (UltraFeedbackFull, ROWS[:2], "openbmb/UltraFeedback", {"split": "train"}),
    (
        armorm,
        [on_policy(1, ["a", "b"], [0.1, 0.3], 1, 0)],
        "princeton-nlp/llama3-ultrafeedback-armorm",
        {"split": "train"},
    ),
]


@pytest.mark.parametrize(("make", "rows", "hub_id", "options"), HUB, ids=["ultrachat", "ultrafeedback", "on_policy"])
def test_the_hub_is_read_row_by_row_like_a_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make: Callable[..., Any],
    rows: list[dict[str, Any]],
    hub_id: str,
    options: dict[str, Any],
) -> None:
    asked: list[Any] = []

    class Stored(list[Any]):
        @property
        def data(self) -> Any:
            return type("Data", (), {"table": pa.Table.from_pylist(list(self))})

    def load(asked_for: str, **given: Any) -> Stored:
        asked.append((asked_for, given))
        return Stored(rows)

    for module in ("file_or_hub", "ultrafeedback_full"):
        monkeypatch.setattr(f"src.data.sources.{module}.load_hub_dataset", load)
    local, hub = make(path=written(tmp_path / "rows.parquet", rows)), make(revision="abc")
    assert list(hub.records()) == list(local.records())
    assert list(hub.demonstrations()) == list(local.demonstrations()) != []
    assert asked[0] == (hub_id, options | {"revision": "abc"})
    assert hub.fingerprint() == make().fingerprint()
    monkeypatch.setattr("src.data.sources.file_or_hub.load_hub_dataset", lambda *_, **__: [*rows, {}])
    monkeypatch.setattr("src.data.sources.ultrafeedback_full.load_hub_dataset", lambda *_, **__: [*rows, {}])
    with pytest.raises(UserError, match=f"{hub_id} row {len(rows)}: "):
        list(hub.records())


def test_they_are_sources_and_those_with_responses_say_so() -> None:
    for source in (UltraChat(), UltraFeedbackFull(), armorm()):
        assert isinstance(source, Source)
    assert isinstance(UltraFeedbackFull(), ScoredSource)
    assert isinstance(armorm(), ScoredSource)
    assert not isinstance(UltraChat(), ScoredSource)
    assert not isinstance(HHRLHF(), ScoredSource)
