"""How GAPO's probes agree and what they cost: `python -m benchmarks.anchor_probes [overrides of src.train]`.

Trains `method=gapo` on the toy world with a fifth of the labels flipped (unless it was trained before), then measures
the gaps of the same windows of training pairs at its last checkpoint by the exact probe, by the first-order one, and
with a direction per pair. Rank agreement is with the exact probe; times are medians of interleaved windows, relative
to one forward and backward of SimPO's loss. Writes results/benchmarks/anchor_probes.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau
from torch import Tensor

from src.commands import directory_of, run
from src.config import ROOT, compose_train
from src.data.collate import PairBatch
from src.engine.local import LocalEngine
from src.environment import environment
from src.model.load import build_model
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe
from src.training.assemble import PreparedLoader, build_objective, sampler_of
from src.training.probe import margin_gradient, probe_parameters
from src.training.run import run_data

SETTING = ["method=gapo", "noise=random_flip", "noise.rate=0.2"]
WINDOWS = 24
RESULT = Path("results/benchmarks/anchor_probes.json")


def main() -> int:
    overrides = [*SETTING, *sys.argv[1:]]
    run("src.train", *overrides)
    directory = directory_of(overrides)
    engine, windows = trained_engine(overrides, directory)
    objective = build_objective(compose_train(overrides))
    rho = objective.perturbation.rho  # type: ignore[attr-defined]
    probes = {
        "perturb": AnchorProbe(rho, "window"),
        "first_order": AnchorProbe(rho, "window", probe="first_order"),
        "instance_first_order": AnchorProbe(rho, 1, probe="first_order"),
    }
    found = measured(engine, objective, probes, windows)
    result = {
        "command": f"python -m benchmarks.anchor_probes {' '.join(sys.argv[1:])}".rstrip(),
        "setting": overrides,
        "rho": rho,
        "pairs": sum(len(batch) for window in windows for batch in window),
        "windows": len(windows),
        "probes": found,
        "flipped": flipped_shares(found.pop("gaps"), windows),
        "environment": environment(),
    }
    (ROOT / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("probes", "flipped")}, indent=2))
    return 0


def trained_engine(overrides: Sequence[str], directory: Path) -> tuple[LocalEngine, list[Sequence[PairBatch]]]:
    """The last checkpoint of the run on an engine, and windows of its training pairs."""
    config = compose_train(list(overrides))
    data, tokenizer = run_data(config, build_objective(config))
    sampler = sampler_of(config, len(data.train))
    model = build_model(config.model, str(directory / "checkpoints" / "last" / "model"), len(tokenizer), config.seed)
    engine = LocalEngine(model, config.training, 1, config.engine.device, config.model.dtype)
    loader = PreparedLoader(data.train, data.validation, sampler, engine.device, 32)
    return engine, [loader.window(step) for step in range(WINDOWS)]


def measured(
    engine: LocalEngine, objective: Objective, probes: dict[str, AnchorProbe], windows: Sequence[Sequence[PairBatch]]
) -> dict[str, Any]:
    """Agreement of every probe with the exact one, and its time, windows interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *probes)}
    gaps: dict[str, list[Tensor]] = {name: [] for name in probes}
    for window in windows:
        seconds["plain"].append(timed(lambda window=window: plain(engine, objective, window))[0])  # type: ignore[misc]
        for name, probe in probes.items():
            method = replace(objective, perturbation=probe)
            taken, found = timed(lambda method=method, window=window: probe_parameters(engine, method, window))  # type: ignore[misc]
            seconds[name].append(taken)
            gaps[name].append(found.anchor_gaps)
    base = statistics.median(seconds["plain"])
    result: dict[str, Any] = {"gaps": {name: torch.cat(values) for name, values in gaps.items()}}
    for name, values in gaps.items():
        pairs = list(zip(values, gaps["perturb"], strict=True))
        result[name] = {
            "time_in_plain_steps": round(statistics.median(seconds[name]) / base, 2),
            "kendall_tau_in_window": round(statistics.mean(float(kendalltau(*pair).statistic) for pair in pairs), 4),
            "largest_fifth_shared": round(statistics.mean(shared(*pair) for pair in pairs), 4),
            "mean_gap": round(float(torch.cat(values).mean()), 5),
            "share_above_zero": round(float((torch.cat(values) > 0).float().mean()), 4),
        }
    return result


def plain(engine: LocalEngine, objective: Objective, window: Sequence[PairBatch]) -> None:
    """One forward and backward of the window's mean margin."""
    margin_gradient(engine, objective, window, torch.ones_like)
    engine.discard_gradients()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what ``work`` gives."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def shared(mine: Tensor, exact: Tensor) -> float:
    """Share of the fifth with the largest gaps that both have."""
    count = len(exact) // 5
    tops = (set(values.topk(count).indices.tolist()) for values in (mine, exact))
    return len(set.intersection(*tops)) / count


def flipped_shares(gaps: dict[str, Tensor], windows: Sequence[Sequence[PairBatch]]) -> dict[str, float]:
    """Share of flipped pairs among all, and in the fifth of each probe's largest gaps."""
    flipped = torch.cat([batch.flipped for window in windows for batch in window]).float()
    count = len(flipped) // 5
    shares = {name: round(float(flipped[values.topk(count).indices].mean()), 4) for name, values in gaps.items()}
    return {"all": round(float(flipped.mean()), 4), **shares}


if __name__ == "__main__":
    sys.exit(main())
