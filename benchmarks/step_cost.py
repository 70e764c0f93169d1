"""What each technique and each method costs: `python -m benchmarks.step_cost [--quick] [--part PART ...]`.

* ``techniques``: the step of SimPO and of DPO with one technique at a time switched off, by time and peak memory.
* ``optimizer``: AdamW fused, by lists of tensors, and tensor by tensor.
* ``methods``: every method of conf/method relative to SimPO on the same pairs, without the optimizer.
* ``within``: AMaPO, γ-PO and GapPO against SimPO in more repetitions; SimPO stands there twice to show the noise.

Writes results/benchmarks/step_cost.json, .md and .svg; parts that were not run anew stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import paired
from benchmarks.paired import Ratio, Step

PARTS = ("techniques", "optimizer", "methods", "within")
WITHIN = ("amapo", "gamma_simpo", "gappo")
LIMIT = 1.02


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    techniques: tuple[str, ...] = ("L4k", "S32k")
    memory: bool = True
    methods: tuple[tuple[str, int, int], ...] = (("tiny", 8, 8), ("L4k", 2, 2))
    within: tuple[tuple[str, int, int], ...] = (("tiny", 8, 40), ("L4k", 4, 12), ("S32k", 4, 7))
    lengths: tuple[int, int, int] = (128, 64, 256)
    repetitions: int = 3


QUICK = Size(("nano",), False, (("nano", 2, 1),), (("nano", 2, 2),), (8, 4, 16), 1)
"""Shapes, pairs and repetitions of a part."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of no size, to see that it runs")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument(
        "--shapes", nargs="+", help="models of the parts techniques (default L4k S32k) and within (default all)"
    )
    parser.add_argument("--repetitions", type=int, help="steps of each technique (default 3)")
    parser.add_argument("--no-memory", action="store_true", help="techniques by time alone")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return print_peaks(given.child[0], given.child[1], given.child[2:])
    paired.timed_process("benchmarks.step_cost", sys.argv[1:])
    from benchmarks.workloads import use_threads

    use_threads()
    size, path = QUICK if given.quick else sized(given), given.folder / "step_cost.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not given.quick else {}
    measure: dict[str, Callable[[Size], dict[str, Any]]] = {
        "techniques": techniques,
        "optimizer": optimizer,
        "methods": methods,
        "within": within,
    }
    for part in given.part:
        print(part, file=sys.stderr, flush=True)
        found[part] = {"made": paired.report("step_cost", sys.argv[1:]), **measure[part](size)}
        paired.write("step_cost", found, page(found), given.folder)
    draw(found, given.folder)
    print(given.folder / "step_cost.md")
    return 0


def sized(given: argparse.Namespace) -> Size:
    """How much is measured, as the command line says."""
    size = Size()
    return replace(
        size,
        techniques=tuple(given.shapes or size.techniques),
        within=tuple(one for one in size.within if one[0] in (given.shapes or [one[0]])),
        repetitions=given.repetitions or size.repetitions,
        memory=not given.no_memory,
    )


def draws(shape: str, pairs: int, lengths: Sequence[int]) -> Callable[[int], Any]:
    """New pairs for every repetition."""
    from benchmarks.workloads import SHAPES, Lengths, drawn

    return drawn(pairs, SHAPES[shape], Lengths(*lengths))


def techniques(size: Size) -> dict[str, Any]:
    """Time, memory and loss of the variants, by method and shape."""
    from benchmarks.step_cost_variants import variants
    from benchmarks.workloads import SHAPES

    found: dict[str, Any] = {}
    for shape in size.techniques:
        for method in ("simpo", "dpo"):
            steps = variants(method, SHAPES[shape])
            if method == "dpo":  # what the reference has no part in was measured with SimPO
                steps = {name: steps[name] for name in ("program", "no stored reference", "nothing (papers' code)")}
            draw = draws(shape, 4, size.lengths)
            samples = paired.interleaved(steps, draw, size.repetitions, warm=draw(size.repetitions))
            one: dict[str, Any] = {
                "samples": paired.as_json(samples),
                "ratios": {name: paired.ratio(samples, name, "program").as_list() for name in steps},
                "loss_difference": max(
                    abs(a.loss - b.loss)
                    for name in steps
                    for a, b in zip(samples[name], samples["program"], strict=True)
                ),
            }
            if size.memory:
                one["peak_mib"] = paired.in_child("benchmarks.step_cost", "--child", method, shape, *steps)
            found[f"{method}, {shape}"] = one
    return {"by": found}


def print_peaks(method: str, shape: str, names: Sequence[str]) -> int:
    """MiB of one step of each variant, in processes whose malloc is as usual."""
    from benchmarks.step_cost_variants import variants
    from benchmarks.workloads import SHAPES, use_threads

    use_threads()

    def measure(name: str) -> float:
        step = variants(method, SHAPES[shape])[name]
        return round(paired.peak_above(step, draws(shape, 2, (4, 2, 4))(0), draws(shape, 4, Size().lengths)(0)), 1)

    print(json.dumps(paired.in_forks(names, measure)))
    return 0


def optimizer(size: Size) -> dict[str, Any]:
    """Milliseconds of an update by AdamW's three forms."""
    import torch

    from benchmarks.workloads import SHAPES, model_of

    shape = size.techniques[0]
    model = model_of(SHAPES[shape])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    forms: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "for-loop": {"foreach": False},
    }
    steps = {name: update(torch.optim.AdamW(model.parameters(), lr=1e-6, **form)) for name, form in forms.items()}
    samples = paired.interleaved(steps, lambda seed: seed, 3 * size.repetitions, warm=0)
    return {
        "shape": shape,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "samples": paired.as_json(samples),
        "ratios": {name: paired.ratio(samples, name, "fused").as_list() for name in steps},
    }


def update(optimizer: Any) -> Step:
    """An update as a step."""

    def step(_: Any) -> float:
        optimizer.step()
        return 0.0

    return step


def methods(size: Size) -> dict[str, Any]:
    """Every method of conf/method relative to SimPO, by shape."""
    from src.config import ROOT

    names = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
    return {"by": {shape: relative(names, shape, pairs, times, size) for shape, pairs, times in size.methods}}


def within(size: Size) -> dict[str, Any]:
    """The methods that may cost no more than SimPO."""
    names = ["simpo", "simpo again", *WITHIN]
    return {
        "limit": LIMIT,
        "by": {shape: relative(names, shape, pairs, times, size) for shape, pairs, times in size.within},
    }


def relative(names: Sequence[str], shape: str, pairs: int, repetitions: int, size: Size) -> dict[str, Any]:
    """Ratios of CPU time to SimPO's, all on one model."""
    from benchmarks.workloads import SHAPES, model_of, own

    model = model_of(SHAPES[shape])
    steps: dict[str, Step] = {name: own(name.removesuffix(" again"), model) for name in names}
    draw = draws(shape, pairs, size.lengths)
    samples = paired.interleaved(steps, draw, repetitions, warm=draw(repetitions))
    return {
        "pairs": pairs,
        "repetitions": repetitions,
        "simpo_cpu_s": round(paired.seconds(samples["simpo"]), 5),
        "ratios": {name: paired.ratio(samples, name, "simpo").as_list() for name in names},
        "samples": paired.as_json(samples),
    }


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# What techniques and methods cost", "Ratios of CPU time: median [lowest–highest] over repetitions."]
    if "techniques" in found:
        lines += ["## One technique at a time switched off", technique_table(found["techniques"]["by"])]
    if "optimizer" in found:
        one = found["optimizer"]
        rows = [
            [name, f"{1000 * sorted(one['samples'][name]['cpu_s'])[len(one['samples'][name]['cpu_s']) // 2]:.1f}",
             str(Ratio(*one["ratios"][name]))] for name in one["ratios"]
        ]  # fmt: skip
        lines += [f"## AdamW, {one['parameters'] / 1e6:.1f}M parameters", paired.table(["form", "ms", "ratio"], rows)]
    if "within" in found:
        lines += ["## AMaPO, γ-PO and GapPO against SimPO (at most 1.02)", method_table(found["within"]["by"])]
    if "methods" in found:
        lines += ["## Every method against SimPO", method_table(found["methods"]["by"])]
    lines += [f"{part}: {paired.quiet_note(found[part]['made'])}" for part in PARTS if part in found]
    return "\n\n".join(lines)


def technique_table(by: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for one in by.values() for name in one["ratios"]))
    rows = []
    for name in names:
        row = [name]
        for one in by.values():
            cell = str(Ratio(*one["ratios"][name])) if name in one["ratios"] else ""
            peak = one.get("peak_mib", {}).get(name)
            row.append(cell + (f", {peak:.0f} MiB" if peak is not None else ""))
        rows.append(row)
    return paired.table(["switched off", *by], rows)


def method_table(by: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for one in by.values() for name in one["ratios"]))
    head = [f"{shape}, {one['pairs']} pairs, {one['repetitions']} steps" for shape, one in by.items()]
    rows = [[name, *(str(Ratio(*one["ratios"][name])) for one in by.values())] for name in names]
    return paired.table(["method", *head], rows)


def draw(found: dict[str, Any], folder: Path) -> None:
    """The variants of SimPO as bars."""
    by = {name: one for name, one in found.get("techniques", {}).get("by", {}).items() if name.startswith("simpo")}
    if not by:
        return
    names = list(next(iter(by.values()))["ratios"])

    def bars(axes: Any) -> None:
        width = 0.8 / len(by)
        for place, (label, one) in enumerate(by.items()):
            at = [number + (place - (len(by) - 1) / 2) * width for number in range(len(names))]
            axes.barh(at, [one["ratios"][name][0] for name in names], width, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel("CPU time of a step / the program's")
        axes.legend(frameon=False, fontsize=7)

    paired.figure(folder / "step_cost.svg", bars)


if __name__ == "__main__":
    sys.exit(main())
