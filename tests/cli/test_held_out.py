"""Training on a part of the data and ranking on what was held back; conversations that have no pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.data.generalization import PARTS, Generalization, TestPairs
from src.data.noise import RandomFlip
from src.data.pairs import Message, ScoredResponses
from src.data.prepare import PrepareOptions, prepare
from src.data.sources import ScoredResponsesFile, UltraChat
from src.data.templates import ChatTemplate
from tests.entry import assert_says, call, refused
from tests.support import SMALL_DATA, SMALL_MODEL, SMALL_RUN, metrics, places
from tests.unit.data_tools import byte_tokenizer, write_lines

TEMPLATE = ChatTemplate(byte_tokenizer("roles"))
OPTIONS = PrepareOptions(max_length=400, max_prompt_length=200, validation_fraction=0.2)
RUN = (
    *SMALL_MODEL,
    "~recipe",
    "engine.device=cpu",
    "training.max_steps=2",
    "training.global_batch_size=4",
    "training.micro_batch_size=4",
    "training.learning_rate=1e-3",
    "checkpoint.every_steps=2",
)
SHORT = ("dataset.max_length=128", "dataset.max_prompt_length=64")
HELD_OUT = "generalization@dataset=held_out"


def conversations(folder: Path, count: int = 60) -> str:
    """Conversations of one to three turns that begin with a system prompt now and then."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        messages = [{"role": "system", "content": "be kind"}] if number % 4 == 0 else []
        for turn in range(number % 3 + 1):
            messages += [
                {"role": "user", "content": f"question {turn} of {number}"},
                {"role": "assistant", "content": f"answer {turn} of {number}"},
            ]
        rows.append({"prompt": "question", "prompt_id": str(number), "messages": messages})
    return write_lines(folder / "chat.jsonl", rows)


def scored(folder: Path, writers: int = 6, prompts: int = 60) -> str:
    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt": f"question {number}",
            "responses": [
                {"writer": f"w{place}", "text": f"w{place} on {number}", "score": place + number / 1000}
                for place in range(writers)
            ],
        }
        for number in range(prompts)
    ]
    return write_lines(folder / "scored.jsonl", rows)


def roots(folder: Path) -> list[str]:
    """Overrides that keep what a ranking writes below ``folder``."""
    return [f"records_root={folder}", f"output_root={folder / 'kept'}"]


# --- preparation ------------------------------------------------------------------------------------------------------


def test_the_turns_of_a_conversation_are_in_one_split(tmp_path: Path) -> None:
    source = UltraChat(path=conversations(tmp_path))
    data = prepare(source, RandomFlip(0.5), TEMPLATE, OPTIONS, tmp_path, "demonstrations_alone")
    train, held_out = ({pair.id.partition("/")[0] for pair in split} for split in (data.train, data.validation))
    assert not train & held_out
    assert len(train) + len(held_out) == 60
    assert 4 <= len(held_out) <= 22
    assert len(data.train) + len(data.validation) == 120
    assert {tuple(pair.rejected_ids) for pair in data.validation} == {()}
    turns = [pair for pair in data.train if pair.id.endswith("/2")]
    assert turns
    for pair in turns:
        text = TEMPLATE.tokenizer.decode(pair.prompt_ids)
        assert "answer 0 of" in text
        assert "question 1 of" in text
    assert data.manifest["flipped"]["count"] == 0


def test_test_pairs_are_all_held_out_whatever_filter_and_noise(tmp_path: Path) -> None:
    seen = Generalization(0.3, 2).of(ScoredResponsesFile(scored(tmp_path)))
    for part in PARTS:
        pairs = TestPairs(seen, part, 0.2, 0)
        data = prepare(pairs, RandomFlip(1.0), TEMPLATE, OPTIONS, tmp_path, "held_out")
        assert [pair.id for pair in data.validation] == [pair.id for pair in pairs.pairs()]
        assert len(data.train) == data.manifest["flipped"]["count"] == 0


def test_items_are_what_the_file_holds(tmp_path: Path) -> None:
    (first, *_) = ScoredResponsesFile(scored(tmp_path)).scored_responses()
    assert isinstance(first, ScoredResponses)
    assert first.prompt == (Message("user", "question 0"),)


# --- as a user types it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["toy", "file"])
def test_train_on_what_is_seen_and_rank_on_the_rest(tmp_path: Path, data: str) -> None:
    source = {
        "toy": (*SMALL_DATA, "+dataset.source.responses_per_prompt=6"),
        "file": ("dataset=scored_responses", f"dataset.source.path={scored(tmp_path)}", *SHORT),
    }[data]
    run = str(tmp_path / "run")
    outcome = call("src.train", "method=simpo", *RUN, *source, HELD_OUT, f"run_dir={run}", *places(tmp_path))
    assert outcome.code == 0, outcome.err
    found = {}
    for part in ("validation", *PARTS):
        root = tmp_path / "records" / part
        assert call("src.evaluation.ranking", f"checkpoint={run}", f"split={part}", *roots(root)).code == 0
        (path,) = root.glob("*.json")
        record = json.loads(path.read_text())
        assert record["data"]["split"] == part
        assert record["metrics"]["accuracy/average"]["n"] == record["data"]["pairs"] > 1
        found[part] = record["data"]["content_hash"]
    assert len(set(found.values())) == len(found)


def test_what_cannot_be_held_back_is_refused(tmp_path: Path) -> None:
    local = write_lines(tmp_path / "pairs.jsonl", [{"id": "a", "prompt": "b", "chosen": "c", "rejected": "d"}])
    given = ("method=simpo", *RUN, *places(tmp_path), HELD_OUT)
    assert_says(
        refused("src.train", *given, "dataset=local", f"dataset.source.path={local}"),
        "dataset.generalization holds writers back, but LocalPairs has pairs alone",
    )
    path = f"dataset.source.path={scored(tmp_path)}"
    responses = (*given, "dataset=scored_responses", path)
    assert_says(
        refused("src.train", *responses, "dataset.generalization.unseen_writers=[w1,gpt-5]"),
        "names gpt-5, but the writers of dataset.source are: w0, w1, w2, w3, w4, w5",
    )
    assert_says(
        refused("src.train", *responses, "dataset.generalization.unseen_writers=5"), "leaves 1 of the 6 writers"
    )
    assert_says(
        refused("src.train", *responses, "dataset.source.pairing=all_pairs"), "pairing=all_pairs would not be read"
    )
    assert_says(
        refused("src.train", *responses, "dataset.generalization.unseen=1"), "dataset.generalization.unseen", "unseen_"
    )
    run = tmp_path / "run"
    assert call("src.train", "method=simpo", *SMALL_RUN, f"run_dir={run}", *places(tmp_path)).code == 0
    assert_says(
        refused("src.evaluation.ranking", f"checkpoint={run}", "split=mutual_ood", *roots(tmp_path)),
        "split=mutual_ood needs prompts and writers that the run was kept from",
        "train with generalization@dataset=held_out",
    )


def test_conversations_are_imitated_and_nothing_else(tmp_path: Path) -> None:
    path = f"dataset.source.path={conversations(tmp_path)}"
    chat = ("dataset=ultrachat_200k", path, *SHORT, "dataset.validation_fraction=0.2")
    run = tmp_path / "run"
    outcome = call("src.train", "method=sft", *RUN, *chat, f"run_dir={run}", *places(tmp_path))
    assert outcome.code == 0, outcome.err
    (*_, last) = metrics(run, "validation")
    assert last["loss"] > 0
    assert "rewards/accuracies" not in last
    assert_says(
        refused("src.evaluation.ranking", f"checkpoint={run}", *roots(tmp_path)),
        "dataset=ultrachat_200k, which has demonstrations alone, so there is nothing to rank",
    )
    assert_says(
        refused("src.train", "method=dpo", *RUN, *chat, *places(tmp_path)),
        "method=dpo compares a chosen with a rejected response",
        "UltraChat) has demonstrations alone; use it with method=sft",
    )
    assert_says(
        refused("src.train", "method=sft", *RUN, *chat, "selection@checkpoint=by_accuracy", *places(tmp_path)),
        "checkpoint.best_metric=rewards/accuracies is measured on pairs",
    )
