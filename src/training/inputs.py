"""What the parts may look at, and the forwards that give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.model.fused import Share
from src.objective.objective import Objective
from src.objective.types import Needs, PairInputs, PairLogProbs


def pair_inputs(engine: Engine, objective: Objective, batch: PairBatch, *, for_terms: bool = True) -> PairInputs:
    """The inputs of one forward, with gradient: what the parts declared to need, and no more.

    ``for_terms``: see ``known_inputs``.
    """
    needs = objective.needs
    # the forward without gradient first: after the other one its activations would be held meanwhile
    known = known_inputs(engine, objective, batch, for_terms=for_terms)
    return known.with_policy(engine.log_probs(batch, per_token=needs.per_token, prompt=needs.prompt))


@dataclass(frozen=True, slots=True)
class KnownInputs:
    """The inputs of the pairs of a forward but for the policy's log-probs, by their names in ``PairInputs``."""

    values: Mapping[str, Any]

    def with_policy(self, policy: PairLogProbs, pairs: slice = slice(None)) -> PairInputs:
        """All inputs of ``pairs``, whose log-probs are ``policy``."""
        mine = {name: None if value is None else value[pairs] for name, value in self.values.items()}
        return PairInputs(policy=policy, **mine)


def known_inputs(engine: Engine, objective: Objective, batch: PairBatch, *, for_terms: bool = True) -> KnownInputs:
    """What is known of the pairs of a forward before it, as far as the parts declared to need it.

    ``for_terms``: whether temperatures, targets and weights are found from these inputs. Only they look at mismatched
    responses, which cost a further forward without gradient.
    """
    needs = objective.needs
    mismatched = batch.mismatched if needs.mismatched and for_terms else None
    values = {
        "mismatched": None if mismatched is None else mismatched_log_probs(engine, needs, mismatched),
        "mismatched_reference": None if mismatched is None or not needs.reference else mismatched.reference,
        "reference": batch.reference if needs.reference else None,
        "chosen_scores": batch.chosen_scores if needs.scores else None,
        "rejected_scores": batch.rejected_scores if needs.scores else None,
    }
    return KnownInputs(values)


@torch.no_grad()
def mismatched_log_probs(engine: Engine, needs: Needs, batch: PairBatch) -> PairLogProbs:
    """Log-probs of mismatched responses: rewards are made of them as of the pair's own, but no gradient ever."""
    return engine.log_probs(batch, per_token=needs.per_token)


def margin_share(objective: Objective, known: KnownInputs) -> Share:
    """What pairs add to the sum of all reward margins, of their log-probs: its gradient by a pair's is ∇m_i."""

    def share(policy: PairLogProbs, pairs: slice) -> Tensor:
        inputs = known.with_policy(policy, pairs)
        return objective.rewards(inputs.policy, inputs.reference).margins.sum()

    return share
