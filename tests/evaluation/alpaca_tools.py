"""What the tests of AlpacaEval share: a small made-up benchmark in the owners' formats, and judgments on it."""

from __future__ import annotations

import contextlib
import io
import json
import random
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from src.errors import UserError
from src.evaluation.alpaca.reference import Reference
from src.evaluation.alpaca.stored import score_stored
from src.evaluation.alpaca.toy import toy_reference
from tests.entry import Outcome

PROGRAM = "src.evaluation.alpaca_eval"
QUESTIONS = 60


@lru_cache(maxsize=1)
def reference() -> Reference:
    """The first questions of the toy world's."""
    return toy_reference(2.0).first(QUESTIONS)


def reference_files(folder: Path) -> list[str]:
    """The reference as the owners' files, and the overrides that name them."""
    data = reference()
    rows = [
        {"dataset": one.dataset, "instruction": one.instruction, "output": one.output, "generator": data.baseline}
        for one in data.questions
    ]
    baseline, gamed = folder / "baseline.json", folder / "df_gamed.csv"
    baseline.write_text(json.dumps(rows))
    gamed.write_text(data.gamed)
    return [f"reference_outputs={baseline}", f"gamed_annotations={gamed}", "stage=score", "output=json"]


def judged(model: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of annotations.json: longer answers are preferred, with noise."""
    rng = random.Random(f"{model} {seed}")
    rows = []
    for one in reference().questions:
        text = "x" * rng.randint(5, 150)
        better = min(1.0, max(0.0, 0.5 + (len(text) - len(one.output)) / 200 + rng.gauss(0, 0.2)))
        rows.append(
            {
                "instruction": one.instruction,
                "output_1": one.output,
                "output_2": text,
                "generator_1": reference().baseline,
                "generator_2": model,
                "annotator": "a_judge",
                "preference": 1 + better,
            }
        )
    return rows


def slim(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same without texts."""
    places = reference().positions
    return {
        "model": rows[0]["generator_2"],
        "instr_index": [places[row["instruction"]] for row in rows],
        "len_1": [len(row["output_1"]) for row in rows],
        "len_2": [len(row["output_2"]) for row in rows],
        "preference": [row["preference"] for row in rows],
    }


def scored(folder: Path, rows: list[Any], name: str = "annotations.json", **keys: Any) -> Outcome:
    """What the program does with these judgments, without composing a configuration."""
    path = folder / name
    lines = name.endswith("l")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    files = dict(text.split("=") for text in reference_files(folder))
    usual = {"instruction_difficulty": None, "regularization": 1.0, "missing_rows": "error", "cache_root": str(folder)}
    config: Any = SimpleNamespace(**{**files, **usual, "annotations": str(path), **keys})
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            return Outcome(score_stored(config), out.getvalue(), "")
        except UserError as error:
            return Outcome(error.exit_code, out.getvalue(), str(error))


def objects(outcome: Outcome) -> list[dict[str, Any]]:
    """What was printed, one object a line and nothing else."""
    return [json.loads(line) for line in outcome.out.splitlines()]
