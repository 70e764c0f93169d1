"""A window whose pairs are weighed after one forward and backward of their reward margins.

The loss of a pair whose gradient is a number times that of its margin (``Objective.rescales``) needs no forward of its
own once that number is known. GAPO's exact gap so costs 5/3 of a SimPO step in place of 7/3, its sketch and statistics
over several forwards about 1. What is kept meanwhile are the inputs of layers and the gradients of their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from src.combinations import WHOLE
from src.data.collate import PairBatch
from src.engine.base import Engine
from src.engine.deferred import Observed
from src.model.tape import RECORDED
from src.objective.objective import Objective, ObjectiveState
from src.objective.perturbations import AnchorProbe, NoPerturbation
from src.objective.types import PairInputs, PairTerms, concatenate
from src.schema import TrainConfig
from src.training.groups import group_size, grouped
from src.training.inputs import known_inputs
from src.training.probe import finite_gaps, observed_margins, sketched_gaps
from src.training.probed import Probed, diagnosed, with_probed
from src.training.stream import streamed_pass
from src.training.window import StepOutput, Window, fits_in_forwards, grouped_terms, output_of, totals_of

Unit = Sequence[Sequence[PairBatch]]
"""Groups of pairs that share a direction, of which nothing is forgotten until all are weighed."""


def passed_at_once(engine: Engine, objective: Objective, state: ObjectiveState, window: Window) -> StepOutput | None:
    """The window's loss, with its gradient in the engine and the state after it, without a second forward.

    ``None`` where that cannot be had, and nothing was done.
    """
    if isinstance(objective.perturbation, AnchorProbe) and objective.perturbation.probe == "stream":
        return streamed_pass(engine, objective, state, window, objective.perturbation)
    units = units_of(engine, objective, window)
    if units is None:
        return None
    totals, losses, collected = totals_of(window), [], []
    for unit in units:
        observed, inputs, probed = probed_unit(engine, objective, unit)
        inputs = with_probed(inputs, probed)
        terms, state = terms_over(objective, inputs, state, [len(batch) for batch in window])
        engine.weigh(observed, objective.pulls(inputs, terms, totals))
        with torch.no_grad():
            losses.append(objective.loss(inputs, terms, totals))
        found = {} if probed is None else dict(probed.diagnostics)
        collected.append(objective.metrics(inputs, terms) | found)
    return output_of(window, losses, collected, state)


def units_of(engine: Engine, objective: Objective, window: Window) -> list[Unit] | None:
    """The groups of the window as they are weighed: each by itself, or all together where terms look at several.

    ``None`` where a second forward is needed: the loss is not of margins alone, layers cannot be recorded, more
    forwards than ``engine.kept_forwards`` would have to be kept; or where there is none to save.
    """
    perturbation = objective.perturbation
    if isinstance(perturbation, AnchorProbe):
        if perturbation.probe not in ("perturb", "sketch"):
            return None
        groups = list(grouped(window, group_size(perturbation, window)))
    elif isinstance(perturbation, NoPerturbation) and not fits_in_forwards(objective.needs.statistics, window):
        groups = [list(window)]
    else:
        return None
    if not objective.rescales or not engine.kept_forwards or engine.unrecordable() is not None:
        return None
    units = [[group] for group in groups] if objective.separable else [groups]
    room = engine.kept_forwards * max(map(len, window))
    longest = max(sum(len(batch) for group in unit for batch in group) for unit in units)
    return units if longest <= room else None  # type: ignore[return-value]


def probed_unit(engine: Engine, objective: Objective, unit: Unit) -> tuple[list[Observed], PairInputs, Probed | None]:
    """Forwards of the unit's pairs with what they keep, the parts' inputs, and what the perturbation found."""
    anchor, observed, inputs, found = objective.perturbation, [], [], []
    summed = isinstance(anchor, AnchorProbe) and anchor.along_mean
    for group in unit:
        batches = [(batch, known_inputs(engine, objective, batch)) for batch in group]
        mine = [observed_margins(engine, objective, batch, known, summed=summed) for batch, known in batches]
        inputs += [known.with_policy(one.log_probs) for (_, known), one in zip(batches, mine, strict=True)]
        observed += mine
        if isinstance(anchor, AnchorProbe):
            if anchor.probe == "sketch":
                sketched = [engine.sketched(one, anchor.scope, anchor.sketch_size) for one in mine]
                found.append(sketched_gaps(engine, sketched, anchor))
            else:
                with engine.gradients_aside():
                    found.append(finite_gaps(engine, objective, group, mine, anchor))
    return observed, concatenate(inputs), diagnosed(found) if found else None


def terms_over(
    objective: Objective, inputs: PairInputs, state: ObjectiveState, forwards: Sequence[int]
) -> tuple[PairTerms, ObjectiveState]:
    """Terms of ``inputs``, and the state after them; ``forwards``: how many pairs each has, for statistics of these."""
    if objective.needs.statistics != "forward":
        return grouped_terms(objective, inputs, state, True)
    parts, start = [], 0
    for size in forwards:
        terms, state = grouped_terms(objective, inputs[start : start + size], state, True)
        parts.append(terms)
        start += size
    return PairTerms.concatenate(parts), state


def pairs_together(config: TrainConfig, objective: Objective) -> int:
    """How many pairs ``units_of`` weighs at once; 0 where pairs are weighed one by one, or not in this way."""
    anchor, batch = objective.perturbation, config.training.global_batch_size
    if isinstance(anchor, AnchorProbe) and anchor.probe in ("perturb", "sketch"):
        return anchor.anchor_pairs if objective.separable and anchor.anchor_pairs != "window" else batch
    groups = objective.needs.statistics not in (None, "forward")
    return batch if isinstance(anchor, NoPerturbation) and groups else 0


def keeps_at_most(config: TrainConfig, objective: Objective) -> int:
    """Of how many forwards what layers were given may be kept, as far as method and model let it be seen."""
    known = config.model.architecture.get("model_type") in RECORDED and not config.engine.compile_blocks
    return config.training.kept_forwards if known and objective.rescales else 0


def plan_note(config: TrainConfig, objective: Objective, ranks: int) -> str | None:
    """What a plan says of the second forward that pairs' weights may cost; ``None`` where there is none at issue."""
    anchor, training = objective.perturbation, config.training
    if not isinstance(anchor, AnchorProbe) or anchor.probe not in ("perturb", "sketch"):
        return None
    cheap, dear = ("5/3", "7/3") if anchor.probe == "perturb" else ("1.1", "5/3")
    pairs = pairs_together(config, objective)
    forwards = -(-pairs // (training.micro_batch_size * ranks))
    why = None
    if config.model.gradient_checkpointing:
        why = "model.gradient_checkpointing=true keeps no inputs of layers"
    elif config.engine.compile_blocks:
        why = "engine.compile_blocks=true hides the inputs of layers"
    elif config.engine.name not in WHOLE:
        why = f"engine={config.engine.name} holds weights for a forward and a backward alone"
    elif config.model.architecture.get("model_type") not in RECORDED:
        why = f"layers of {config.model.architecture.get('model_type')} are not known well enough"
    elif not objective.rescales:
        why = "the loss is not of reward margins alone"
    elif forwards > training.kept_forwards:
        why = (
            f"{forwards} forwards share a direction and training.kept_forwards={training.kept_forwards} are kept; "
            f"training.kept_forwards={forwards} makes it {cheap}, and holds the activations of as many"
        )
    if why is None:
        return (
            f"a step costs about {cheap} of SimPO's: what layers were given is kept until the pairs' weights are known"
        )
    return f"a step costs about {dear} of SimPO's: {why}"
