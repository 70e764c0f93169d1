"""What the parts may look at, and the forwards that give it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.objective.objective import Objective
from src.objective.types import Needs, PairInputs, PairLogProbs

Window = Sequence[PairBatch]
"""The micro-batches of one optimizer step."""


def pair_inputs(engine: Engine, objective: Objective, batch: PairBatch, *, for_terms: bool = True) -> PairInputs:
    """The inputs of one forward, with gradient: what the parts declared to need, and no more.

    ``for_terms``: whether temperatures, targets and weights are found from these inputs. Only they look at mismatched
    responses, which cost a further forward without gradient.
    """
    needs = objective.needs
    mismatched = batch.mismatched if needs.mismatched and for_terms else None
    return PairInputs(
        # the forward without gradient first: after the other one its activations would be held meanwhile
        mismatched=None if mismatched is None else mismatched_log_probs(engine, needs, mismatched),
        mismatched_reference=None if mismatched is None or not needs.reference else mismatched.reference,
        policy=engine.log_probs(batch, per_token=needs.per_token, prompt=needs.prompt),
        reference=batch.reference if needs.reference else None,
        chosen_scores=batch.chosen_scores if needs.scores else None,
        rejected_scores=batch.rejected_scores if needs.scores else None,
    )


@torch.no_grad()
def mismatched_log_probs(engine: Engine, needs: Needs, batch: PairBatch) -> PairLogProbs:
    """Log-probs of mismatched responses: rewards are made of them as of the pair's own, but no gradient ever."""
    return engine.log_probs(batch, per_token=needs.per_token)
