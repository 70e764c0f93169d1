"""Stored files of every benchmark in its owners' formats, small and made up: what stage=score reads."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

QUESTIONS = 12


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def alpaca(folder: Path) -> list[str]:
    """Reference answers, gamed annotations and one model's annotations.json."""
    rng = random.Random(0)
    baseline = [
        {"instruction": f"Question {place}", "output": "word " * (2 + place), "generator": "base", "dataset": "d"}
        for place in range(QUESTIONS)
    ]
    (folder / "baseline.json").write_text(json.dumps(baseline))
    with (folder / "gamed.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
        )
        for model, sign in (("base_verbose", -1), ("base_concise", 1)):
            for place in range(QUESTIONS):
                writer.writerow([rng.random(), place, sign * (1 + rng.random()), rng.gauss(0, 1), False, model])
    annotations = [
        {
            "instruction": row["instruction"],
            "output_1": row["output"],
            "generator_1": "base",
            "output_2": "text " * rng.randint(1, 20),
            "generator_2": "model-a",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 1 + rng.random(),
        }
        for row in baseline
    ]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    files = {"annotations": "annotations.json", "reference_outputs": "baseline.json", "gamed_annotations": "gamed.csv"}
    return ["regularization=1", *(f"{key}={folder / name}" for key, name in files.items())]


def arena(folder: Path) -> list[str]:
    """Battles as show_result.py wrote them, of two models."""
    rng = random.Random(1)
    rows = [
        {
            "question_id": f"q{place}",
            "model_a": "gpt-4-0314",
            "model_b": model,
            "winner": rng.choice(["model_a", "model_b", "tie"]),
        }
        for model in ("model-a", "model-b")
        for place in range(QUESTIONS)
        for _ in range(2)
    ]
    return [f"battles={write_lines(folder / 'battles.jsonl', rows)}"]


def mt_bench(folder: Path) -> list[str]:
    """Judgments of single answers, one of them unreadable, with their questions."""
    rng = random.Random(2)
    questions = [
        {"question_id": place, "category": rng.choice(["writing", "math"]), "turns": ["first", "second"]}
        for place in range(QUESTIONS)
    ]
    rows = [
        {
            "question_id": question["question_id"],
            "model": "model-a",
            "judge": ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"],
            "user_prompt": "…",
            "judgment": f"Rating: [[{rng.randint(1, 10)}]]" if question["question_id"] else "I cannot say.",
            "turn": turn,
            "tstamp": 1.0,
        }
        for question in questions
        for turn in (1, 2)
    ]
    for row in rows:
        row["score"] = -1 if row["question_id"] == 0 else int(str(row["judgment"]).split("[[")[1].rstrip("]"))
    return [
        f"judgments={write_lines(folder / 'judgments.jsonl', rows)}",
        f"questions={write_lines(folder / 'question.jsonl', questions)}",
    ]


def listwise(folder: Path) -> list[str]:
    """Scores and rewards of four responses a prompt."""
    rng = random.Random(3)
    rows = [
        {"prompt_id": str(place), "responses": [{"score": score, "reward": rng.random()} for score in range(1, 5)]}
        for place in range(QUESTIONS)
    ]
    return [f"samples={write_lines(folder / 'samples.jsonl', rows)}"]


def ranking(folder: Path) -> list[str]:
    """Rewards and annotated scores of both responses of a pair."""
    rng = random.Random(4)
    rows = [
        {
            "id": str(place),
            "chosen_reward": rng.random(),
            "rejected_reward": rng.random(),
            "chosen_score": 4.0,
            "rejected_score": 2.0,
        }
        for place in range(QUESTIONS)
    ]
    return [f"samples={write_lines(folder / 'samples.jsonl', rows)}"]


def rm_bench(folder: Path) -> list[str]:
    """Scored items of two of the four domains."""
    rng = random.Random(5)
    domains = ("chat", "code")
    rows = [
        {
            "id": f"{domain}-{place}",
            "prompt": "a prompt",
            "chosen": ["a", "b", "c"],
            "rejected": ["d", "e", "f"],
            "domain": domain,
            "score_chosen": [rng.random() for _ in range(3)],
            "score_rejected": [rng.random() for _ in range(3)],
        }
        for domain in domains
        for place in range(QUESTIONS)
    ]
    return [f"samples={write_lines(folder / 'samples.jsonl', rows)}"]


def lm_harness(folder: Path) -> list[str]:
    """Samples of a generative task under its two filters, as a run of ours keeps them."""
    rows = []
    for place in range(QUESTIONS):
        answer = f"So it is.\n#### {place % 3}"
        row = {
            "model": "model-a",
            "task": "gsm8k",
            "doc_id": place,
            "doc": {"question": "How many?", "answer": "One.\n#### 1"},
            "target": "One.\n#### 1",
            "arguments": [["Question: How many?\nAnswer:", {"until": ["Question:"]}]],
            "resps": [[answer]],
            "filtered_resps": [str(place % 3)],
            "metrics": ["exact_match"],
            "exact_match": float(place % 3 == 1),
        }
        rows += [row | {"filter": name} for name in ("strict-match", "flexible-extract")]
    return [f"samples={write_lines(folder / 'samples_gsm8k.jsonl', rows)}"]


STORED: dict[str, Callable[[Path], list[str]]] = {
    "alpaca_eval": alpaca,
    "arena_hard": arena,
    "mt_bench": mt_bench,
    "lm_harness": lm_harness,
    "rm_bench": rm_bench,
    "ranking": ranking,
    "listwise": listwise,
}
"""Entry point -> what writes its files into a folder and returns the keys that name them."""
