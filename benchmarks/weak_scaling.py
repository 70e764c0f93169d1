"""What several ranks cost: `python -m benchmarks.weak_scaling [--rounds N] [--output FILE]`.

One to four gloo ranks on this machine train a small Llama by every engine, each rank the same number of pairs, cut into
one forward or into four. Every group of ranks is forked anew from this process; repetitions are interleaved, so that
other load on the machine falls on all alike, and medians are kept. Of each step: wall and CPU time, time in which the
rank waited for others, bytes sent by collective. Bytes do not depend on the machine; times with more ranks than
cores are those of sharing cores. Writes results/benchmarks/weak_scaling.json and .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import socket
import statistics
import sys
import tempfile
import traceback
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import src.engine.distributed
import src.engine.fsdp
import src.engine.zero
from benchmarks.collectives import Counted, in_flight, moment, sent
from src.config import ROOT, compose_train
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.create import create_engine, needs_weights
from src.engine.deepspeed_setup import settings_of
from src.engine.ranks import ranks
from src.model.load import build_model
from src.planner import engines as planned
from src.planner.roofline import passes_of
from src.planner.shape import shape_of_model
from src.planner.sizes import Setting
from src.schema import TrainConfig
from src.training.assemble import build_objective
from src.training.plan_sizes import work_of
from src.training.step import training_step

OUTPUT = ROOT / "results" / "benchmarks" / "weak_scaling.json"
WORLDS = (1, 2, 3, 4)
PAIRS = 4
"""Of one rank in a step."""

CUTS = (4, 1)
"""Pairs of a rank's forward: one forward, or four."""

TOKENS = (24, 20, 20)
"""Of prompt and responses: all pairs are alike, so that no rank waits for one with longer pairs."""

WARM, STEPS, REPETITIONS = 1, 3, 2
"""Steps of a case in a round: to get warm, in turn, and how many turns there are."""

VOCABULARY = 2048
MODEL = (
    "model=tiny",
    "model.init=scratch",
    "model.architecture.hidden_size=128",
    "model.architecture.intermediate_size=352",
    "model.architecture.num_hidden_layers=4",
    "model.architecture.num_attention_heads=4",
    "model.architecture.num_key_value_heads=2",
    f"model.architecture.vocab_size={VOCABULARY}",
    "model.architecture.tie_word_embeddings=false",
    "dataset=toy",
    "~recipe",
    "engine.device=cpu",
)
METHODS = {"simpo": (), "gapo": ("method.probe=perturb",), "simpo_sam": ()}
"""One pass over the window, which is timed; several, whose bytes alone are counted."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "ddp": ("engine=ddp", "engine.bucket_mb=1"),
    "zero2": ("engine=zero2", "engine.bucket_mb=1"),
    "zero2, to owners": ("engine=zero2", "engine.bucket_mb=1"),
    "fsdp2": ("engine=fsdp2",),
    "fsdp2, weights kept": ("engine=fsdp2", "engine.reshard_after_forward=false"),
    # small parameters would all stay gathered, which none of a real model's matrices does
    "zero3": ("engine=zero3", "engine.bucket_mb=1", "engine.persistence_threshold=1000"),
    "zero3, all live": ("engine=zero3", "engine.bucket_mb=1", "engine.persistence_threshold=1000"),
}
"""Engines, and some of them with another setting."""

DEEPSPEED: dict[str, dict[str, Any]] = {
    # it sums gradients on all ranks, of which one keeps them; here on that one alone
    "zero2, to owners": {"use_multi_rank_bucket_allreduce": False},
    # it keeps 10^9 parameters gathered from forward to backward: here all, of larger models the smaller part
    "zero3": {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0},
    "zero2": {},
    "zero3, all live": {},
}
"""Settings of DeepSpeed that the project leaves as they are."""

Spent = dict[str, float]
"""Where the time of a step went (``Moment.since``)."""


@dataclass
class Found:
    """What a rank found of an engine with some cut of its pairs."""

    timed: list[Spent]
    calls: dict[str, int]
    whole: dict[str, int]
    profiled: list[Spent]


Case = tuple[str, str, int]
"""Variant, method, pairs of a rank's forward."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each group of ranks is started")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - before the forks
    import peft  # noqa: F401

    for variant, method in product(VARIANTS, METHODS):
        config_of(variant, method)
    found: dict[int, list[list[dict[Case, Found]]]] = {world: [] for world in WORLDS}
    for number, world in product(range(given.rounds), WORLDS):
        found[world].append(measured(world))
        print(f"{number + 1}/{given.rounds}: {world} ranks", flush=True)
    from src.environment import environment

    report = {
        "command": " ".join(["python -m benchmarks.weak_scaling", *sys.argv[1:]]),
        "environment": environment(),
        "cores": os.cpu_count(),
        "pairs_per_rank": PAIRS,
        "tokens": TOKENS,
        "timed_steps": STEPS * REPETITIONS * given.rounds,
        "parameters": model_of(config_of("ddp", "simpo")).num_parameters(),
        "cases": [summary(world, case, runs) for world, runs in found.items() for case in runs[0][0]],
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(*(line(case) for case in report["cases"]), given.output, sep="\n")
    return 0


@cache
def config_of(variant: str, method: str) -> TrainConfig:
    """A configuration, composed once."""
    return compose_train([*MODEL, *VARIANTS[variant], f"method={method}", *METHODS[method]])


def measured(world: int) -> list[dict[Case, Found]]:
    """What each rank of a group found; the group is forked from this process, in which autograd never ran."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        children = [forked(rank, world, port, Path(place)) for rank in range(world)]
        failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
        if failed:
            raise RuntimeError(f"{len(failed)} of {world} ranks failed; see above")
        return [pickle.loads((Path(place) / str(rank)).read_bytes()) for rank in range(world)]


def forked(rank: int, world: int, port: int, place: Path) -> int:
    """The process id of a new rank, which leaves what it finds in ``place``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        (place / str(rank)).write_bytes(pickle.dumps(trained(world)))
        dist.barrier()
        dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def trained(world: int) -> dict[Case, Found]:
    """Steps of one rank on every engine: some to get warm, those that are timed, in turns, then counted and profiled
    ones."""
    engines = {variant: engine_of(variant) for variant in VARIANTS}
    cases = [(variant, "simpo", cut) for cut in CUTS for variant in VARIANTS]
    found = {}
    for variant, method, cut in cases:
        for _ in range(WARM):
            step(engines[variant], variant, method, cut, world)
        found[variant, method, cut] = Found([], {}, {}, [])
    for _, (variant, method, cut) in product(range(REPETITIONS), cases):
        steps = [step(engines[variant], variant, method, cut, world) for _ in range(STEPS)]
        found[variant, method, cut].timed += steps
    for variant, method, cut in cases:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            spent = step(engines[variant], variant, method, cut, world)
        found[variant, method, cut].profiled.append(spent | {"in_flight": in_flight(profile)})
    for variant, method in product(VARIANTS, METHODS if world == 2 else ("simpo",)):
        for cut in CUTS:
            with Counted() as counted:
                step(engines[variant], variant, method, cut, world)
            known = found.setdefault((variant, method, cut), Found([], {}, {}, []))
            known.calls, known.whole = dict(counted.calls), dict(counted.whole)
    return found


def step(engine: Any, variant: str, method: str, cut: int, world: int) -> Spent:
    """One update, and where its time went."""
    objective = build_objective(config_of(variant, method))
    window = [batch_of(cut * world) for _ in range(PAIRS // cut)]
    before = moment()
    training_step(engine, objective, objective.initial_state(), window, 1.0)
    return moment().since(before)


def with_zero(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings, with more of them for its shards."""
    return {**settings, "zero_optimization": {**settings["zero_optimization"], **more}}


def engine_of(variant: str) -> Any:
    """An engine around the model that all train."""
    config = config_of(variant, "simpo")
    if variant in DEEPSPEED:
        vars(src.engine.zero)["settings_of"] = lambda *given: with_zero(settings_of(*given), DEEPSPEED[variant])
    return create_engine(config, model_of(config, weights=needs_weights(config, ranks())), 1000)


def model_of(config: TrainConfig, *, weights: bool = True) -> Any:
    """The model that all cases train."""
    return build_model(config.model, None, VOCABULARY, seed=0, weights=weights)


@cache
def batch_of(pairs: int) -> PairBatch:
    """Pairs of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (count,), generator=generator).tolist()

    prompt, chosen, rejected = TOKENS
    return collate(
        [
            TokenizedPair(n, str(n), ids(prompt), ids(chosen), ids(rejected), 7.0, 3.0, flipped=False)
            for n in range(pairs)
        ]
    )


def summary(world: int, case: Case, runs: list[list[dict[Case, Found]]]) -> dict[str, Any]:
    """Medians of a case over steps and rounds, of means over its ranks; bytes of the rank that sends most."""
    variant, method, cut = case
    first = [rank[case] for rank in runs[0]]
    found: dict[str, Any] = {"engine": variant, "ranks": world, "method": method, "pairs_per_forward": cut}
    found["calls"] = first[0].calls
    found["sent"] = {kind: max(sent(kind, rank.whole[kind], world) for rank in first) for kind in first[0].whole}
    found["sent_total"] = sum(found["sent"].values())
    if not first[0].timed:
        return found
    for name in first[0].timed[0]:
        steps = [
            statistics.mean(spent[name] for spent in ranks)
            for run in runs
            for ranks in zip(*(rank[case].timed for rank in run), strict=True)
        ]
        found[name] = statistics.median(steps)
    profiles = [spent for run in runs for rank in run for spent in rank[case].profiled]
    flying = statistics.mean(spent["in_flight"] for spent in profiles)
    waited = statistics.mean(spent["waited"] for spent in profiles)
    found |= {"profiled_in_flight": flying, "profiled_waited": waited}
    found["overlap"] = max(1 - waited / flying, 0.0) if flying and world > 1 else None
    found["waited_share"] = found["waited"] / (found["wall"] - found["queued"])
    return found


def planned_bytes(world: int, case: Case) -> float:
    """What the planner says that a rank sends in a step."""
    variant, method, cut = case
    config = config_of(variant, method)
    shape = shape_of_model(model_of(config, weights=False), eager=False)
    setting = Setting(
        engine=config.engine.name,
        nodes=1,
        gpus_per_node=world,
        micro_batch=cut,
        global_batch=PAIRS * world,
        checkpointing=False,
        bfloat16=False,
        reshard=config.engine.reshard_after_forward is not False,
    )
    passes = passes_of(work_of(config, build_objective(config), shape), setting)
    forwards, updates = setting.micro_steps * passes.forwards, setting.micro_steps * passes.updates
    return planned.sent(setting, shape, forwards, updates, passes.updates)


def line(case: dict[str, Any]) -> str:
    """A case in a line: times in ms, bytes in MB."""
    name = f"{case['engine']:19} {case['ranks']} x {case['pairs_per_forward']} {case['method']:10}"
    counted = f"sent {case['sent_total'] / 1e6:7.2f} MB"
    if "wall" not in case:
        return f"{name} {counted}"
    times = " ".join(f"{what} {1e3 * case[what]:7.1f}" for what in ("wall", "cpu", "beside", "queued", "waited"))
    overlap = "" if case["overlap"] is None else f"overlap {100 * case['overlap']:3.0f} %"
    return f"{name} {counted} written {case['written'] / 1e6:7.2f}  {times} ms  {overlap}"


if __name__ == "__main__":
    sys.exit(main())
