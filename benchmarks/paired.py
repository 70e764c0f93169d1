"""How benchmarks of steps are measured and written down.

All that are compared live in one process. Per repetition each takes one step on the same pairs, new pairs every time,
in rotated order. What is compared is the CPU time of the process, which other work on the machine hardly changes; wall
time stands beside it. A ratio is the median of the repetitions' ratios, with the smallest and the largest.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import ROOT
from src.environment import environment

RESULTS = ROOT / "results" / "benchmarks"

KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}
"""glibc keeps what is freed: else large tensors are paged in at every step, which a GPU's allocator does not do."""

Step = Callable[[Any], float]
"""A step on a batch of pairs; gives its loss."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one step, by the process's clock and by the wall's, and its loss."""

    cpu: float
    wall: float
    loss: float

    def by(self, clock: str) -> float:
        """Seconds by that clock."""
        return self.cpu if clock == "cpu" else self.wall


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median, smallest and largest of some repetitions' ratios."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Ratio:
        return Ratio(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}–{self.high:.2f}]"

    def as_list(self) -> list[float]:
        return [round(value, 4) for value in (self.median, self.low, self.high)]


Samples = dict[str, list[Sample]]


def timed_process(module: str, arguments: Sequence[str]) -> None:
    """Start ``python -m module arguments`` anew in place of this process, unless its malloc keeps memory already."""
    if all(os.environ.get(name) == value for name, value in KEEP_MEMORY.items()):
        return
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    settings = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], settings)


def timed(step: Step, pairs: Any) -> Sample:
    """One step by the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(pairs)
    return Sample(time.process_time() - cpu, time.perf_counter() - wall, loss)


def interleaved(
    steps: Mapping[str, Step], draw: Callable[[int], Any], repetitions: int, *, warm: Any | None = None
) -> Samples:
    """Samples of each step: repetition i runs all on ``draw(i)``, beginning with another one each time."""
    names = list(steps)
    if warm is not None:
        for name in names:
            steps[name](warm)
    found: Samples = {name: [] for name in names}
    for repetition in range(repetitions):
        pairs = draw(repetition)
        first = repetition % len(names)
        gc.collect()
        for name in names[first:] + names[:first]:
            found[name].append(timed(steps[name], pairs))
        took = ", ".join(f"{name} {found[name][-1].cpu:.2f}" for name in names)
        print(f"  {repetition + 1}/{repetitions}: {took}", file=sys.stderr, flush=True)
    return found


def ratio(samples: Samples, over: str, base: str, clock: str = "cpu") -> Ratio:
    """How many times longer ``over`` takes than ``base``."""
    pairs = zip(samples[over], samples[base], strict=True)
    return Ratio.of([one.by(clock) / other.by(clock) for one, other in pairs])


def seconds(samples: Sequence[Sample], clock: str = "cpu") -> float:
    """Median seconds of a step."""
    return statistics.median(one.by(clock) for one in samples)


def as_json(samples: Samples) -> dict[str, Any]:
    """All samples, by method and clock."""
    return {
        name: {
            "cpu_s": [round(one.cpu, 5) for one in many],
            "wall_s": [round(one.wall, 5) for one in many],
            "loss": [round(one.loss, 6) for one in many],
        }
        for name, many in samples.items()
    }


def peak_above(step: Step, warm: Any, pairs: Any) -> float:
    """MiB by which the process grows at most during ``step(pairs)``, once ``step(warm)`` has loaded what it needs."""
    step(warm)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    step(pairs)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def in_child(module: str, *arguments: str) -> dict[str, Any]:
    """What ``python -m module arguments`` prints as its last line of JSON; its malloc is as usual."""
    usual = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=usual)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def in_forks(names: Iterable[str], measure: Callable[[str], float]) -> dict[str, float]:
    """``measure`` of each name in a process of its own, forked from this one, which has the imports behind it."""
    found = {}
    for name in names:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(theirs, json.dumps(measure(name)).encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            answer = pipe.read()
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"measuring {name} failed")
        found[name] = float(json.loads(answer))
    return found


def report(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The head of a report: how it was made, with what, and how busy the machine was."""
    load = os.getloadavg()[0]
    return {
        "command": f"python -m benchmarks.{name} {' '.join(arguments)}".rstrip(),
        "environment": environment() | {"trl": version("trl")},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
            "load": round(load, 2),
            "quiet": load < (os.cpu_count() or 1) + 0.5,  # two benchmarks of one thread may share two cores
        },
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """What Linux calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def quiet_note(made: Mapping[str, Any]) -> str:
    """What a page says of the machine of a report."""
    machine = made["machine"]
    busy = "" if machine["quiet"] else f"; other work ran beside it (load {machine['load']}), so wall times mean little"
    commit = (made["environment"]["commit"] or "unknown")[:12]
    return (
        f"{machine['processor']}, {machine['threads']} thread, torch {made['environment']['torch']}, "
        f"transformers {made['environment']['transformers']}, TRL {made['environment']['trl']}, commit {commit}{busy}. "
        f"Made by `{made['command']}`."
    )


def write(name: str, made: Mapping[str, Any], page: str, folder: Path | None = None) -> Path:
    """``name``.json and ``name``.md."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(page.rstrip() + "\n", encoding="utf-8")
    return folder / f"{name}.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 3.2)) -> None:
    """An SVG drawn on one set of axes; the same numbers give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "marginalia", "svg.fonttype": "none", "font.size": 9}):
        drawing, axes = pyplot.subplots(figsize=size, layout="constrained")
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        drawing.savefig(path, metadata={"Date": None})
        pyplot.close(drawing)
