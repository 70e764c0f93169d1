"""The step with one technique at a time switched off: where the program has no switch, by calling what is beneath."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.workloads import Own, Shape, model_of, own
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.model.compiled import compile_blocks
from src.model.fused import fused_pair_loss, pair_groups
from src.model.head import chunk_tokens, plain_log_probs
from src.model.logps import head_of, of_pairs, pair_log_probs, predicted_tokens
from src.model.packed import Predictions, lengths_of, predictions, shares_prefixes
from src.objective.types import PairLogProbs, WindowTotals
from src.training.inputs import known_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pairs = Sequence[TokenizedPair]
LogProbs = Callable[["PreTrainedModel", PairBatch], PairLogProbs]


@dataclass(frozen=True)
class Unfused:
    """A step whose log-probs come first and whose gradients come from autograd."""

    own: Own
    log_probs: LogProbs

    def __call__(self, pairs: Pairs) -> float:
        engine, objective, batch = self.own.engine, self.own.objective, self.own.batch(pairs)
        inputs = known_inputs(engine, objective, batch).with_policy(self.log_probs(engine.model, batch))
        terms, _ = objective.terms(inputs, objective.initial_state())
        loss = objective.loss(inputs, terms, totals_of(batch))
        engine.backward(loss)
        objective.metrics(inputs, terms)
        engine.discard_gradients()
        return float(loss.detach())


@dataclass(frozen=True)
class PromptTwice:
    """A step on packed rows in which each response has its prompt to itself: packing without the shared prefix."""

    own: Own

    def __call__(self, pairs: Pairs) -> float:
        engine, objective, batch = self.own.engine, self.own.objective, self.own.batch(pairs)
        alone = [replace(pair, rejected_ids=[]) for pair in pairs]
        alone += [replace(pair, chosen_ids=pair.rejected_ids, rejected_ids=[]) for pair in pairs]
        known, totals = known_inputs(engine, objective, batch), totals_of(batch)
        found = predictions(engine.model, collate(alone), prompt=False, packed=True)
        head, softcap = head_of(engine.model)
        weight = head.weight
        assert isinstance(weight, Tensor)
        groups = pair_groups(
            predicted_tokens(lengths_of(batch), prompt=False), chunk_tokens(weight.shape[0], engine.device)
        )

        def share(policy: PairLogProbs, mine: slice) -> Tensor:
            inputs = known.with_policy(policy, mine)
            return objective.loss(inputs, objective.terms(inputs, {})[0], totals)

        # sequence i is the chosen response of pair i and sequence n + i its rejected one, as owners are counted
        fused = fused_pair_loss(found.hidden, weight, found.labels, found.owner, groups, share, softcap=softcap)
        engine.backward(fused.loss)
        inputs = known.with_policy(fused.log_probs)
        objective.metrics(inputs, objective.terms(inputs, {})[0])
        engine.discard_gradients()
        return float(fused.loss.detach())


@dataclass(frozen=True)
class OnlineReference:
    """A step before which a reference model is asked about the pairs, as long as none of its answers is kept."""

    step: Callable[[Pairs], float]
    reference: PreTrainedModel
    own: Own
    log_probs: LogProbs

    @torch.no_grad()
    def asked(self, pairs: Pairs) -> None:
        self.log_probs(self.reference, self.own.batch(pairs))

    def __call__(self, pairs: Pairs) -> float:
        self.asked(pairs)
        return self.step(pairs)


def totals_of(batch: PairBatch) -> WindowTotals:
    """Sizes of a window of one forward."""
    return WindowTotals(len(batch), batch.chosen_tokens, batch.prompt_tokens)


def by_program(model: PreTrainedModel, batch: PairBatch) -> PairLogProbs:
    """The program's log-probs: a chunk of logits at a time, made again in the backward."""
    return pair_log_probs(model, batch)


def in_one_piece(model: PreTrainedModel, batch: PairBatch) -> PairLogProbs:
    """All supervised tokens' logits at once."""
    found = predictions(model, batch, prompt=False, packed=shares_prefixes(model))
    head, softcap = head_of(model)
    weight = head.weight
    assert isinstance(weight, Tensor)
    scores = plain_log_probs(found.hidden, weight, found.labels, None, softcap)
    return of_pairs(scores, found, batch, per_token=False, prompt=False)


def everywhere(model: PreTrainedModel, batch: PairBatch) -> PairLogProbs:
    """Logits of prompts and padding too, in float32, and a log-softmax of them: what the papers' code does."""
    layout = batch.layout
    logits = model(input_ids=layout.input_ids, use_cache=False).logits.float()
    ids, counted = layout.input_ids[:, 1:], layout.supervised[:, 1:]
    scores = logits[:, :-1].log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
    rows, columns = counted.nonzero(as_tuple=True)
    found = predictions_like(layout.supervised, rows, columns + 1)
    return of_pairs(scores[rows, columns], found, batch, per_token=False, prompt=False)


def predictions_like(supervised: Tensor, owner: Tensor, column: Tensor) -> Predictions:
    """What ``of_pairs`` reads of predictions."""
    empty = torch.empty(0)
    counts = torch.cat([supervised.sum(1).float(), torch.zeros(len(supervised) // 2)])
    return Predictions(empty, owner, owner, column, counts)


def variants(method: str, shape: Shape, *overrides: str) -> dict[str, Callable[[Pairs], float]]:
    """Steps by name; ``program`` is what all are compared with. A reference is asked only where the method has one."""
    model = model_of(shape)
    padded = model_of(shape, "padded")
    compiled = model_of(shape)
    compile_blocks(compiled)
    ours, beside = own(method, model, *overrides), own(method, padded, *overrides)
    found: dict[str, Callable[[Pairs], float]] = {
        "program": ours,
        "no shared prefix": PromptTwice(ours),
        "no shared prefix, no packing": beside,
        "nothing; blocks compiled": own(method, compiled, *overrides),
        "no fused head": Unfused(ours, by_program),
        "no fused head, no chunks": Unfused(ours, in_one_piece),
        "nothing (papers' code)": Unfused(beside, everywhere),
    }
    if ours.objective.needs.reference:
        frozen = copy.deepcopy(model)
        found["no stored reference"] = OnlineReference(ours, frozen, ours, by_program)
        plain = found["nothing (papers' code)"]
        found["nothing (papers' code)"] = OnlineReference(plain, copy.deepcopy(padded), beside, everywhere)
    return found
