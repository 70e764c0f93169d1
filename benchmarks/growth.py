"""How the cost of a SimPO step grows: `python -m benchmarks.growth [--quick] [--part PART ...]`.

Sixteenfold ranges, in which all points take turns: ``pairs`` in a forward; ``tokens`` of a pair (attention is
quadratic in these, everything else linear); ``vocabulary``; ``prompt``, the share that the prompt has of a row, for the
program's packed rows and for padded ones. A straight line is fitted by least squares: what it explains (R²), and the
slope of log time over log size, which is 1 where cost is proportional. ``head``: bytes that the head holds beside its
inputs, their gradients and its own gradient, watched tensor by tensor.

Writes results/benchmarks/growth.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import paired
from benchmarks.paired import Step

PARTS = ("pairs", "tokens", "vocabulary", "prompt", "head")
FACTORS = (1, 2, 4, 8, 16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of no size, to see that it runs")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--repetitions", type=int, default=3, help="steps of each point (default 3)")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    given = parser.parse_args()
    paired.timed_process("benchmarks.growth", sys.argv[1:])
    from benchmarks.workloads import use_threads

    use_threads()
    path = given.folder / "growth.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not given.quick else {}
    for part in given.part:
        print(part, file=sys.stderr, flush=True)
        made = paired.report("growth", sys.argv[1:])
        if part == "head":
            found[part] = {"made": made, **head(given.quick)}
        else:
            found[part] = {"made": made, **series(part, given.repetitions, given.quick)}
        paired.write("growth", found, page(found), given.folder)
    draw(found, given.folder)
    print(given.folder / "growth.md")
    return 0


def series(part: str, repetitions: int, quick: bool) -> dict[str, Any]:
    """Seconds at each size, and the lines through them."""
    points = {"pairs": pairs, "tokens": tokens, "vocabulary": vocabulary, "prompt": prompt}[part](quick)
    steps = {name: step for name, (_, step, _) in points.items()}
    draws = {name: draw for name, (_, _, draw) in points.items()}
    fixed = {name: once(step, draws[name]) for name, step in steps.items()}
    samples = paired.interleaved(fixed, lambda seed: seed, 1 if quick else repetitions, warm=0)
    lines = {}
    for line in dict.fromkeys(name.split(" ")[0] for name in points):
        mine = [name for name in points if name.split(" ")[0] == line]
        sizes = [points[name][0] for name in mine]
        lines[line] = fitted(sizes, [paired.seconds(samples[name]) for name in mine])
    return {"lines": lines, "samples": paired.as_json(samples)}


Point = tuple[float, Step, Callable[[int], Any]]
"""A size, the step measured there, and what draws its pairs."""


def once(step: Step, draw: Callable[[int], Any]) -> Step:
    """The step on pairs of its own size."""
    return lambda seed: step(draw(seed))


def pairs(quick: bool) -> dict[str, Point]:
    """A forward of ever more pairs."""
    from benchmarks.workloads import SHAPES, Lengths, drawn, model_of, own

    shape = SHAPES["nano" if quick else "T4k"]
    step, lengths = own("simpo", model_of(shape)), Lengths(8, 4, 8) if quick else Lengths(64, 64, 64)
    return {f"packed {count}": (count, step, drawn(count, shape, lengths)) for count in FACTORS}


def tokens(quick: bool) -> dict[str, Point]:
    """Two pairs of ever longer prompts and responses; size: tokens of the forward."""
    from benchmarks.workloads import SHAPES, Lengths, drawn, model_of, own

    shape, unit = SHAPES["nano" if quick else "T4k"], 4 if quick else 32
    step = own("simpo", model_of(shape))
    return {
        f"packed {factor}": (6 * unit * factor, step, drawn(2, shape, Lengths(*[unit * factor] * 3)))
        for factor in FACTORS
    }


def vocabulary(quick: bool) -> dict[str, Point]:
    """One model with ever more tokens to choose from."""
    from benchmarks.workloads import SHAPES, Lengths, drawn, model_of, own

    base, unit = SHAPES["nano" if quick else "T4k"], 64 if quick else 4096
    lengths = Lengths(8, 4, 8) if quick else Lengths(128, 64, 192)
    found: dict[str, Point] = {}
    for factor in FACTORS:
        shape = replace(base, vocabulary=unit * factor)
        found[f"packed {factor}"] = (unit * factor, own("simpo", model_of(shape)), drawn(4, shape, lengths))
    return found


def prompt(quick: bool) -> dict[str, Point]:
    """Rows of one length, ever more of which is prompt; size: that share. Packed and padded."""
    from benchmarks.workloads import SHAPES, Lengths, drawn, model_of, own

    shape, row = SHAPES["nano" if quick else "T4k"], 32 if quick else 256
    found: dict[str, Point] = {}
    for line, layout in (("packed", "prefix"), ("padded", "padded")):
        step = own("simpo", model_of(shape, layout))
        for response in (1, 2, 4, 8, 16):
            length = row * response // 16
            draw = drawn(4, shape, Lengths(row - length, length, length))
            found[f"{line} {response}/16"] = (1 - response / 16, step, draw)
    return found


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """A line through the points: seconds = fixed + each · size; R²; and the slope of log over log."""
    import numpy

    at = numpy.asarray(sizes, dtype=float)
    each, fixed = numpy.polyfit(at, numpy.asarray(seconds), 1)
    rest = numpy.asarray(seconds) - (fixed + each * at)
    explained = 1 - float((rest**2).sum() / ((numpy.asarray(seconds) - numpy.mean(seconds)) ** 2).sum())
    grown = at > 0
    power = numpy.polyfit(numpy.log(at[grown]), numpy.log(numpy.asarray(seconds)[grown]), 1)[0]
    return {
        "sizes": list(sizes),
        "cpu_s": [round(second, 5) for second in seconds],
        "fixed_s": round(float(fixed), 6),
        "each_s": float(each),
        "explained": round(explained, 5),
        "power": round(float(power), 4),
    }


def head(quick: bool) -> dict[str, Any]:
    """MiB that the fused head holds at its peak, by pairs."""
    import torch

    from benchmarks.memory_plan import Watch, size
    from src.model.fused import fused_pair_loss, pair_groups
    from src.model.head import chunk_tokens

    width, words, each = (16, 512, 8) if quick else (256, 32000, 320)
    weight = torch.randn(words, width).div_(width**0.5).requires_grad_()
    found = []
    for count in FACTORS:
        hidden = torch.randn(2 * each * count, width, requires_grad=True)
        labels = torch.randint(words, (len(hidden),))
        owner = torch.arange(2 * count).repeat_interleave(each)
        groups = pair_groups([2 * each] * count, chunk_tokens(words, hidden.device))
        watch = Watch()
        for tensor in (hidden, weight, labels, owner):
            watch.born(tensor.untyped_storage())
        with watch:
            before = watch.now
            fused = fused_pair_loss(hidden, weight, labels, owner, groups, lambda log_probs, _: spread(log_probs))
            peak = watch.peak - before
        del fused
        own = peak - size(hidden) - size(weight)
        found.append(round(own / 2**20, 3))
    whole = [2 * each * count * words * 4 / 2**20 for count in FACTORS]
    return {"pairs": list(FACTORS), "mib": found, "logits_of_all_mib": whole, "ratio": round(found[-1] / found[0], 4)}


def spread(log_probs: Any) -> Any:
    """A loss of pairs."""
    return -(log_probs.chosen.average - log_probs.rejected.average).sigmoid().log().sum()


TITLES = {
    "pairs": "pairs in a forward",
    "tokens": "tokens of a forward of two pairs",
    "vocabulary": "vocabulary",
    "prompt": "share of a row that is prompt",
}


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = []
    for part, title in TITLES.items():
        for line, fit in found.get(part, {}).get("lines", {}).items():
            sizes = [f"{size:g}" for size in (fit["sizes"][0], fit["sizes"][-1])]
            times = [f"{1000 * fit['cpu_s'][place]:.0f}" for place in (0, -1)]
            power = f"{fit['power']:.2f}" if part != "prompt" else ""
            rows.append([title, line, " – ".join(sizes), " – ".join(times), f"{fit['explained']:.4f}", power])
    lines = [
        "# How the cost of a step grows",
        "SimPO, float32, from token ids to gradients and metrics, CPU time. R²: what a straight line explains; power: "
        "slope of log time over log size.",
        paired.table(["over", "rows", "range", "ms", "R²", "power"], rows),
    ]
    if "head" in found:
        one = found["head"]
        columns = zip(one["pairs"], one["mib"], one["logits_of_all_mib"], strict=True)
        cells = [[str(count), f"{mib:.1f}", f"{whole:.0f}"] for count, mib, whole in columns]
        lines += [
            "What the head holds beside its inputs and gradients, and what the logits of all supervised tokens would:",
            paired.table(["pairs", "MiB", "all logits, MiB"], cells),
        ]
    lines += [f"{part}: {paired.quiet_note(found[part]['made'])}" for part in PARTS if part in found]
    return "\n\n".join(lines)


def draw(found: dict[str, Any], folder: Path) -> None:
    """Time over size, relative to the first point."""
    parts = [part for part in ("pairs", "tokens", "vocabulary") if part in found]
    if not parts:
        return

    def lines(axes: Any) -> None:
        for part in parts:
            for fit in found[part]["lines"].values():
                sizes = [size / fit["sizes"][0] for size in fit["sizes"]]
                axes.plot(sizes, [second / fit["cpu_s"][0] for second in fit["cpu_s"]], marker="o", label=TITLES[part])
        axes.plot(FACTORS, FACTORS, color="black", linewidth=0.8, linestyle=":", label="proportional")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("size / smallest")
        axes.set_ylabel("CPU time / smallest")
        axes.legend(frameon=False, fontsize=7)

    paired.figure(folder / "growth.svg", lines)


if __name__ == "__main__":
    sys.exit(main())
