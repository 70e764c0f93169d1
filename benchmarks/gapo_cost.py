"""What GAPO's step costs, way by way, and how far each way does the same: `python -m benchmarks.gapo_cost`.

Cost: CPU time of a whole step on the same pairs, relative to SimPO's, all interleaved in one process, on a Llama whose
head has as large a share of the work as an 8B model's (`--shape`, `--pairs`, `--repetitions`). `exact` keeps what its
layers were given, `exact_again` runs the pairs a second time (training.kept_forwards=0); `sketch` has the default size.

Fidelity: `benchmarks/gapo_fidelity.py`, on two models that the program trains on its toy world.

Writes results/benchmarks/gapo_cost.json and .md. Ten minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gapo_fidelity import fidelity
from benchmarks.paired import (
    RESULTS,
    Ratio,
    as_json,
    interleaved,
    quiet_note,
    ratio,
    report,
    seconds,
    table,
    timed_process,
    write,
)
from benchmarks.workloads import SHAPES, Lengths, Own, Shape, drawn, model_of, own, random_pairs, use_threads

WAYS: dict[str, tuple[str, ...]] = {
    "simpo": ("method=simpo",),
    "exact": ("method=gapo", "training.kept_forwards=1"),
    "exact_again": ("method=gapo", "training.kept_forwards=0"),
    "sketch": ("method=gapo", "method.probe=sketch"),
    "sketch_32": ("method=gapo", "method.probe=sketch", "method.sketch_size=32"),
    "sketch_64": ("method=gapo", "method.probe=sketch", "method.sketch_size=64"),
    "sketch_256": ("method=gapo", "method.probe=sketch", "method.sketch_size=256"),
    "stream": ("method=gapo", "method.probe=stream"),
    "first_order": ("method=gapo", "method.probe=first_order"),
}
LENGTHS = Lengths(128, 64, 256)

WAYS_OF_FIDELITY = ("first_order", "sketch_32", "sketch_64", "sketch_128", "sketch_256", "stream")


def main() -> int:
    timed_process("benchmarks.gapo_cost", sys.argv[1:])
    use_threads()
    asked = arguments().parse_args()
    path = asked.output / "gapo_cost.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made = {"made": report("gapo_cost", sys.argv[1:])}
    if asked.only in (None, "cost"):
        sizes = {"shape": asked.shape, "pairs": asked.pairs, "repetitions": asked.repetitions}
        found["cost"] = made | sizes | costs(SHAPES[asked.shape], asked)
    if asked.only in (None, "fidelity"):
        with TemporaryDirectory() as folder:
            where = Path(folder) if asked.trained is None else asked.trained
            models = {name: fidelity(name, asked.windows, where) for name in asked.fidelity.split(",")}
            found["fidelity"] = made | {"models": models}
    print(write("gapo_cost", found, page(found), asked.output).read_text(encoding="utf-8"))
    return 0


def arguments() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.gapo_cost")
    found.add_argument("--shape", default="L4k", choices=sorted(SHAPES), help="of the model whose steps are timed")
    found.add_argument("--pairs", type=int, default=4, help="of a step")
    found.add_argument("--repetitions", type=int, default=3, help="of every way")
    found.add_argument("--ways", default=",".join(WAYS), help="which are timed; the first is the unit")
    found.add_argument("--fidelity", default="tiny,mid", help="the models that are trained")
    found.add_argument("--windows", type=int, default=10, help="of every number of pairs")
    found.add_argument("--trained", type=Path, help="folder where trained models are kept; default: made and forgotten")
    found.add_argument("--only", choices=("cost", "fidelity"), help="one half alone")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    return found


def costs(shape: Shape, asked: argparse.Namespace) -> dict[str, Any]:
    """CPU time of every way."""
    model, steps = model_of(shape), dict[str, Own]()
    sizes = (f"training.global_batch_size={asked.pairs}", f"training.micro_batch_size={asked.pairs}")
    for name in asked.ways.split(","):
        method, *more = WAYS[name]
        steps[name] = own(method.removeprefix("method="), model, *more, *sizes)
    warm = random_pairs(2, shape.vocabulary, LENGTHS, 10**6)
    samples = interleaved(steps, drawn(asked.pairs, shape, LENGTHS), asked.repetitions, warm=warm)
    base = next(iter(steps))
    return {
        "ratios": {name: ratio(samples, name, base).as_list() for name in steps},
        "seconds": {name: round(seconds(samples[name]), 3) for name in steps},
        "samples": as_json(samples),
    }


def page(made: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts = ["# What GAPO's gaps cost, and how far the cheap ones do as the exact ones"]
    if "cost" in made:
        rows = [[name, str(Ratio(*found))] for name, found in made["cost"]["ratios"].items()]
        parts += [
            f"CPU time of a step, times SimPO's: {made['cost']['shape']}, {made['cost']['pairs']} pairs; median "
            f"[lowest–highest] of {made['cost']['repetitions']} repetitions.",
            table(["way", "times SimPO"], rows),
        ]
    for name, found in made.get("fidelity", {"models": {}})["models"].items():
        parts += [
            f"## Model {name}",
            f"{found['parameters']:,} parameters; held-out accuracy {found['validation']['sft']['accuracy']:.3f} after "
            f"demonstrations, {found['validation']['gapo']['accuracy']:.3f} after GAPO. Rank correlation of gaps with "
            f"the exact ones / cosine of updates: medians of {found['windows']} windows, [lowest].",
            table(["pairs, radius", "mean gap", *WAYS_OF_FIDELITY], [row(*one) for one in found["agreement"].items()]),
        ]
    parts += [f"{part}: {quiet_note(one['made'])}" for part, one in made.items()]
    return "\n\n".join(parts)


def row(setting: str, found: dict[str, Any]) -> list[str]:
    """Of the table of a model."""
    cells = []
    for way in WAYS_OF_FIDELITY:
        ranks, updates = found[way]["spearman"], found[way]["update_cosine"]
        cells.append(f"{ranks[0]:.3f} [{ranks[1]:.2f}] / {updates[0]:.4f} [{updates[1]:.3f}]")
    return [setting, f"{found['exact']['mean_gap'][0]:.2f}", *cells]


if __name__ == "__main__":
    sys.exit(main())
