"""AlpacaEval's shape on the toy world: instructions, a baseline's answers, gamed annotations and difficulties.

The two files that the owners made with GPT-4 are made here by the toy world's own judge, in the same format, so that
the package's length control runs on them: the gamed annotations by a judge with the taste for length of the one that
judges the model (as GPT-4 judged both), the difficulties by one without.
"""

from __future__ import annotations

import random
import statistics
from functools import lru_cache
from typing import Any

from src.data.pairs import Prompt
from src.data.toy.benchmarks import instructions
from src.data.toy.scorer import judge_preference, score_task
from src.data.toy.source import world_version
from src.data.toy.tasks import Task, parse_task
from src.data.toy.writers import WRITERS, draw_body, dress, write
from src.evaluation.alpaca.reference import GAMED_COLUMNS, Question, Reference, csv_text

QUESTIONS = 200
BASELINE = "toy_novice"
DRESSES = (("verbose", "plain", 2), ("concise", "concise", 0))
"""Name, style and explaining sentences of the baseline's gamed answers (its own are plain, without any)."""


@lru_cache(maxsize=4)
def toy_reference(length_bias: float = 0.0, temperature: float = 0.25) -> Reference:
    """The benchmark's data in the toy world, the same at every call and on every machine.

    ``length_bias`` and ``temperature``: of the oracle that judges the gamed answers (conf/judge/oracle.yaml).
    """
    prompts = toy_prompts()
    tasks = [parse_task(prompt) for prompt in prompts]
    bodies = [baseline_body(task, place) for place, task in enumerate(tasks)]
    answers = [dressed(body, "plain", 0, place) for place, body in enumerate(bodies)]
    questions = tuple(
        Question(prompt[0].content, answer, task.kind)
        for prompt, task, answer in zip(prompts, tasks, answers, strict=True)
    )
    hardness = difficulties(tasks, answers)
    rows: list[dict[str, Any]] = []
    for name, style, sentences in DRESSES:
        gamed = [dressed(body, style, sentences, place) for place, body in enumerate(bodies)]
        judged = [
            judge_preference(prompt, other, answer, length_bias=length_bias, temperature=temperature)
            for prompt, answer, other in zip(prompts, answers, gamed, strict=True)
        ]
        deltas = [len(answer) - len(other) for answer, other in zip(answers, gamed, strict=True)]
        rows += gamed_rows(f"{BASELINE}_{name}", judged, deltas, hardness)
    sources = {"world": {"path": "src/data/toy", "hash": world_version()}}
    return Reference(questions, BASELINE, csv_text(GAMED_COLUMNS, rows), sources)


def toy_prompts() -> list[Prompt]:
    """``QUESTIONS`` prompts of one turn; answers are matched by its text."""
    return [prompt for prompt in instructions(2 * QUESTIONS) if not prompt[1:]][:QUESTIONS]


def baseline_body(task: Task, place: int) -> str:
    """The baseline's answer undressed: the mistakes and omissions of the novice, in the asked layout."""
    novice, rng = WRITERS["novice"], random.Random(f"toy alpaca body {place}")
    return draw_body(task, rng, mistake=novice.mistake, omission=novice.omission, layout=task.layout)


def dressed(body: str, style: str, sentences: int, place: int) -> str:
    """The body in a style."""
    return dress(body, style, random.Random(f"toy alpaca dress {style} {place}"), sentences=sentences)


def gamed_rows(name: str, judged: list[float], deltas: list[int], hardness: list[float]) -> list[dict[str, Any]]:
    """Rows of df_gamed.csv. ``judged``: probability that the gamed answer wins; ``deltas``: how much shorter it is."""
    scale = statistics.stdev(deltas)
    return [
        {
            "preference": round(preference, 9),
            "index": place,
            "std_delta_len": round(delta / scale, 9),
            "instruction_difficulty": difficulty,
            "not_gamed_baseline": False,
            "model": name,
        }
        for place, (preference, delta, difficulty) in enumerate(zip(judged, deltas, hardness, strict=True))
    ]


def difficulties(tasks: list[Task], answers: list[str]) -> list[float]:
    """How an instruction moves win rates against the baseline, for all models alike: one number each.

    Fitted as the owners' model has it, logit P(writer w wins on x) = a_w + b_w d_x: d is the first principal component
    of the logits of all writers of the toy world, judged without regard to length; mean 0, standard deviation 1.
    """
    import numpy as np

    logits = []
    for name in sorted(WRITERS):
        row = []
        for place, (task, answer) in enumerate(zip(tasks, answers, strict=True)):
            text = write(WRITERS[name], task, random.Random(f"toy alpaca panel {name} {place}"))
            gap = score_task(task, text).overall - score_task(task, answer).overall
            row.append(gap / 0.25)  # judge_preference is logistic in it
        logits.append(row)
    table = np.clip(np.array(logits), -6.0, 6.0)
    _, _, components = np.linalg.svd(table - table.mean(axis=1, keepdims=True), full_matrices=False)
    found = components[0] * np.sign(components[0] @ table.mean(axis=0))
    found = (found - found.mean()) / found.std()
    return [round(float(value), 6) for value in found]
