"""What GAPO's step costs, way by way, and how far each way does the same: `python -m benchmarks.gapo_cost`.

Cost: CPU time of a whole step on the same pairs, relative to SimPO's, all interleaved in one process, on a Llama whose
head has as large a share of the work as an 8B model's (`--shape`, `--pairs`, `--repetitions`). `exact` keeps what its
layers were given, `exact_again` runs the pairs a second time (training.kept_forwards=0).

Fidelity: a model of `--fidelity` shape learns an order among tokens (first as a language model, then by exact GAPO
with a fifth of the labels flipped), in two settings, N pairs a window and radius rho. At each of the last steps every
probe sees the same window: Spearman's rank correlation of its gaps with the exact ones, mean error of the weights of
pairs and cosine of the update with the exact one; medians over steps.

Writes results/benchmarks/gapo_cost.json. Five minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.paired import RESULTS, as_json, interleaved, ratio, report, seconds, timed_process
from benchmarks.workloads import SHAPES, Lengths, Own, Shape, drawn, model_of, own, random_pairs, use_threads
from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.local import LocalEngine
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe, Probe
from src.training.assemble import build_objective
from src.training.step import training_step

WAYS: dict[str, tuple[str, ...]] = {
    "simpo": ("method=simpo",),
    "exact": ("method=gapo", "training.kept_forwards=1"),
    "exact_again": ("method=gapo", "training.kept_forwards=0"),
    "sketch": ("method=gapo", "method.probe=sketch"),
    "stream": ("method=gapo", "method.probe=stream"),
    "first_order": ("method=gapo", "method.probe=first_order"),
}
LENGTHS = Lengths(128, 64, 256)
SETTINGS = ((8, 0.25), (16, 0.05))
"""Pairs that share a direction, and the radius."""
PROBES: tuple[tuple[str, Probe, int], ...] = (
    ("first_order", "first_order", 64),
    ("sketch", "sketch", 64),
    ("sketch_16", "sketch", 16),
    ("stream", "stream", 64),
)
"""Name, probe and sketch size."""
WORDS = 48
"""Tokens that the order is among."""


def main() -> int:
    timed_process("benchmarks.gapo_cost", sys.argv[1:])
    use_threads()
    asked = arguments().parse_args()
    made: dict[str, Any] = report("gapo_cost", sys.argv[1:])
    if asked.only in (None, "cost"):
        made["cost"] = costs(SHAPES[asked.shape], asked) | {"shape": asked.shape, "pairs": asked.pairs}
    if asked.only in (None, "fidelity"):
        made["fidelity"] = {name: fidelity(SHAPES[name], asked) for name in asked.fidelity.split(",")}
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "gapo_cost.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: made[name] for name in ("cost", "fidelity") if name in made}, indent=1))
    return 0


def arguments() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.gapo_cost")
    found.add_argument("--shape", default="L4k", choices=sorted(SHAPES), help="of the model whose steps are timed")
    found.add_argument("--pairs", type=int, default=4, help="of a step")
    found.add_argument("--repetitions", type=int, default=3, help="of every way")
    found.add_argument("--ways", default=",".join(WAYS), help="which are timed; the first is the unit")
    found.add_argument("--fidelity", default="tiny,T4k", help="shapes of the models that are trained")
    found.add_argument("--steps", type=int, default=12, help="of GAPO, of which the last half is measured")
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


def fidelity(shape: Shape, asked: argparse.Namespace) -> dict[str, Any]:
    """Every probe against the exact one, setting by setting."""
    start = language_model(shape)
    return {f"N={pairs}, rho={rho}": compared(shape, start, pairs, rho, asked.steps) for pairs, rho in SETTINGS}


def walk(draw: torch.Generator, length: int, noise: float) -> list[int]:
    """Tokens each of which follows from the last (three times it, plus one), but for a share of ``noise``."""
    token = int(torch.randint(WORDS, (1,), generator=draw))
    found = []
    for _ in range(length):
        found.append(token + 2)
        strays = float(torch.rand((), generator=draw)) < noise
        token = int(torch.randint(WORDS, (1,), generator=draw)) if strays else (3 * token + 1) % WORDS
    return found


def pairs_of(count: int, seed: int) -> list[TokenizedPair]:
    """A prompt, its continuation with few strays and one with many; a fifth of them the wrong way round."""
    draw, found = torch.Generator().manual_seed(seed), []
    for number in range(count):
        lengths = torch.randint(8, 25, (3,), generator=draw).tolist()
        prompt, better, worse = (walk(draw, n, noise) for n, noise in zip(lengths, (0.1, 0.15, 0.5), strict=True))
        flipped = float(torch.rand((), generator=draw)) < 0.2
        chosen, rejected = (worse, better) if flipped else (better, worse)
        found.append(TokenizedPair(number, f"p{seed}-{number}", prompt, chosen, rejected, None, None, flipped))
    return found


def language_model(shape: Shape) -> dict[str, Tensor]:
    """Weights after some steps of supervised training on the better continuations."""
    model = model_of(shape)
    rate = 0.05 / shape.width
    step = own("sft", model, f"training.learning_rate={rate}", "training.max_grad_norm=1.0", updates=True)
    for number in range(40):
        step([replace(pair, rejected_ids=[]) for pair in pairs_of(16, 1000 + number)])
    return {name: value.clone() for name, value in model.state_dict().items()}


@dataclass
class Caught:
    """Gradient and metrics of a step that was not made."""

    gradient: Tensor
    gaps: Tensor
    weights: Tensor


class Catching(LocalEngine):
    """An engine that keeps its step's gradient and makes the step only when told to."""

    moves = False

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        found = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.caught = torch.cat(found)
        if self.moves:
            super().clip_and_step(gradient_norm, max_norm)
        else:
            self.discard_gradients()


def caught(engine: Catching, objective: Objective, batch: PairBatch) -> Caught:
    output = training_step(engine, objective, objective.initial_state(), [batch], 1.0)
    return Caught(engine.caught, output.pair_metrics["anchor/gap"], output.pair_metrics["weight/gradient"])


def compared(shape: Shape, start: dict[str, Tensor], pairs: int, rho: float, steps: int) -> dict[str, Any]:
    """Medians over the last half of ``steps`` of exact GAPO."""
    constant = (
        "training.warmup_ratio=0",
        "training.scheduler=constant",
        f"training.learning_rate={0.01 / shape.width}",
    )
    config = compose_train(["method=gapo", "model=tiny", "~recipe", f"method.rho={rho}", *constant])
    model, exact = model_of(shape), build_objective(config)
    model.load_state_dict(start)
    engine = Catching(model, config.training, steps, "cpu", "float32")
    probes = {
        name: replace(exact, perturbation=AnchorProbe(rho, "window", probe=probe, sketch_size=size))
        for name, probe, size in PROBES
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in probes}
    gaps = []
    for step in range(steps):
        batch = collate(pairs_of(pairs, step))
        wanted = None
        if 2 * step >= steps:
            engine.moves = False
            wanted = caught(engine, exact, batch)
            gaps.append(float(wanted.gaps.mean()))
            for name, method in probes.items():
                found[name].append(agreement(caught(engine, method, batch), wanted))
        engine.moves = True
        caught(engine, exact, batch)
    medians = {
        name: {key: round(statistics.median(one[key] for one in many), 4) for key in many[0]}
        for name, many in found.items()
    }
    return medians | {"mean_gap": round(statistics.mean(gaps), 4), "windows": len(gaps)}


def agreement(mine: Caught, exact: Caught) -> dict[str, float]:
    """How far a probe does as the exact one."""
    return {
        "spearman": float(spearmanr(mine.gaps.tolist(), exact.gaps.tolist()).statistic),
        "weight_error": float((mine.weights - exact.weights).abs().mean()),
        "update_cosine": float(torch.cosine_similarity(mine.gradient, exact.gradient, dim=0)),
    }


if __name__ == "__main__":
    sys.exit(main())
