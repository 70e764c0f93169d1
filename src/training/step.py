"""One optimizer step over one window: probe, weigh, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.data.collate import PairBatch
from src.engine.base import Engine
from src.errors import UserError
from src.objective.objective import Objective, ObjectiveState
from src.objective.perturbations import Sharpness
from src.objective.types import PairInputs, PairLogProbs, PairTerms, WindowTotals, concatenate
from src.training.deferred import passed_at_once
from src.training.inputs import KnownInputs, known_inputs, pair_inputs
from src.training.probe import probe_parameters, sharpened
from src.training.probed import Probed, probed_values, with_probed
from src.training.window import StepOutput, Window, fits_in_forwards, grouped_terms, output_of, totals_of


class NonFiniteError(UserError):
    """Loss or gradient is no finite number; the update was not made."""


def training_step(
    engine: Engine, objective: Objective, state: ObjectiveState, window: Window, max_grad_norm: float
) -> StepOutput:
    """Update the weights by one window; raises ``NonFiniteError`` (naming its pairs) instead of a broken update."""
    passed = passed_at_once(engine, objective, state, window)
    if passed is None:
        probed = probe_parameters(engine, objective, window)
        passed = pass_over(engine, objective, state, window, probed)
    if isinstance(objective.perturbation, Sharpness):
        with sharpened(engine, objective.perturbation) as found:
            pass_over(engine, objective, state, window, None)
        per_pair = {name: value.expand(len(passed.flipped)) for name, value in found.items()}
        passed = replace(passed, pair_metrics=passed.pair_metrics | per_pair)
    norm = engine.gradient_norm()
    if not bool(torch.isfinite(norm) & torch.isfinite(passed.loss)):
        engine.discard_gradients()
        raise NonFiniteError(non_finite_message(passed, norm, window), exit_code=1)
    engine.clip_and_step(norm, max_grad_norm)
    return replace(passed, gradient_norm=norm)


def pass_over(
    engine: Engine,
    objective: Objective,
    state: ObjectiveState,
    window: Window,
    probed: Probed | None,
    *,
    learning: bool = True,
) -> StepOutput:
    """Loss of the window at the weights as they are, and its gradient when ``learning``.

    The state is the one after the window; without ``learning`` every group sees the state given, which is returned.
    """
    totals, losses, collected, start = totals_of(window), [], [], 0
    with torch.set_grad_enabled(learning):
        terms_of_window, state = window_terms(engine, objective, state, window, probed, learning)
        for batch in engine.forwards(window):
            pairs = slice(start, start + len(batch))
            given = None if terms_of_window is None else terms_of_window[pairs]
            fuses = learning and (given is not None or objective.separable)
            forward = Forward(engine, objective, batch, probed, pairs, given, totals)
            inputs = forward.descended() if fuses else forward.inputs()
            if given is None:
                terms, state = grouped_terms(objective, inputs, state, learning)
            else:
                terms = given
            loss = objective.loss(inputs, terms, totals)
            if learning and not fuses:
                engine.backward(loss)
            losses.append(loss.detach())
            collected.append(metrics_of(objective, inputs, terms, batch, probed, pairs))
            start += len(batch)
    return output_of(window, losses, collected, state)


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward of a window: its pairs, which they are of the window, and their terms where those are known."""

    engine: Engine
    objective: Objective
    batch: PairBatch
    probed: Probed | None
    pairs: slice
    terms: PairTerms | None
    totals: WindowTotals

    def known(self) -> KnownInputs:
        """The inputs but for the policy's log-probs."""
        found = known_inputs(self.engine, self.objective, self.batch, for_terms=self.terms is None)
        return replace(found, values={**found.values, **probed_values(self.probed, self.pairs)})

    def inputs(self) -> PairInputs:
        """The inputs, with gradient."""
        known, needs = self.known(), self.objective.needs
        return known.with_policy(self.engine.log_probs(self.batch, per_token=needs.per_token, prompt=needs.prompt))

    def descended(self) -> PairInputs:
        """The inputs, without gradient, after a forward in which the head made its gradients, and its backward.

        For losses that are sums over pairs: with terms that are known, or found from each pair alone.
        """
        known, needs = self.known(), self.objective.needs

        def share(policy: PairLogProbs, pairs: slice) -> Tensor:
            inputs = known.with_policy(policy, pairs)
            terms = self.objective.terms(inputs, {})[0] if self.terms is None else self.terms[pairs]
            return self.objective.loss(inputs, terms, self.totals)

        found = self.engine.pair_loss(self.batch, share, per_token=needs.per_token, prompt=needs.prompt)
        self.engine.backward(found.loss)
        return known.with_policy(found.log_probs)


def metrics_of(
    objective: Objective, inputs: PairInputs, terms: PairTerms, batch: PairBatch, probed: Probed | None, pairs: slice
) -> dict[str, Tensor]:
    """What is logged of each pair of a forward, [n] each."""
    if not batch.has_rejected:
        return {"logps/chosen": inputs.policy.chosen.summed.detach()}
    found = {} if probed is None else {name: values[pairs] for name, values in probed.diagnostics.items()}
    return objective.metrics(inputs, terms) | found


def window_terms(
    engine: Engine,
    objective: Objective,
    state: ObjectiveState,
    window: Window,
    probed: Probed | None,
    evolving: bool,
) -> tuple[PairTerms | None, ObjectiveState]:
    """Terms of all pairs of the window, when a group of statistics reaches over several forwards.

    ``None`` when every group lies within one forward, which then gives the statistics itself.
    """
    if fits_in_forwards(objective.needs.statistics, window):
        return None, state
    with torch.no_grad():
        inputs = concatenate([pair_inputs(engine, objective, batch) for batch in window])
    return grouped_terms(objective, with_probed(inputs, probed), state, evolving)


def validate(engine: Engine, objective: Objective, state: ObjectiveState, batches: Sequence[PairBatch]) -> StepOutput:
    """Loss and metrics over ``batches`` without an update; the state it returns is the one it was given.

    The mean over all pairs, with statistics over the declared scope (a forward, a number of pairs in order, or all).
    """
    return pass_over(engine, objective, state, batches, probe_parameters(engine, objective, batches), learning=False)


def non_finite_message(passed: StepOutput, norm: Tensor, window: Window) -> str:
    """Which pairs the broken window held, and which of them have non-finite log-probs."""
    names = [name for batch in window for name in batch.ids]
    finite = torch.stack([torch.isfinite(value) for value in passed.pair_metrics.values()]).all(0).tolist()
    broken = [name for name, fine in zip(names, finite, strict=True) if not fine]
    what = f"pairs with non-finite log-probs or rewards: {', '.join(broken)}" if broken else "every pair is finite"
    return (
        f"loss={passed.loss.item():g}, gradient norm={norm.item():g}: "
        "no update was made, since it would ruin the weights. "
        f"The window holds {', '.join(names)}; {what}. The last checkpoint is intact; "
        "lower training.learning_rate, or look at these pairs"
    )
