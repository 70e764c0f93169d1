"""How far GAPO's approximate gaps do as the exact ones, on models that the program trained on its toy world.

A model is trained as a user would: first on demonstrations, then by exact GAPO on preference pairs with a fifth of the
labels flipped. It then stands still while windows of the pairs that would have come next are looked at. Of a window of
N pairs the program's recording gives the pairs' gradients (a sketch wider than every layer is no sketch), and their
products K_ij = ⟨∇m_i, ∇m_j⟩ everything that is asked here:

* slopes, as ``method.probe=first_order`` finds them without noise, and as ``method.probe=stream`` does pair by pair;
  sketches of some sizes give products of their own;
* the cosine of two updates Σ p_i·∇m_i and Σ q_i·∇m_i: pᵀKq / √(pᵀKp · qᵀKq).

The exact gaps come from the program's own probe, at the moved weights. A radius changes them, while slopes are in
proportion to it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from src.config import compose_train, run_directory
from src.data.collate import PairBatch, collate
from src.data.pairset import PairSet
from src.data.sampler import WindowSampler
from src.engine.deferred import Observed
from src.engine.local import LocalEngine
from src.model.load import build_model
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe
from src.schema import TrainConfig
from src.training.assemble import build_objective, sampler_of
from src.training.inputs import known_inputs
from src.training.probe import finite_gaps, observed_margins
from src.training.probed import Probed, with_probed
from src.training.run import run_data, train
from src.training.stream import Products
from src.training.window import totals_of

SIZES = (32, 64, 128, 256)
"""Of sketches."""
WITHOUT_NOISE = 2**30
"""A size of sketches that no layer reaches."""
PAIRS = (8, 16, 64)
"""That share a direction."""
RADII = (0.025, 0.05, 0.1, 0.25)


@dataclass(frozen=True)
class Trained:
    """A model by the overrides of its shape, and how long it is trained: steps of 16 demonstrations, of 32 pairs."""

    shape: tuple[str, ...]
    demonstrations: int
    pairs: int


MODELS = {
    "tiny": Trained((), 600, 80),
    "mid": Trained(
        (
            "model.architecture.hidden_size=192",
            "model.architecture.intermediate_size=512",
            "model.architecture.num_hidden_layers=4",
            "model.architecture.num_attention_heads=4",
            "model.architecture.initializer_range=0.05",
            "training.learning_rate=2e-3",
        ),
        300,
        20,
    ),
}
"""The toy world's own model of 0.3 million parameters, and one of 1.9 million."""


def fidelity(name: str, windows: int, folder: Path) -> dict[str, Any]:
    """Agreement of every way with the exact one, by pairs and radius, on model ``name`` trained in ``folder``."""
    model = MODELS[name]
    supervised = trained(folder, "method=sft", "model.init=scratch", *model.shape, steps=model.demonstrations)
    base = ("model.init=pretrained", f"model.path={last_of(supervised)}", "noise=random_flip", "noise.rate=0.2")
    config = trained(folder, "method=gapo", *base, *architecture(model), steps=model.pairs)
    watched = Watched.of(config)
    found: dict[str, Any] = {}
    for pairs in PAIRS:
        seen = [watched.window(pairs, number) for number in range(windows)]
        found |= {f"N={pairs}, rho={rho:g}": summary([one[rho] for one in seen]) for rho in RADII}
    return {
        "parameters": sum(parameter.numel() for parameter in watched.engine.model.parameters()),
        "validation": {"sft": validation_of(supervised), "gapo": validation_of(config)},
        "windows": windows,
        "agreement": found,
    }


def architecture(model: Trained) -> list[str]:
    """The overrides of its shape."""
    return [one for one in model.shape if one.startswith("model.architecture.")]


def trained(folder: Path, *overrides: str, steps: int) -> TrainConfig:
    """The configuration of a run in ``folder`` that is finished then."""
    config = compose_train(
        [
            "model=tiny",
            "dataset=toy",
            f"output_root={folder / 'runs'}",
            f"cache_root={folder / 'cache'}",
            f"training.max_steps={steps}",
            f"evaluation.every_steps={steps}",
            "evaluation.max_pairs=256",
            *overrides,
        ]
    )
    if train(config):
        raise RuntimeError(f"training was stopped: {run_directory(config)}")
    return config


def last_of(config: TrainConfig) -> Path:
    """The weights that a run ended with."""
    return run_directory(config) / "checkpoints" / "last" / "model"


def validation_of(config: TrainConfig) -> dict[str, float]:
    """Loss and accuracy on held-out pairs at the end of a run."""
    lines = (run_directory(config) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [line for line in map(json.loads, lines) if line["split"] == "validation"][-1]
    return {"loss": round(last["loss"], 4), "accuracy": round(last["rewards/accuracies"], 4)}


@dataclass(frozen=True)
class Watched:
    """A trained model that stands still, its method, and the pairs that come after those it was trained on."""

    engine: LocalEngine
    objective: Objective
    pairs: PairSet
    order: WindowSampler
    first: int

    @staticmethod
    def of(config: TrainConfig) -> Watched:
        objective = build_objective(config)
        data, tokenizer = run_data(config, objective)
        model = build_model(config.model, str(last_of(config)), len(tokenizer), config.seed)
        engine = LocalEngine(model, config.training, 1, "cpu", config.model.dtype)
        first = (config.training.max_steps or 0) * config.training.global_batch_size
        return Watched(engine, objective, data.train, sampler_of(config, len(data.train)), first)

    def window(self, pairs: int, number: int) -> dict[float, dict[str, dict[str, float]]]:
        """Of window ``number`` of so many pairs: agreement of each way, by radius."""
        start = self.first + number * pairs
        batch = collate([self.pairs[self.order.at(position)] for position in range(start, start + pairs)])
        known = known_inputs(self.engine, self.objective, batch, for_terms=False)
        observed = observed_margins(self.engine, self.objective, batch, known)
        products = self.products(observed, WITHOUT_NOISE)
        slopes = {"first_order": slopes_of(products), "stream": streamed_slopes(products)}
        slopes |= {f"sketch_{size}": slopes_of(self.products(observed, size)) for size in SIZES}
        return {rho: self.agreements(batch, observed, products, slopes, rho) for rho in RADII}

    def products(self, observed: Observed, size: int) -> Tensor:
        """⟨∇m_i, ∇m_j⟩ from sketches of that size, [n, n]."""
        sketches = self.engine.sketched(observed, "full", size).sketches
        return torch.stack([rows.double() @ rows.double().t() for rows in sketches.values()]).sum(0)

    def agreements(
        self, batch: PairBatch, observed: Observed, products: Tensor, slopes: Mapping[str, Tensor], rho: float
    ) -> dict[str, dict[str, float]]:
        """Of each way's gaps at a radius."""
        anchor = AnchorProbe(rho, "window")
        with self.engine.gradients_aside():
            exact = finite_gaps(self.engine, self.objective, [batch], [observed], anchor).gaps
        wanted = self.weights(batch, observed, exact)
        found = {"exact": {"mean_gap": float(exact.mean()), "mean_weight": float(wanted.mean())}}
        for name, one in slopes.items():
            gaps = (rho * one).to(exact)
            weights = self.weights(batch, observed, gaps)
            found[name] = {
                "spearman": float(spearmanr(gaps.tolist(), exact.tolist()).statistic),
                "update_cosine": cosine(weights, wanted, products),
                "weight_error": float((weights - wanted).abs().mean()),
            }
        uniform = torch.ones_like(wanted)
        return found | {"uniform": {"update_cosine": cosine(uniform, wanted, products)}}

    def weights(self, batch: PairBatch, observed: Observed, gaps: Tensor) -> Tensor:
        """By how much the gradient of each pair's margin counts when its gap is this, [n], from 0 to 1."""
        known = known_inputs(self.engine, self.objective, batch)
        inputs = with_probed(known.with_policy(observed.log_probs), Probed(gaps, None, {}))
        terms, _ = self.objective.terms(inputs, {})
        return -len(batch) * self.objective.pulls(inputs, terms, totals_of([batch]))


def slopes_of(products: Tensor) -> Tensor:
    """⟨∇m_i, g⟩/‖g‖ of each pair, [n], g the mean gradient, from products [n, n]."""
    return products.mean(1) / products.mean().sqrt()


def streamed_slopes(products: Tensor) -> Tensor:
    """The same as ``method.probe=stream`` estimates it, pair by pair."""
    so_far, found = Products(len(products)), []
    for number, row in enumerate(products):
        slope, norm = so_far.slope(row[number], row[:number].sum())
        found.append(slope / norm)
    return torch.stack(found)


def cosine(mine: Tensor, other: Tensor, products: Tensor) -> float:
    """Of the updates Σ p_i·∇m_i and Σ q_i·∇m_i."""
    p, q = mine.double(), other.double()
    return float(p @ products @ q / ((p @ products @ p) * (q @ products @ q)).sqrt())


def summary(windows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Median, smallest and largest of every figure."""
    return {
        way: {name: spread([one[way][name] for one in windows]) for name in figures}
        for way, figures in windows[0].items()
    }


def spread(values: Sequence[float]) -> list[float]:
    """Median, smallest and largest."""
    return [round(value, 5) for value in (statistics.median(values), min(values), max(values))]
