"""What the tests of parts with state share: groups of known margins, checkpoints, and a step on fixed log-probs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from src.data.collate import PairBatch
from src.model.fused import FusedLoss, Share
from src.objective.links import Logistic
from src.objective.objective import Objective, ObjectiveState
from src.objective.reductions import Mean
from src.objective.regularizers import NoRegularizer
from src.objective.rewards import AverageLogProb
from src.objective.targets import NoMargin
from src.objective.types import MarginGroup, PairInputs, PairLogProbs, PairRewards, ResponseLogProbs, WindowTotals
from src.objective.weights import Uniform
from src.training.checkpoint import Checkpoints, Identity, Progress, read_state

SHARED = Path(__file__).resolve().parents[3] / "shared" / "vectors.json"

Numbers = list[float]


def pairs(gaps: Numbers, reference_gaps: Numbers | None = None, dtype: torch.dtype = torch.float64) -> PairInputs:
    """One token a response: the average (and summed) log-prob of chosen exceeds that of rejected by ``gaps``."""
    ones = torch.ones(len(gaps), dtype=dtype)

    def log_probs(values: Numbers) -> PairLogProbs:
        lead = torch.tensor(values, dtype=torch.float64)
        chosen, rejected = (-1 + lead.clamp(max=0)).to(dtype), (-1 - lead.clamp(min=0)).to(dtype)
        return PairLogProbs(ResponseLogProbs(chosen.requires_grad_(), ones), ResponseLogProbs(rejected, ones))

    reference = None if reference_gaps is None else log_probs(reference_gaps).detach()
    return PairInputs(log_probs(gaps), reference)


def group(margins: Numbers, dtype: torch.dtype = torch.float64) -> MarginGroup:
    """A group of these reward margins."""
    chosen = torch.tensor(margins, dtype=dtype)
    return MarginGroup(PairRewards(chosen, torch.zeros_like(chosen)), pairs(margins, dtype=dtype).detach())


def objective(**parts: Any) -> Objective:
    """SimPO's parts without a margin, but for ``parts``."""
    usual = {"reward": AverageLogProb(beta=2.0), "target": NoMargin(), "link": Logistic(), "weight": Uniform()}
    return Objective(**{**usual, "reduce": Mean(), "regularizer": NoRegularizer(), **parts})


def loss_of(method: Objective, inputs: PairInputs, state: ObjectiveState | None = None) -> torch.Tensor:
    """The loss of one forward."""
    terms, _ = method.terms(inputs, method.initial_state() if state is None else state)
    return method.loss(inputs, terms, WindowTotals(len(inputs), len(inputs)))


def stream(method: Objective, folder: Path | None, steps: int = 6) -> tuple[list[torch.Tensor], ObjectiveState]:
    """Terms and last state over ``steps`` batches of different size, by a checkpoint in the middle if ``folder``."""
    state, given = method.initial_state(), []
    draw = random.Random(7)
    for step in range(steps):
        if folder is not None and step == steps // 2:
            state = through_checkpoint(state, folder)
        gaps = [[draw.gauss(0, 2) for _ in range(5 + step)] for _ in range(2)]
        terms, state = method.terms(pairs(*gaps), state)
        given.append(torch.stack([terms.target, terms.weight, terms.temperature]))
    return given, state


def through_checkpoint(state: ObjectiveState, folder: Path) -> ObjectiveState:
    """``state`` as a run finds it again."""
    engine: Any = SimpleNamespace(training_state=dict)
    checkpoints = Checkpoints(folder, Identity("configuration", "data"), None)  # type: ignore[arg-type]
    checkpoints.replace_state(folder, checkpoints.state(engine, Progress(objective_state=state)))
    return Progress(**read_state(folder)["progress"]).objective_state


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


class FixedEngine:
    """Gives the log-probs that batches were made of."""

    def __init__(self, inputs: list[PairInputs]) -> None:
        self.policies = {str(index): one.policy for index, one in enumerate(inputs)}
        self.batches = [batch_of(str(index), one) for index, one in enumerate(inputs)]

    def forwards(self, window: Iterable[PairBatch]) -> Iterator[PairBatch]:
        yield from window

    def log_probs(self, batch: PairBatch, **_: bool) -> PairLogProbs:
        return self.policies[batch.ids[0]]

    def pair_loss(self, batch: PairBatch, share: Share, **_: bool) -> FusedLoss:
        policy = self.log_probs(batch)
        return FusedLoss(share(policy, slice(len(batch))), policy.detach())

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def batch_of(name: str, inputs: PairInputs) -> PairBatch:
    count = len(inputs)
    layout: Any = None
    flipped = torch.zeros(count, dtype=torch.bool)
    return PairBatch(layout, (name,) * count, True, flipped, None, None, inputs.reference, count, count)
