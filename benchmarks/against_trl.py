"""A step of DPO and of SimPO against TRL's: `python -m benchmarks.against_trl [--quick] [--only CASE ...]`.

Same model, same pairs, same batch, on the CPU in float32 without gradient checkpointing. A step is: pairs of token ids
laid out, forward, loss, backward, metrics; on both sides without the optimizer, which is alike. Ours goes through the
engine and the training step of the program, TRL's through the trainer's collator, compute_loss and backward. Peak
memory is that of one such step in a process of its own, above what the process holds before it: gradients are in it,
weights and the reference's weights are not.

Writes results/benchmarks/against_trl.json, .md and .svg; cases that were not run anew stay as they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import paired
from benchmarks.paired import Ratio, Step

OWN = ("own_simpo", "own_dpo")
COMPARED = {
    "trl_cpo": "own_simpo",
    "trl_dpo": "own_dpo",
    "trl_dpo_precomputed": "own_dpo",
    "trl_dpo_compact": "own_dpo",
}
"""What of TRL's is held against what of ours."""

LABELS = {
    "trl_cpo": "CPOTrainer, SimPO",
    "trl_dpo": "DPOTrainer, reference model",
    "trl_dpo_precomputed": "DPOTrainer, precomputed",
    "trl_dpo_compact": "DPOTrainer, precomputed, head on responses alone",
}


@dataclass(frozen=True)
class Case:
    """A model and the lengths of its pairs, and what must be reached there."""

    shape: str
    prompt: int = 128
    shortest: int = 64
    longest: int = 256
    pairs: int = 4
    faster: tuple[tuple[str, float], ...] = ()
    memory: float | None = None


DPO = (("trl_dpo", 2.3), ("trl_dpo_precomputed", 1.8))
CASES = {
    "4k": Case("L4k"),
    "32k": Case("S32k", faster=(("trl_cpo", 1.9), *DPO), memory=0.4),
    "128k": Case("S128k", faster=(("trl_cpo", 2.3), *DPO), memory=0.25),
    "4k_long_prompts": Case("L4k", 384, 64, 128),
    "4k_long_responses": Case("L4k", 96, 96, 288),
}
MEASURED_MEMORY = ("4k", "32k", "128k")
QUICK = {"quick": Case("nano", 8, 4, 16)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of no size, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="these cases")
    parser.add_argument("--repetitions", type=int, default=3, help="steps of each method (default 3)")
    parser.add_argument("--part", choices=("time", "memory"), default=None, help="measure this alone")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return print_peaks(given.child)
    paired.timed_process("benchmarks.against_trl", sys.argv[1:])
    cases = QUICK if given.quick else {name: CASES[name] for name in given.only}
    path = given.folder / "against_trl.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not given.quick else {}
    for name, case in cases.items():
        print(f"{name}: {case}", file=sys.stderr, flush=True)
        one = found.setdefault("cases", {}).setdefault(name, {}) | {"case": asdict(case)}
        if given.part != "memory":
            one |= {"time": times(case, given.repetitions)}
        if given.part != "time" and (given.quick or name in MEASURED_MEMORY):
            one |= {"memory": memory(name)}
        found["cases"][name] = one | {"targets": targets(case, one)}
        # what is measured is kept, whatever becomes of the cases after it
        paired.write("against_trl", found, page(found), given.folder)
    draw(found, given.folder)
    print(given.folder / "against_trl.md")
    return 0


def times(case: Case, repetitions: int) -> dict[str, Any]:
    """Seconds of every step, and how many times longer than ours TRL's take."""
    made = paired.report("against_trl", sys.argv[1:])
    draws, steps = pairs_of(case), steps_of((*OWN, *COMPARED), case)
    samples = paired.interleaved(steps, draws, repetitions, warm=draws(repetitions))
    return {
        "made": made,
        "samples": paired.as_json(samples),
        "ratios": {
            clock: {name: paired.ratio(samples, name, base, clock).as_list() for name, base in COMPARED.items()}
            for clock in ("cpu", "wall")
        },
        "loss_difference": largest_difference(samples),
    }


def largest_difference(samples: paired.Samples) -> float:
    """Between our losses and TRL's of the same pairs; but for the online reference, which is another one."""
    return max(
        abs(one.loss - other.loss)
        for name, base in COMPARED.items()
        if name != "trl_dpo"
        for one, other in zip(samples[name], samples[base], strict=True)
    )


def pairs_of(case: Case) -> Any:
    """Draws the case's pairs."""
    from benchmarks.workloads import SHAPES, Lengths, drawn

    return drawn(case.pairs, SHAPES[case.shape], Lengths(case.prompt, case.shortest, case.longest))


def few(case: Case) -> Any:
    """Two short pairs, on which everything is loaded that a step needs."""
    from benchmarks.workloads import SHAPES, Lengths, random_pairs

    return random_pairs(2, SHAPES[case.shape].vocabulary, Lengths(4, 2, 4), 0)


def steps_of(names: Sequence[str], case: Case) -> dict[str, Step]:
    """The steps of these names: ours on one model, TRL's on another of the same weights."""
    from benchmarks import against_trl_trainers as trl
    from benchmarks.workloads import SHAPES, model_of, own, use_threads

    use_threads()
    shape = SHAPES[case.shape]
    found: dict[str, Step] = {}
    ours = model_of(shape) if set(names) & set(OWN) else None
    other = model_of(shape, "padded") if set(names) - set(OWN) else None
    for name in names:
        if name in OWN and ours is not None:
            method = name.removeprefix("own_")
            found[name] = own(method, ours, *(trl.SIMPO if method == "simpo" else ("method.beta=0.1",)))
        elif other is not None:
            found[name] = trl.theirs(name, other)
    return found


def memory(name: str) -> dict[str, Any]:
    """Peak MiB of every step, and ours as a share of TRL's."""
    made = paired.report("against_trl", sys.argv[1:])
    peaks = paired.in_child("benchmarks.against_trl", "--child", name)
    shares = {method: round(peaks[base] / max(peaks[method], 1e-9), 4) for method, base in COMPARED.items()}
    return {"made": made, "peak_mib": peaks, "share": shares}


def print_peaks(name: str) -> int:
    """Of one step of each method, in processes whose malloc is as usual."""
    case = (CASES | QUICK)[name]
    # what every measurement needs is imported once
    for module in ("benchmarks.against_trl_trainers", "trl.trainer.dpo_trainer", "trl.experimental.cpo"):
        importlib.import_module(module)

    def measure(method: str) -> float:
        step = steps_of([method], case)[method]
        return round(paired.peak_above(step, few(case), pairs_of(case)(0)), 1)

    print(json.dumps(paired.in_forks((*OWN, *COMPARED), measure)))
    return 0


def targets(case: Case, one: dict[str, Any]) -> dict[str, Any]:
    """What must be reached and what was; ratios are those of CPU time."""
    found: dict[str, Any] = {}
    for name, least in case.faster:
        if "time" in one and name in one["time"]["ratios"]["cpu"]:
            median = one["time"]["ratios"]["cpu"][name][0]
            found[f"time/{name}"] = {"at_least": least, "measured": median, "met": median >= least}
    if case.memory is not None and "memory" in one:
        for name in ("trl_cpo", "trl_dpo", "trl_dpo_precomputed"):
            share = one["memory"]["share"].get(name)
            if share is None:
                continue
            found[f"memory/{name}"] = {"at_most": case.memory, "measured": share, "met": share <= case.memory}
    return found


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Steps of DPO and SimPO against TRL's",
        "CPU time of TRL's step / ours: median [lowest–highest] over repetitions. Float32, batch of 4 pairs, prompts "
        "of equal length, responses uniform in the lengths given. On both sides from token ids to gradients and "
        "metrics, without the optimizer.",
        paired.table(["case", "prompt : responses", "steps", *LABELS.values(), "ours, SimPO, s"], time_rows(found)),
        "Peak memory of our step as a share of TRL's (MiB of ours / of TRL's), above weights and reference weights, "
        "with gradients.",
        paired.table(["case", *LABELS.values()], memory_rows(found)),
        "What must be reached:",
        paired.table(["case", "what", "must be", "measured", ""], target_rows(found)),
        *(f"{name}: {paired.quiet_note(one[part]['made'])}" for name, one in found["cases"].items()
          for part in ("time", "memory") if part in one),
    ]  # fmt: skip
    return "\n\n".join(lines)


def time_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, one in found["cases"].items():
        if "time" not in one:
            continue
        case, ratios = one["case"], one["time"]["ratios"]["cpu"]
        seconds = one["time"]["samples"]["own_simpo"]["cpu_s"]
        lengths = f"{case['prompt']} : {case['shortest']}–{case['longest']}"
        values = [str(Ratio(*ratios[method])) if method in ratios else "" for method in LABELS]
        rows.append([name, lengths, str(len(seconds)), *values, f"{sorted(seconds)[len(seconds) // 2]:.2f}"])
    return rows


def memory_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, one in found["cases"].items():
        if "memory" not in one:
            continue
        peaks, shares = one["memory"]["peak_mib"], one["memory"]["share"]
        cells = [
            f"{shares[method]:.2f} ({peaks[base]:.0f} / {peaks[method]:.0f})" if method in shares else ""
            for method, base in COMPARED.items()
        ]
        rows.append([name, *cells])
    return rows


def target_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, one in found["cases"].items():
        for what, target in one["targets"].items():
            bound = f"≥ {target['at_least']}" if "at_least" in target else f"≤ {target['at_most']}"
            part, method = what.split("/")
            met = "reached" if target["met"] else "**missed**"
            rows.append([name, f"{part}, {LABELS[method]}", bound, f"{target['measured']:.2f}", met])
    return rows


def draw(found: dict[str, Any], folder: Path) -> None:
    """Ratios of time as bars, by case."""
    timed = {name: one["time"]["ratios"]["cpu"] for name, one in found["cases"].items() if "time" in one}
    if not timed:
        return

    def bars(axes: Any) -> None:
        width = 0.8 / len(LABELS)
        for place, (method, label) in enumerate(LABELS.items()):
            there = [(number, ratios) for number, ratios in enumerate(timed.values()) if method in ratios]
            values = [Ratio(*ratios[method]) for _, ratios in there]
            at = [number + (place - (len(LABELS) - 1) / 2) * width for number, _ in there]
            spread = [[one.median - one.low for one in values], [one.high - one.median for one in values]]
            axes.bar(at, [one.median for one in values], width, yerr=spread, label=label, capsize=2)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(timed)), timed)
        axes.set_ylabel("CPU time of a step / ours")
        axes.legend(frameon=False, fontsize=7)

    paired.figure(folder / "against_trl.svg", bars, (7.0, 3.4))


if __name__ == "__main__":
    sys.exit(main())
