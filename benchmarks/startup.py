"""How long a program takes to get going: `python -m benchmarks.startup [--quick] [--rounds N] [--root DIR ...]`.

Every program is started anew, on the toy world and a model of no size, so that next to nothing but start-up is left:

    help        src.train --help
    refused     src.train with a mistake in a key
    first run   src.train for one step, which makes the tokenizer and prepares the data
    prepared    the same once more in another place, with what the first run left in the cache
    finished    the same once more in the same place: the run is there already
    plan        src.preflight of that run
    sweep       three such runs of one process (-m seed=1,2,3)

``--root``: checkouts to compare, the first of which is the base; this one alone where none is given. Programs take
turns between them. Compared is the CPU time of the process and all it starts. ``to step``: seconds by the wall's clock
from the start of the process to the end of its first optimizer step, where there is one.

Writes results/benchmarks/startup.json and .md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import paired
from src.config import ROOT

CASES = ("help", "refused", "first run", "prepared", "finished", "plan", "sweep")
RUNS = 3
"""Runs of the sweep."""

EXIT_CODES = {"refused": 2}

SMALL = (
    *("method=simpo", "model=tiny", "~recipe", "model.init=scratch", "model.architecture.hidden_size=32"),
    *("model.architecture.intermediate_size=48", "model.architecture.num_hidden_layers=1"),
    *("model.architecture.num_attention_heads=2", "model.architecture.num_key_value_heads=2"),
    *("dataset=toy", "engine.device=cpu", "training.max_steps=1", "training.global_batch_size=8"),
    *("evaluation.every_steps=0", "evaluation.max_pairs=8", "prepare_workers=1"),
)

Sample = dict[str, float]
"""Seconds of one program: cpu_s, wall_s and for a training step_s."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs, once: to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="times each program is started (default 3)")
    parser.add_argument("--root", type=Path, nargs="+", default=[ROOT], help="checkouts, the base first")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    given = parser.parse_args()
    rounds, prompts = (1, 80) if given.quick else (given.rounds, 9000)
    roots = {commit_of(root): root.resolve() for root in given.root}
    made = paired.report("startup", sys.argv[1:])
    found: dict[str, dict[str, list[Sample]]] = {case: {name: [] for name in roots} for case in CASES}
    for turn in range(rounds):
        names = list(roots)[turn % len(roots) :] + list(roots)[: turn % len(roots)]
        with tempfile.TemporaryDirectory(prefix="startup-") as place:
            for case in CASES:
                for name in names:
                    sample = started(case, roots[name], Path(place, str(names.index(name))), prompts)
                    found[case][name].append(sample)
                    print(case, name, sample, file=sys.stderr, flush=True)
    report = {"made": made, "prompts": prompts, "roots": list(roots), "seconds": found}
    print(paired.write("startup", report, page(report), given.folder))
    return 0


def commit_of(root: Path) -> str:
    """The commit that is checked out in a folder, in short."""
    asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def command(case: str, folder: Path, prompts: int) -> list[str]:
    """The program of a case, whose cache is in ``folder``."""
    if case == "help":
        return ["src.train", "--help"]
    if case == "refused":
        return ["src.train", "training.epoch=1"]
    settings = [*SMALL, f"dataset.source.prompts={prompts}", f"cache_root={folder}/cache"]
    where = {"finished": "prepared"}.get(case, case).replace(" ", "-")
    settings.append(f"output_root={folder}/{where}")
    if case == "sweep":
        return ["src.train", "-m", f"seed={','.join(str(1 + number) for number in range(RUNS))}", *settings]
    return ["src.preflight" if case == "plan" else "src.train", *settings]


def started(case: str, root: Path, folder: Path, prompts: int) -> Sample:
    """Start a case's program in the checkout ``root`` and wait for its end."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    settings = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    began, clock = time.time(), time.perf_counter()
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        os.execve(sys.executable, [sys.executable, "-m", *command(case, folder, prompts)], settings)
    _, status, used = os.wait4(child, 0)
    sample = {"cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.perf_counter() - clock}
    if os.waitstatus_to_exitcode(status) != EXIT_CODES.get(case, 0):
        raise RuntimeError(f"{case} in {root} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    steps = [path.stat().st_mtime for path in folder.glob("*/*/timings.jsonl") if path.stat().st_mtime >= began]
    if steps:
        sample["step_s"] = min(steps) - began
    return {name: round(seconds, 3) for name, seconds in sample.items()}


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    base, *others = report["roots"]
    rows = []
    for case, by_root in report["seconds"].items():
        for name in report["roots"]:
            samples = by_root[name]
            cells = [median(samples, clock) for clock in ("cpu_s", "wall_s", "step_s")]
            pairs = zip(samples, by_root[base], strict=True)
            ratio = paired.Ratio.of([one["cpu_s"] / other["cpu_s"] for one, other in pairs])
            rows.append([case, *([name] if others else []), *cells, *([str(ratio)] if others else [])])
    checkout = (["checkout"], ["CPU time / base"]) if others else ([], [])
    made_of = len(report["seconds"]["help"][base])
    lines = [
        "# Start-up",
        f"One optimizer step on the toy world of {report['prompts']} pairs with a model of no size, in a process "
        f"that is started anew: medians of {made_of}. What each program is: benchmarks/startup.py. "
        f"One more run of a sweep costs {more_of_a_sweep(report['seconds'], report['roots'][-1]):.2f} s of CPU.",
        paired.table(["program", *checkout[0], "CPU s", "wall s", "to step, s", *checkout[1]], rows),
        paired.quiet_note(report["made"]),
    ]
    return "\n\n".join(lines)


def median(samples: list[Sample], clock: str) -> str:
    """Of the samples that have that clock."""
    seconds = [sample[clock] for sample in samples if clock in sample]
    return f"{statistics.median(seconds):.2f}" if seconds else ""


def more_of_a_sweep(seconds: dict[str, dict[str, list[Sample]]], name: str) -> float:
    """CPU seconds of a further run in a process that did one: what a sweep takes beyond a single run, a run."""
    whole, single = ([sample["cpu_s"] for sample in seconds[case][name]] for case in ("sweep", "prepared"))
    return (statistics.median(whole) - statistics.median(single)) / (RUNS - 1)


if __name__ == "__main__":
    sys.exit(main())
