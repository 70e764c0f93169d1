"""Write the tables of docs/scaling.md: `python -m benchmarks.scaling_page [--measured FILE]`.

What ranks were measured to send and to wait for (results/benchmarks/weak_scaling.json, with a figure beside it), the
planner's formulas against those counts, and the same formulas at 8 and 70 billion parameters. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.planning_page import PROMPT, RESPONSE
from benchmarks.scaling_figure import draw
from benchmarks.weak_scaling import CUTS, OUTPUT, PAIRS, VARIANTS, WORLDS, planned_bytes
from src.config import ROOT, compose_train
from src.planner import engines
from src.planner.engines import MASTER
from src.planner.gpus import GIB, GPUS, Gpu, usable
from src.planner.memory import memory_of
from src.planner.roofline import LINK_SHARE, UTILISATION, forward_flops, step_time
from src.planner.shape import shape_of
from src.planner.sizes import MethodWork, ModelShape, Rows, Setting
from src.planner.words import duration

PAGE = ROOT / "docs" / "scaling.md"
MARK = "<!-- {}: {} by python -m benchmarks.scaling_page -->"
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
"""Llama-3-70B's widths (its configuration on the hub), where they differ from 8B's."""

LENGTH, BATCH = 2048, 128
SHOWN: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "zero2": {"engine": "zero2", "bucket_bytes": 200 * 2**20},
    "zero3": {"engine": "zero3", "bucket_bytes": 200 * 2**20},
    "fsdp2": {"engine": "fsdp2"},
    "fsdp2, weights kept": {"engine": "fsdp2", "reshard": False},
}
CARDS = ("a100_80", "h100", "h200")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=OUTPUT)
    measured = json.loads(parser.parse_args().measured.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    tables = {
        "measured": measured_rows(measured["cases"]),
        "formulas": formula_rows(measured["cases"]),
        "8B": growth_rows(shape_of(config_of(), None), BATCH, (1, 2, 4, 8)),
        "changes": change_rows(shape_of(config_of(), None)),
        "70B": growth_rows(seventy(), BATCH, (2, 4, 8, 16)),
        "stragglers": straggler_rows(),
        "others": other_rows(),
    }
    for name, rows in tables.items():
        before, begin, rest = text.partition(MARK.format(name, "begun"))
        _, end, after = rest.partition(MARK.format(name, "ended"))
        assert end, f"{PAGE} has no place for {name}"
        text = before + begin + "\n\n" + "\n".join(rows) + "\n\n" + end + after
    PAGE.write_text(text, encoding="utf-8")
    draw(measured, OUTPUT.with_suffix(".svg"))
    print(PAGE)
    return 0


def table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def found(cases: list[dict[str, Any]], engine: str, ranks: int, cut: int, method: str = "simpo") -> dict[str, Any]:
    """The case of that name."""
    wanted = (engine, ranks, cut, method)
    names = ("engine", "ranks", "pairs_per_forward", "method")
    return next(case for case in cases if tuple(case[name] for name in names) == wanted)


def measured_rows(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each engine and number of forwards: CPU time, time waited, overlap, bytes, by number of ranks."""
    several = WORLDS[1:]
    columns = ["engine", "forwards a step", f"CPU ms of a rank, {listed(WORLDS)} ranks", "of it beside computing"]
    columns += [f"waited, {listed(several)}", f"overlap, {listed(several)}", f"MB sent, {listed(several)}"]
    rows = []
    for cut in CUTS:
        for engine in VARIANTS:
            here = [found(cases, engine, ranks, cut) for ranks in WORLDS]
            rest = here[1:]
            rows.append(
                [
                    engine,
                    str(PAIRS // cut),
                    listed(f"{1e3 * case['cpu']:.0f}" for case in here),
                    listed(f"{100 * case['beside'] / case['cpu']:.0f}" for case in here) + " %",
                    listed(f"{100 * case['waited_share']:.0f}" for case in rest) + " %",
                    listed(f"{100 * case['overlap']:.0f}" for case in rest) + " %",
                    listed(f"{case['sent_total'] / 1e6:.1f}" for case in rest),
                ]
            )
    return table(columns, rows)


def listed(values: Any) -> str:
    """Values with strokes between them."""
    return " / ".join(map(str, values))


def formula_rows(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each engine: bytes counted on two ranks, and by how much the planner's formula is off."""
    methods = ("simpo", "gapo", "simpo_sam")
    names = {cut: f"{PAIRS // cut} forward{'s' * (cut < PAIRS)}" for cut in CUTS}
    rows = []
    for engine in VARIANTS:
        if engine == "zero2, to owners":
            continue
        cells = []
        for method, cut in product(methods, CUTS):
            counted = found(cases, engine, 2, cut, method)["sent_total"]
            with mock.patch.object(engines, "LIVE", 0 if engine == "zero3" else engines.LIVE):
                formula = planned_bytes(2, (engine, method, cut))
            cells.append(f"{counted / 1e6:.2f} ({100 * (formula / counted - 1) + 0.0:+.1f} %)".replace("-0.0", "+0.0"))
        rows.append([engine, *cells])
    return table(["engine", *(f"{method}, {names[cut]}" for method, cut in product(methods, CUTS))], rows)


def config_of(*more: str) -> Any:
    """SimPO on Llama-3-8B."""
    choices = ["method=simpo", "model=llama3_8b_base", "dataset=ultrafeedback_binarized", "engine=fsdp2"]
    return compose_train([*choices, *more])


def seventy() -> ModelShape:
    """Llama-3-70B."""
    return shape_of(config_of(*(f"model.architecture.{name}={value}" for name, value in SEVENTY.items())), None)


def setting(engine: str, nodes: int, micro_batch: int, batch: int = BATCH) -> Setting:
    """A run in bfloat16 with checkpointed blocks on servers of eight GPUs."""
    plain = Setting("ddp", nodes, 8, micro_batch, batch, checkpointing=True, bfloat16=True)
    return replace(plain, **SHOWN[engine])


ROWS = Rows(
    longest=LENGTH,
    response=LENGTH // 2,
    tokens=2.0 * (PROMPT + RESPONSE),
    supervised=2.0 * RESPONSE,
    both=True,
    packed=LENGTH // 2 + 2 * (LENGTH // 2),
    computed=float(PROMPT + 2 * RESPONSE),
)


def growth_rows(shape: ModelShape, batch: int, servers: tuple[int, ...]) -> Iterator[str]:
    """A line for each engine and number of servers: memory, bytes, and what a step waits for."""
    columns = ["engine", "GPUs", "forwards a step", "GiB a GPU", "fits", "GB sent a GPU"]
    columns += [f"{GPUS[card].name}: arithmetic, links" for card in CARDS[:2]]
    rows = []
    for engine in SHOWN:
        for nodes in servers:
            here = setting(engine, nodes, max(min(2, batch // (8 * nodes)), 1), batch)
            memory = memory_of(shape, ROWS, MethodWork(), here)
            fitting = [GPUS[card].name for card in CARDS if memory.total <= usable(GPUS[card])]
            times = [step_time(GPUS[card], shape, ROWS, MethodWork(), here) for card in CARDS[:2]]
            sent = times[0].links * link(GPUS[CARDS[0]], here) * LINK_SHARE
            cells = [f"{duration(time.arithmetic)}, {duration(time.links)}" for time in times]
            places = [engine, str(here.world), str(here.micro_steps), f"{memory.total / GIB:.0f}"]
            rows.append([*places, ", ".join(fitting) or "none", f"{sent:.0f}", *cells])
    return table(columns, rows)


def link(gpu: Gpu, here: Setting) -> float:
    """GB/s of the slowest edge of the ring."""
    return gpu.nvlink if here.nodes == 1 else min(gpu.nvlink, gpu.network)


def change_rows(shape: ModelShape) -> Iterator[str]:
    """What each change saves of the links' time on 64 A100, with a batch of 512 pairs, so four forwards of two."""
    gpu, batch, nodes = GPUS["a100_80"], 512, 8

    def row(name: str, here: Setting, seconds: float | None = None) -> list[str]:
        memory = memory_of(shape, ROWS, MethodWork(), here).total / GIB
        time = step_time(gpu, shape, ROWS, MethodWork(), here)
        links = time.links if seconds is None else seconds
        return [name, str(here.micro_steps), duration(links), duration(time.arithmetic), f"{memory:.0f}"]

    base = setting("fsdp2", nodes, 2, batch)
    rows = [
        row("fsdp2 as it is", base),
        row("micro_batch_size 4", replace(base, micro_batch=4)),
        row("micro_batch_size 8", replace(base, micro_batch=8)),
        row("reshard_after_forward=false", replace(base, reshard=False)),
        row("both", replace(base, reshard=False, micro_batch=8)),
        row("sharded within servers, summed between them in every backward (not built)", base, hybrid(shape, base)),
        row("the same, summed once a step (not built)", base, hybrid(shape, replace(base, micro_batch=8))),
        row("zero2 as it is", setting("zero2", nodes, 2, batch)),
        row("ddp as it is", setting("ddp", nodes, 2, batch)),
    ]
    return table(["what", "forwards a step", "links", "arithmetic", "GiB a GPU"], rows)


def hybrid(shape: ModelShape, here: Setting) -> float:
    """Seconds of A100's links between servers when weights are gathered within a server and shards of gradients are
    summed between servers, once for each forward of ``here``; what NVLink does beside it takes less."""
    gpu, nodes = GPUS["a100_80"], here.nodes
    sent = 2 * (nodes - 1) / nodes * MASTER * shape.share.trained / here.gpus_per_node * here.micro_steps
    return sent * here.gpus_per_node / (gpu.network * LINK_SHARE * 1e9)


def straggler_rows() -> Iterator[str]:
    """How much longer the longest rank of a forward computes than the average one."""
    rows = []
    for ranks in (8, 64):
        for each in (1, 2, 4, 8):
            lengths = pair_lengths((400, ranks, each))
            dealt = np.sort(lengths.reshape(400, -1), axis=1)[:, ::-1]
            rows.append([str(ranks), str(each), f"{slowest(lengths):.2f}", f"{slowest(in_turns(dealt, ranks)):.2f}"])
    return table(["ranks", "pairs a forward", "as drawn", "dealt by length"], rows)


def pair_lengths(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Tokens of pairs: log-normal with the mean of the tables above and a standard deviation of the logarithm of 0.5
    (assumed), at most what a row may have."""
    mean, spread = PROMPT + 2 * RESPONSE, 0.5
    drawn = np.random.Generator(np.random.PCG64(0)).lognormal(np.log(mean) - spread**2 / 2, spread, shape)
    return np.minimum(drawn, 1.5 * LENGTH)


def in_turns(lengths: NDArray[np.float64], ranks: int) -> NDArray[np.float64]:
    """Pairs from the longest on, each given to the rank that has least and still has room; [forwards, ranks, 1]."""
    each = lengths.shape[1] // ranks
    totals, counts = np.zeros((len(lengths), ranks)), np.zeros((len(lengths), ranks), dtype=int)
    for place in range(lengths.shape[1]):
        least = np.where(counts < each, totals, np.inf).argmin(1)
        totals[np.arange(len(lengths)), least] += lengths[:, place]
        counts[np.arange(len(lengths)), least] += 1
    return totals[..., None]


def slowest(lengths: NDArray[np.float64]) -> float:
    """The longest rank over the average one, on average over forwards; ``lengths``: [forwards, ranks, pairs]."""
    totals = lengths.sum(2)
    return float((totals.max(1) / totals.mean(1)).mean())


def other_rows() -> Iterator[str]:
    """What is not a step: a checkpoint's whole model on rank 0, and the reference's pass over 60,000 pairs."""
    rows = []
    for name, shape in (("8B", shape_of(config_of(), None)), ("70B", seventy())):
        whole = MASTER * shape.share.total
        adapter = GPUS["a100_80"].network / 8 * LINK_SHARE * 1e9
        flops = 60_000 * sum(forward_flops(shape, ROWS))
        seconds = flops / 64 / (GPUS["a100_80"].bf16 * 1e12 * UTILISATION)
        rows.append([name, f"{whole / 1e9:.0f}", duration(whole / adapter), duration(whole / 2e9), duration(seconds)])
    columns = ["model", "GB of model/", "gathered through one adapter", "written at 2 GB/s", "reference pass, 64 A100"]
    return table(columns, rows)


if __name__ == "__main__":
    sys.exit(main())
