"""What paid judges will ask for a plan's measurements, said before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from src.build import build
from src.config import composed
from src.errors import UserError
from src.evaluation.benchmark import Benchmark
from src.evaluation.estimate import Estimate, estimate_judging, guessed_outputs
from src.experiments.jobs import Job


def costs(jobs: Sequence[Job]) -> list[str]:
    """A line per benchmark with a paid judge, by its own estimate for answers of a usual length; [] without one."""
    kinds: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        if not job.is_training:
            own = [argument for argument in job.arguments if not argument.startswith("checkpoint=")]
            kinds.setdefault((job.kind, *own), []).append(job)
    lines: list[str] = []
    known: list[float] = []
    for (kind, *arguments), same in kinds.items():
        config = cast(Any, composed(kind, arguments))
        judge = build(config.judge, "judge") if "judge" in config else None
        if judge is None or not judge.paid:
            continue
        try:
            estimate = estimate_of(kind, config, judge)
        except (UserError, OSError) as error:
            lines.append(f"  {kind}: {len(same)} times {judge.model} at a cost that cannot be said: {error}")
            continue
        lines.append(f"  {kind}: {len(same)} times {estimate.lines(judge)[0].removeprefix('judge: ')}")
        known += [] if estimate.usd is None else [len(same) * estimate.usd]
    return [*lines, f"  about {sum(known):.2f} USD in all, as far as prices are known"] if known else lines


def estimate_of(kind: str, config: Any, judge: Any) -> Estimate:
    """Of a model that has not answered yet. Raises ``UserError`` where its files are absent."""
    benchmark = benchmark_of(kind, config)
    requests = benchmark.requests(guessed_outputs(benchmark.items()))
    return estimate_judging(benchmark, judge, None, requests, None, guessed=True)


def benchmark_of(kind: str, config: Any) -> Benchmark:
    """The judged benchmark of that name."""
    if kind == "alpaca_eval":
        from src.evaluation.alpaca.benchmark import AlpacaEval

        return AlpacaEval.toy(config) if config.benchmark == "toy" else AlpacaEval.official(config)
    if kind == "arena_hard":
        from src.evaluation.arena.benchmark import arena_hard

        return arena_hard(config)
    from src.evaluation.mtbench.benchmark import mt_bench

    return mt_bench(config)
