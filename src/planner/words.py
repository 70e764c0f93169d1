"""A plan's memory, times and verdicts in words."""

from __future__ import annotations

from src.planner.fit import Fit
from src.planner.gpus import GIB, usable
from src.planner.launch import PORT
from src.planner.memory import Memory
from src.planner.roofline import LINK_SHARE, UTILISATION
from src.planner.sizes import Setting

SHOWN = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "snapshot")
"""Parts of memory as they are listed; the last three only where there are any."""

ASSUMED = (
    f"step times: a roofline on tokens without padding at {UTILISATION:.0%} of the peak FLOP/s and {LINK_SHARE:.0%} of "
    "the links, all assumed; memory: the longest rows together"
)


def memory_words(memory: Memory) -> str:
    """The estimate by what it holds, in GiB."""
    parts = [
        f"{name} {getattr(memory, name) / GIB:.2f}"
        for place, name in enumerate(SHOWN)
        if place < 4 or getattr(memory, name)
    ]
    host = f"; {memory.host / GIB:.2f} GiB in the memory of each node" if memory.host else ""
    return f"about {memory.total / GIB:.2f} GiB on one GPU ({', '.join(parts)}), most in the {memory.phase}{host}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def fit_rows(fits: list[Fit], steps: int) -> list[tuple[str, str]]:
    """One line for each kind of GPU: whether it fits, how long it takes, what to change."""
    return [(fit.gpu.name, f"{verdict(fit)}; {time_words(fit, steps)}") for fit in fits]


def verdict(fit: Fit) -> str:
    """Whether it fits, and what makes it fit."""
    sizes = f"{fit.memory.total / GIB:.1f} of {usable(fit.gpu) / GIB:.1f} GiB"
    if fit.fits:
        return f"fits, {sizes}"
    if not fit.changes:
        return f"does not fit, {sizes}, and no change that is known here makes it"
    other = f" (or, on as many GPUs: {' '.join(fit.without_more_gpus)})" if fit.without_more_gpus else ""
    return f"does not fit, {sizes}; nearest that does: {' '.join(fit.changes)}{other}"


def time_words(fit: Fit, steps: int) -> str:
    """A step, the run, and what it waits for."""
    return f"{duration(fit.time.total)} a step, {duration(steps * fit.time.total)} in all, limited by {fit.time.limit}"


def launch_notes(setting: Setting) -> list[str]:
    """What the command leaves to be filled in."""
    if setting.nodes == 1:
        return []
    return [
        "run the command on every node, with NODE_RANK=0, 1, ... and MASTER_ADDR, the host name of the node of rank 0, "
        f"whose port {PORT} the others must reach"
    ]
