"""What every rank of the tests of engines does: steps of methods, and single facts about an engine."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import ref

import torch
from safetensors.torch import load_file
from torch import Tensor

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.engine.base import Engine
from src.engine.create import create_engine, needs_weights
from src.engine.ranks import Ranks, ranks
from src.errors import UserError
from src.model.adapter import add_adapter
from src.model.load import build_model
from src.model.logps import pair_log_probs
from src.objective.objective import Objective
from src.schema import TrainConfig
from src.training.step import training_step
from tests.methods import composed, random_pairs
from tests.support import SMALL_RUN

ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
METHODS = ("sft", "dpo", "simpo", "amapo", "gamma_simpo", "gappo", "gapo", "simpo_sam")
PAIRS, STEPS, VOCABULARY = 12, 5, 60
CUTS = {1: [12], 4: [3, 3, 3, 3]}
"""Pairs of each forward, by accumulation. Three pairs lie unevenly on two ranks."""

CONSTANTS = {"gapo": ("anchor_pairs=6",)}
"""Directions that belong to half a window."""

RUN = (
    *SMALL_RUN,
    "training.adam_epsilon=1e-3",
    "training.learning_rate=1e-2",
    "training.weight_decay=0.1",
    "training.scheduler=linear",
    "training.warmup_ratio=0.0",
)


@dataclass(frozen=True)
class Case:
    """One comparison with a single process."""

    engine: str
    method: str
    accumulation: int
    tied: bool = False

    def __str__(self) -> str:
        return f"{self.engine} {self.method} accumulation {self.accumulation} {'tied' if self.tied else 'untied'}"


def cases(size: int) -> list[Case]:
    """All methods on two ranks; on the other axes one whose queue and one whose perturbation may go wrong.

    All of everything where EVERY_CASE is set (tests/engines/every_case.py).
    """
    if os.environ.get("EVERY_CASE"):
        return [Case(*axes) for axes in product(ENGINES, METHODS, CUTS, (False, True))]
    found = []
    for engine in ENGINES:
        if size == 2:
            found += [Case(engine, method, 4) for method in METHODS]
            found += [Case(engine, "gapo", 1, tied=True)]
        else:
            found += [Case(engine, "gapo", 4), Case(engine, "amapo", 4)]
            found += [Case(engine, "gapo", 1, tied=True)]
    return found


@cache
def settings(engine: str, *more: str) -> TrainConfig:
    """A run's configuration; weights are cut into several buckets."""
    buckets = [] if engine in ("single", "fsdp2", "fsdp2_offload") else ["engine.bucket_mb=0.01"]
    return compose_train([*RUN, f"engine={engine}", *buckets, *more])


@cache
def objective_of(method: str) -> Objective:
    return composed(method, *CONSTANTS.get(method, ()))


@cache
def initial(seed: int, tied: bool = False) -> Any:
    """A model sharper than a fresh one, so that its log-probs differ from pair to pair."""
    model = build_model(architecture(tied), None, VOCABULARY, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def architecture(tied: bool) -> Any:
    """The model's configuration."""
    return settings("single", f"model.architecture.tie_word_embeddings={tied}").model


@cache
def batch_of(start: int, size: int, *, demonstrations: bool = False) -> PairBatch:
    """``size`` pairs from ``start``, with what a reference (another model) says of them."""
    part = list(random_pairs(PAIRS * STEPS, VOCABULARY)[start : start + size])
    if demonstrations:
        part = [replace(pair, rejected_ids=[]) for pair in part]
    batch = collate(part)
    with torch.no_grad():
        return replace(batch, reference=pair_log_probs(initial(1), batch))


def window_of(cut: Sequence[int], step: int, *, demonstrations: bool = False) -> list[PairBatch]:
    """The pairs of a step, in forwards of these sizes."""
    ends = [step * PAIRS + sum(cut[: index + 1]) for index in range(len(cut))]
    return [batch_of(end - size, size, demonstrations=demonstrations) for end, size in zip(ends, cut, strict=True)]


def engine_of(name: str, *more: str, tied: bool = False, lora: bool = False, kept: bool = False) -> Any:
    """An engine around the initial model; a rank that is sent its weights has the shape alone.

    ``kept``: gradient checkpointing.
    """
    config = settings(name, *more)
    if needs_weights(config, ranks()):
        model = copy.deepcopy(initial(0, tied))
    else:
        model = build_model(architecture(tied), None, VOCABULARY, seed=0, weights=False)
    if kept:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if lora:
        add_adapter(model, compose_train([*RUN, "adapter=lora", "adapter.r=2"]).adapter, seed=0)
    return create_engine(config, model, STEPS)


def steps(engine: Engine, method: str, cut: Sequence[int], count: int = STEPS, first: int = 0) -> dict[str, Any]:
    """Some steps from ``first`` on; all that they gave, and the weights after them."""
    objective = objective_of(method)
    state, found = objective.initial_state(), []
    for step in range(first, first + count):
        window = window_of(cut, step, demonstrations=not objective.needs.rejected)
        output = training_step(engine, objective, state, window, 1.0)
        state = output.state
        norm = output.gradient_norm
        found.append(
            {
                "loss": output.loss.cpu(),
                "norm": None if norm is None else norm.cpu(),
                "metrics": {name: value.cpu() for name, value in output.pair_metrics.items()},
                "state": copy.deepcopy(state),
                "rate": engine.learning_rate(),
            }
        )
    return {"steps": found, "weights": weights_of(engine)}


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """What ``save_model`` writes, on rank 0."""
    with shared_directory(engine.ranks) as directory:
        engine.save_model(directory)
        files = sorted(directory.glob("*.safetensors"))
        found = {name: tensor for file in files for name, tensor in load_file(file).items()}
        engine.ranks.barrier()
        return found if engine.ranks.is_main else {}


class shared_directory:  # noqa: N801
    """A directory that rank 0 makes and removes."""

    def __init__(self, me: Ranks) -> None:
        self.me = me

    def __enter__(self) -> Path:
        self.directory = TemporaryDirectory() if self.me.is_main else None
        return Path(self.me.from_main(lambda: self.directory.name if self.directory else ""))

    def __exit__(self, *_: object) -> None:
        self.me.barrier()
        if self.directory is not None:
            self.directory.cleanup()


@dataclass
class Start:
    """Where an engine stood, so that one engine serves several methods."""

    engine: Any
    directory: Path

    def __post_init__(self) -> None:
        self.engine.ranks.from_main(lambda: (self.directory / "model").mkdir())
        self.engine.save_model(self.directory / "model")
        writing = self.engine.save_shards(self.directory)
        if writing is not None:
            writing.result()
        self.state = copy.deepcopy(self.engine.training_state())
        self.engine.ranks.barrier()

    def again(self) -> None:
        self.engine.load(self.directory, copy.deepcopy(self.state))


def parity(size: int, report: Callable[[str, Any], None]) -> None:
    """Every case of a number of ranks; ``single`` alone for 1."""
    wanted = (
        cases(size) if size > 1 else list(dict.fromkeys(replace(c, engine="single") for n in (2, 3) for c in cases(n)))
    )
    for engine, tied in dict.fromkeys((case.engine, case.tied) for case in wanted):
        made = engine_of(engine, tied=tied)
        with shared_directory(made.ranks) as directory:
            start = Start(made, directory)
            for case in wanted:
                if (case.engine, case.tied) == (engine, tied):
                    start.again()
                    report(str(case), steps(made, case.method, CUTS[case.accumulation]))


def summed(batch: PairBatch, engine: Engine) -> Tensor:
    """The sum of all log-probs of a forward."""
    found = engine.log_probs(batch)
    return found.chosen.summed.sum() + found.rejected.summed.sum()


def restored(engine: Engine, report: Callable[[str, Any], None], name: str) -> None:
    """Forwards before, within and after perturbations of each scope, and after an update that follows them."""
    batch = batch_of(0, 3)
    for scope in ("full", "backbone", "lm_head"):
        for inside in (False, True):
            with torch.no_grad():
                before = summed(batch, engine)
            engine.backward(summed(batch, engine) / 10)
            norm = engine.gradient_norm(scope)
            with engine.perturbed(0.5 / norm, scope) as applied:
                if inside:
                    engine.backward(summed(batch, engine) / 10)
                with torch.no_grad():
                    moved = summed(batch, engine)
            with torch.no_grad():
                after = summed(batch, engine)
            found = {"before": before, "moved": moved, "after": after, "norm": norm, "applied": applied}
            found["left"] = engine.gradient_norm()
            report(f"{name} perturbed {scope} {inside}", {key: value.item() for key, value in found.items()})
            engine.discard_gradients()
    report(f"{name} lets go", lets_go(engine))
    report(f"{name} after perturbations", steps(engine, "simpo", [6, 6], count=1))


class Listed(list[Any]):
    """A list of which it can be known whether anything holds it."""


def lets_go(engine: Any) -> bool:
    """Whether nothing holds the direction's gradients while the weights are moved along it."""
    pieces, made = engine.pieces, []

    def noted(scope: str) -> Listed:
        found = Listed(pieces(scope))
        made.append(ref(found))
        return found

    engine.pieces = noted
    engine.backward(summed(batch_of(0, 3), engine) / 10)
    with engine.perturbed(torch.tensor(0.1), "full"):
        gone = made[-1]() is None
    del engine.pieces
    engine.discard_gradients()
    return gone


def gradients(engine: Engine, report: Callable[[str, Any], None], name: str) -> None:
    """What is held after one and after two backwards, after forgetting, and of a rank without pairs."""
    window = window_of([3, 3], 0)

    def taken(*batches: PairBatch) -> float:
        for batch in engine.forwards(batches):
            engine.backward(summed(batch, engine) / 10)
        return engine.gradient_norm().item()

    found = {"first": taken(window[0])}
    engine.discard_gradients()
    found["forgotten"] = engine.gradient_norm().item()
    found["second"] = taken(window[1])
    engine.discard_gradients()
    found["both"] = taken(*window)
    engine.discard_gradients()
    if not name.endswith("_offload"):
        taken(window[0])
        found["one by one"] = taken(window[1])
        engine.discard_gradients()
    found["alone"] = taken(batch_of(5, 1))
    engine.discard_gradients()
    open_window = engine.forwards(window)
    engine.backward(summed(next(open_window), engine))
    engine.discard_gradients()
    found["broken off"] = taken(*window)
    engine.discard_gradients()
    report(f"{name} gradients", found)


def continued(name: str, report: Callable[[str, Any], None]) -> None:
    """Three steps at once, and two and one with a new engine in between; what another number of ranks is told."""
    engine = engine_of(name)
    steps(engine, "simpo", [6, 6], count=2)
    with shared_directory(engine.ranks) as directory:
        start = Start(engine, directory)
        whole = steps(engine, "simpo", [6, 6], count=1, first=2)
        other = engine_of(name)
        other.load(directory, copy.deepcopy(start.state))
        report(f"{name} resumed", (whole, steps(other, "simpo", [6, 6], count=1, first=2)))
        if name.startswith("zero"):
            try:
                other.load(directory, {**start.state, "ranks": 5})
            except UserError as error:
                report(f"{name} refusal", str(error))


def facts(size: int, report: Callable[[str, Any], None]) -> None:
    """What is particular: perturbations, adapters, offload, checkpointing, precision. ``single`` alone for 1."""
    names = ENGINES if size == 2 else ("single",)
    for name in names:
        engine = engine_of(name)
        gradients(engine, report, name)
        restored(engine, report, name)
        report(f"{name} lora", steps(engine_of(name, lora=True), "gapo", [6, 6], count=2))
        report(f"{name} kept", steps(engine_of(name, kept=True), "simpo", [6, 6], count=2))
        half = engine_of(name, "model.dtype=bfloat16")
        report(f"{name} bfloat16", {"initial": weights_of(half), **steps(half, "simpo", [6, 6], count=2)})
        if size == 2:
            continued(name, report)
    if size == 2:
        restored(engine_of("zero3", "engine.persistence_threshold=0"), report, "zero3 partitioned")
        for name in ("fsdp2_offload", "zero2_offload", "zero3_offload"):
            engine = engine_of(name)
            gradients(engine, report, name)
            report(f"{name} after gradients", steps(engine, "simpo", [3, 3, 6], count=3))
            continued(name, report)
    else:
        report("single after gradients", steps(engine_of("single"), "simpo", [3, 3, 6], count=3))


def apart(one: Any, other: Any) -> float:
    """Largest difference of two nested things, relative to each tensor's size where above 1; the rest is equal."""
    if isinstance(one, Tensor):
        if one.dtype.is_floating_point and one.numel():
            return float((one - other).abs().max() / one.abs().max().clamp(min=1.0))
        return 0.0 if torch.equal(one, other) else float("inf")
    if isinstance(one, float):
        return abs(one - other) / max(abs(one), 1.0)
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), one.keys() ^ other.keys()
        return max((apart(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        return max((apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")
