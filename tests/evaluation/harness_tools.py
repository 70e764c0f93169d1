"""A tiny model and made-up GSM8K and ARC files for the tests of lm-eval's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.data.tokenizer import train_tokenizer
from src.model.load import model_from_scratch
from src.schema import ModelConfig
from tests.entry import Outcome, call

PROGRAM = "src.evaluation.lm_harness"
WORDS = ("kettle", "maple", "copper", "lantern", "granite", "meadow", "violet", "harbor", "walnut", "feather")


def sums(start: int, count: int) -> list[dict[str, str]]:
    """Rows in GSM8K's form."""
    rows = []
    for number in range(start, start + count):
        a, b = number * 7 % 23 + 1, number * 5 % 17 + 2
        question = f"A {WORDS[number % 10]} costs {a} coins and a {WORDS[number * 3 % 10]} {b}. What do both cost?"
        rows.append(
            {"question": question, "answer": f"Both cost {a} + {b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
        )
    return rows


def riddles(start: int, count: int) -> list[dict[str, Any]]:
    """Rows in ARC's form; some have three choices."""
    rows = []
    for number in range(start, start + count):
        texts = [f"the {WORDS[(number + step * 3) % 10]} by the {WORDS[(number * step + 1) % 10]}" for step in range(4)]
        texts = texts[: 3 if number % 4 == 3 else 4]
        labels = list("ABCD")[: len(texts)]
        rows.append(
            {
                "id": f"made-up-{number}",
                "question": f"Which thing number {number} is heavier than a {WORDS[number % 10]}?",
                "choices": {"text": texts, "label": labels},
                "answerKey": labels[number % len(labels)],
            }
        )
    return rows


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_up_files(folder: Path) -> Path:
    """A folder as tasks_from takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "gsm8k_train.jsonl", sums(100, 12))
    write_lines(folder / "gsm8k_test.jsonl", sums(0, 4))
    write_lines(folder / "arc_challenge_train.jsonl", riddles(100, 12))
    write_lines(folder / "arc_challenge_test.jsonl", riddles(2, 4))
    return folder


def small_model(folder: Path, context: int = 1024) -> Path:
    """A model directory whose answers vary: one layer, wide random weights."""
    texts = [row["question"] + row["answer"] for row in sums(0, 40)]
    tokenizer = train_tokenizer(texts, 400, folder / "cache")
    architecture = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": 0.4,
    }
    config = ModelConfig(name="tiny", attention="sdpa", architecture=architecture)
    model_from_scratch(config, len(tokenizer), seed=0).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def harness(folder: Path, *overrides: str) -> Outcome:
    """The entry point, everything below ``folder``."""
    return call(
        PROGRAM,
        f"output_root={folder / 'evaluations'}",
        f"records_root={folder / 'records'}",
        f"cache_root={folder / 'cache'}",
        "output=json",
        *overrides,
    )


def printed(outcome: Outcome) -> list[dict[str, Any]]:
    """What a call that must have gone well printed."""
    assert outcome.code == 0, outcome.err[-3000:]
    return [json.loads(line) for line in outcome.out.splitlines()]


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """The rows of the only log of a task below ``folder``."""
    (path,) = folder.rglob(f"{task}.samples.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]
