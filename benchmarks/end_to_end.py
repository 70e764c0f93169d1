"""Whole programs on one task: `python -m benchmarks.end_to_end [--quick] [--pairs N] [--rounds N]`.

`python -m src.train` against a script of TRL's trainers (benchmarks/end_to_end_trl.py), both started anew: they import,
read the same weights, tokenizer and pairs of text, tokenise, find the reference's log-probs, train one epoch on the
same pairs with fused AdamW and write the model. Each shuffles the pairs itself. Programs take turns. What is compared
is the CPU time of the process; pairs a second by the wall's clock stand beside it. Ours does more: it validates before
and after training, as it always does, on a single pair, and its last checkpoint holds the optimizer's state too.

Writes results/benchmarks/end_to_end.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import paired
from src.config import ROOT
from src.data.pairs import prompt_from_json
from src.data.splits import TRAIN, VALIDATION, split_of

BATCH = 4
HELD_OUT = 0.1
"""Share of the prompts that ours would hold out, of which there is one here."""

PROGRAMS = ("own simpo", "trl simpo", "own dpo", "trl dpo", "trl dpo precomputed")
COMPARED = {"trl simpo": "own simpo", "trl dpo": "own dpo", "trl dpo precomputed": "own dpo"}


TEMPLATE = (
    "{% for message in messages %}{{ ' ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' <|end|>' }}{% endif %}{% endfor %}"
)
"""Text as it is: TRL is given the same."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of no size, to see that it runs")
    parser.add_argument("--pairs", type=int, default=64, help="pairs to train on (default 64)")
    parser.add_argument("--rounds", type=int, default=2, help="times each program runs (default 2)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="these programs")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    given = parser.parse_args()
    pairs, rounds = (8, 1) if given.quick else (given.pairs, given.rounds)
    shape = "nano" if given.quick else "T4k"
    made = paired.report("end_to_end", sys.argv[1:])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.only}
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as place:
        task = Path(place)
        make_task(task, shape, pairs)
        for turn in range(rounds):
            for name in [*given.only[turn:], *given.only[:turn]]:
                output = task / f"out-{turn}-{name.replace(' ', '-')}"
                found[name].append(timed(name, task, output, pairs))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    report = {"made": made, "shape": shape, "pairs": pairs, "batch": BATCH, "programs": found}
    report["ratios"] = {
        name: paired.Ratio.of(
            [a["cpu_s"] / b["cpu_s"] for a, b in zip(found[name], found[base], strict=True)]
        ).as_list()
        for name, base in COMPARED.items()
        if name in found and base in found
    }
    print(paired.write("end_to_end", report, page(report), given.folder))
    return 0


def make_task(folder: Path, shape: str, pairs: int) -> None:
    """Weights and tokenizer in ``folder``/model, pairs in ``folder``/pairs.jsonl: words that are a token each."""
    from dataclasses import replace

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from benchmarks.workloads import SHAPES, model_of

    sizes = replace(SHAPES[shape], vocabulary=max(SHAPES[shape].vocabulary, 256))
    words = {"<pad>": 0, "<|end|>": 1} | {f"w{number}": number for number in range(2, sizes.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    factory: Any = PreTrainedTokenizerFast
    whole = factory(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder / "model")
    model_of(sizes, "padded").save_pretrained(folder / "model")
    lines = drawn_pairs(pairs, sizes.vocabulary, *((4, 12) if shape == "nano" else (64, 256)))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def drawn_pairs(pairs: int, vocabulary: int, short: int, long: int) -> list[dict[str, str]]:
    """``pairs`` that ours takes for training, then one that it holds out; responses of ``short`` to ``long`` words."""
    draw = random.Random(0)
    wanted = {TRAIN: pairs, VALIDATION: 1}
    kept: dict[str, list[dict[str, str]]] = {split: [] for split in wanted}

    def text(most: int) -> str:
        return " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(draw.randint(short, most)))

    while any(len(kept[split]) < count for split, count in wanted.items()):
        prompt = text(long // 2)
        split = split_of(prompt_from_json(prompt), HELD_OUT, 0)
        if len(kept[split]) < wanted[split]:
            pair = {"id": f"{split}-{len(kept[split])}", "prompt": prompt, "chosen": text(long), "rejected": text(long)}
            kept[split].append(pair)
    return kept[TRAIN] + kept[VALIDATION]


def command(name: str, task: Path, output: Path, pairs: int) -> list[str]:
    """What a user would type."""
    side, *rest = name.split(" ")
    if side == "trl":
        return [sys.executable, "-m", "benchmarks.end_to_end_trl", *rest, str(task), str(output), str(pairs)]
    method = {"simpo": ["method.beta=2.5", "method.gamma_beta_ratio=0.55"], "dpo": ["method.beta=0.1"]}[rest[0]]
    overrides = [
        *("~recipe", f"method={rest[0]}", *method, "model=tiny", "model.init=pretrained", f"model.path={task}/model"),
        "model.template=null",
        *("dataset=local", f"dataset.source.path={task}/pairs.jsonl", f"dataset.validation_fraction={HELD_OUT}"),
        *(f"training.global_batch_size={BATCH}", f"training.micro_batch_size={BATCH}", "training.epochs=1"),
        *("training.learning_rate=1e-6", "training.scheduler=constant", "training.warmup_ratio=0"),
        *("evaluation.every_steps=0", "evaluation.max_pairs=1", "checkpoint.every_steps=0"),
        *(f"run_dir={output}", f"cache_root={output}-cache", "prepare_workers=1"),
    ]
    return [sys.executable, "-m", "src.train", *overrides]


def timed(name: str, task: Path, output: Path, pairs: int) -> dict[str, float]:
    """Seconds of CPU and by the wall of one run of a program, all that it starts included."""
    log = output.with_suffix(".log")
    before, began = os.times(), time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = os.posix_spawn(
            sys.executable,
            command(name, task, output, pairs),
            {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{output}-cache", "PYTHONPATH": str(ROOT)},
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)],
        )
        _, status = os.waitpid(process, 0)
    wall, after = time.perf_counter() - began, os.times()
    if status:
        raise RuntimeError(f"{name} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    shutil.rmtree(output, ignore_errors=True)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = []
    for name, runs in report["programs"].items():
        cpu, wall = (paired.Ratio.of([run[clock] for run in runs]) for clock in ("cpu_s", "wall_s"))
        ratio = str(paired.Ratio(*report["ratios"][name])) if name in report["ratios"] else ""
        rate = report["pairs"]
        rows.append([name, f"{cpu.median:.1f}", f"{rate / cpu.median:.2f}", f"{rate / wall.median:.2f}", ratio])
    head = ["program", "CPU s", "pairs / CPU s", "pairs / s", "CPU time / ours"]
    lines = [
        "# Whole programs",
        f"One epoch of {report['pairs']} pairs in batches of {report['batch']}, model {report['shape']}, from the "
        "start of the process to the written model.",
        paired.table(head, rows),
        paired.quiet_note(report["made"]),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
