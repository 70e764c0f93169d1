"""Every method: cutting one global batch differently changes nothing, or exactly what its scope of statistics says.

A real model in float64, through the training step: what is left is not rounding but the meaning of the scope.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.data.mismatch import MismatchedPairs
from src.data.pairset import TokenizedPair
from src.engine.local import LocalEngine
from src.model.adapter import add_adapter, base_state
from src.model.load import build_model
from src.model.logps import pair_log_probs
from src.objective.objective import Objective, ObjectiveState
from src.objective.perturbations import AnchorProbe
from src.schema import AdapterConfig, TrainConfig
from src.training.step import training_step, validate
from tests.methods import METHODS, composed, random_pairs
from tests.support import SMALL_RUN

BATCH, STEPS, VOCABULARY = 8, 2, 300
CUTS = ([1] * 8, [4, 4], [3, 5])
EXACT = 1e-8
"""Norms within the model are taken in float32, whatever the weights: one rounding may fall the other way."""
RECORDED = 1e-5
"""Where one cut takes weight gradients from a recorded forward and the other from autograd, those roundings come in
another order."""
SCALED = 1e-6
"""Of gradients that were scaled differently: then many of these do."""

CONSTANTS = {
    # directions belong to pairs in order, however the window is cut: here to 3, 3 and 2 of them
    "gapo": ("anchor_pairs=3",),
    "gapo_lm_head": ("anchor_pairs=3",),
    "gapo_released": ("anchor_pairs=3",),
    # margins that follow the batch by more than rounding
    "gamma_dpo": ("tau=1",),
    "gamma_simpo": ("tau=1",),
}

WITH_STATISTICS = [name for name in METHODS if composed(name).needs.statistics is not None]


@cache
def settings() -> TrainConfig:
    return compose_train([*SMALL_RUN, "training.adam_epsilon=1e-3", "training.scheduler=constant"])


@cache
def initial(seed: int) -> Any:
    """A model sharper than a fresh one, so that its log-probs differ from pair to pair."""
    model = build_model(settings().model, None, VOCABULARY, seed=seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@cache
def batch_of(start: int, size: int) -> PairBatch:
    """``size`` pairs from ``start``, with what a reference (another model) says of them and of mismatched ones."""
    numbers, pairs = range(start, start + size), random_pairs(BATCH * STEPS, VOCABULARY)
    mismatched = MismatchedPairs(pairs, max_length=64)
    return referenced([pairs[n] for n in numbers], referenced([mismatched[n] for n in numbers]))


def referenced(part: Sequence[TokenizedPair], mismatched: PairBatch | None = None) -> PairBatch:
    batch = collate(part)
    with torch.no_grad():
        return replace(batch, reference=pair_log_probs(initial(1), batch, per_token=True), mismatched=mismatched)


def window_of(cut: Sequence[int], start: int = 0) -> list[PairBatch]:
    """The pairs from ``start``, in forwards of these sizes."""
    ends = [start + sum(cut[: index + 1]) for index in range(len(cut))]
    return [batch_of(end - size, size) for end, size in zip(ends, cut, strict=True)]


@dataclass
class Step:
    """What one step did: loss, gradient, metrics of each pair, and the state after it."""

    loss: float
    gradient: Tensor
    metrics: dict[str, Tensor]
    state: ObjectiveState


class Trainer:
    """An engine whose gradients are noted before each step."""

    def __init__(self, *, adapted: bool = False) -> None:
        self.model = copy.deepcopy(initial(0))
        if adapted:
            add_adapter(self.model, AdapterConfig(name="lora", r=2, alpha=4), seed=0)
        self.engine = LocalEngine(self.model, settings().training, STEPS, "cpu", "float32")
        self.noted = torch.zeros(0)
        self.engine.optimizer.register_step_pre_hook(self.note)

    def note(self, *_: Any) -> None:
        self.noted = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def step(self, objective: Objective, state: ObjectiveState, window: Sequence[PairBatch]) -> Step:
        output = training_step(self.engine, objective, state, window, max_grad_norm=1e9)
        return Step(output.loss.item(), self.noted, output.pair_metrics, output.state)


def trained(objective: Objective, cut: Sequence[int]) -> list[Step]:
    """A step over a window that is cut like this; where there is state, one more that goes on from it."""
    trainer, state, steps = Trainer(), objective.initial_state(), []
    for number in range(STEPS if state else 1):
        steps.append(trainer.step(objective, state, window_of(cut, number * BATCH)))
        state = steps[-1].state
    return steps


def once(objective: Objective, state: ObjectiveState, window: Sequence[PairBatch]) -> Step:
    """The first step from the initial weights."""
    return Trainer().step(objective, state, window)


def apart(one: Any, other: Any) -> float:
    """Largest difference of two nested things, relative to the size of each tensor; other values must be equal."""
    if isinstance(one, Tensor):
        if one.dtype.is_floating_point and one.numel():
            return float((one - other).abs().max() / one.abs().max().clamp(min=1e-3))
        return 0.0 if torch.equal(one, other) else float("inf")
    if isinstance(one, float):
        return abs(one - other) / max(abs(one), 1e-3)
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        return max((apart(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        return max((apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, Step):
        return apart(vars(one), vars(other))
    return 0.0 if one == other else float("inf")


def test_there_are_methods_with_and_without_statistics() -> None:
    assert len(WITH_STATISTICS) >= 15
    assert len(METHODS) - len(WITH_STATISTICS) >= 25


@pytest.mark.parametrize("method", METHODS)
def test_cutting_the_batch_changes_nothing(method: str) -> None:
    """Separable losses, and the others over the window or over a number of pairs."""
    scopes = [("statistics=window",), ("statistics=4",)] if method in WITH_STATISTICS else [()]
    for scope in scopes:
        objective = composed(method, *CONSTANTS.get(method, ()), *scope)
        whole = trained(objective, [BATCH])
        assert all(step.gradient.abs().max() > 1e-6 for step in whole)
        limit = RECORDED if isinstance(objective.perturbation, AnchorProbe) else EXACT
        for cut in CUTS:
            assert apart(whole, trained(objective, cut)) < limit, f"{cut} {scope}"


@pytest.mark.parametrize("method", WITH_STATISTICS)
def test_a_forward_is_a_batch_of_its_own(method: str) -> None:
    """``forward``: the mean over pairs of what each forward gives alone, the state going from one to the next."""
    constants = CONSTANTS.get(method, ())
    objective = composed(method, *constants, "statistics=forward")
    start, window = objective.initial_state(), window_of([3, 5])
    both = once(objective, start, window)
    first = once(objective, start, window[:1])
    second = once(objective, first.state, window[1:])
    assert both.loss == pytest.approx((3 * first.loss + 5 * second.loss) / 8, rel=EXACT)
    assert apart(both.gradient, (3 * first.gradient + 5 * second.gradient) / 8) < SCALED
    assert apart(both.state, second.state) < EXACT
    whole = once(objective, start, window_of([BATCH]))
    assert apart(both.gradient, whole.gradient) > 10 * SCALED, "the cut does matter"
    assert apart(whole, once(composed(method, *constants, "statistics=window"), start, window)) < EXACT


@pytest.mark.parametrize("method", METHODS)
def test_validation_changes_nothing_and_does_not_depend_on_its_batches(method: str) -> None:
    scope = ("statistics=4",) if method in WITH_STATISTICS else ()
    objective, trainer = composed(method, *CONSTANTS.get(method, ()), *scope), Trainer()
    state = objective.initial_state()
    results = [validate(trainer.engine, objective, state, window_of(cut)) for cut in ([8], [3, 5])]
    assert apart(results[0].loss, results[1].loss) < EXACT
    assert apart(results[0].pair_metrics, results[1].pair_metrics) < EXACT
    assert all(result.state is state for result in results)
    assert apart(trainer.model.state_dict(), initial(0).state_dict()) == 0
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gapo_lm_head"])
def test_adapters_alone_are_trained(method: str) -> None:
    """The first step of LoRA is that of a model whose weights are the base's; the base stays bit for bit.

    ``gapo_lm_head`` perturbs a layer that has no adapter, and is refused.
    """
    objective = composed(method, *CONSTANTS.get(method, ()))
    trainer = Trainer(adapted=True)
    output = trainer.step(objective, objective.initial_state(), window_of([4, 4]))
    assert apart(base_state(trainer.model), initial(0).state_dict()) == 0
    assert trainer.noted.abs().max() > 0
    assert all(".lora_" in name for name, one in trainer.model.named_parameters() if one.requires_grad)
    if not (objective.needs.anchor_gaps or objective.needs.gradient_norms):
        whole = once(objective, objective.initial_state(), window_of([4, 4]))
        assert output.loss == pytest.approx(whole.loss, rel=EXACT), "B = 0: the policy is the base"
