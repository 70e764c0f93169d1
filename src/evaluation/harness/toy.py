"""The toy world's tasks in lm-eval's terms: arithmetic to be generated, and a choice by log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from src.data.toy.benchmarks import QuestionItem, choice_items, exact_match_items

ITEMS = 200
"""Questions of each task."""

NUMBER = "(-?[0-9]+)"


def toy_tasks() -> dict[str, dict[str, Any]]:
    """Task name -> lm-eval's configuration of it."""
    return {"toy_arithmetic": toy_arithmetic(), "toy_choice": toy_choice()}


def toy_arithmetic() -> dict[str, Any]:
    """GSM8K's shape: the last number of a greedy response is the answer."""
    return {
        "task": "toy_arithmetic",
        "custom_dataset": rows_of(exact_match_items, lambda item: {"question": item.question, "answer": item.answer}),
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 32},
        "num_fewshot": 0,
        "filter_list": [
            {
                "name": "last-number",
                "filter": [
                    {"function": "regex", "regex_pattern": NUMBER, "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def toy_choice() -> dict[str, Any]:
    """ARC's shape: the likeliest of four answers, by sum and by sum over characters."""

    def row(item: QuestionItem) -> dict[str, Any]:
        return {"question": item.question, "choices": list(item.choices), "gold": item.choices.index(item.answer)}

    return {
        "task": "toy_choice",
        "custom_dataset": rows_of(choice_items, row),
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def rows_of(
    draw: Callable[[int, int], Sequence[QuestionItem]], row: Callable[[QuestionItem], dict[str, Any]]
) -> Callable[..., Any]:
    """What lm-eval calls for the data: questions of one seed to ask, of another for examples."""

    def data(**ignored: Any) -> Any:
        from datasets import Dataset, DatasetDict

        splits = {"test": draw(ITEMS, 0), "train": draw(ITEMS // 4, 1)}
        return DatasetDict({name: Dataset.from_list([row(item) for item in items]) for name, items in splits.items()})

    return data
