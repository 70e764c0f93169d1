"""Whether claims hold: on the numbers that the paper prints, and on ours.

Of printed numbers a comparison holds when it is above 0; a tie at the printed digits decides nothing. Of ours it holds
when its whole 95 % interval (src/experiments/compare.py) is above 0, and fails when it is below. A claim holds when all
its comparisons do, fails when one fails, and is undecided otherwise. Each interval is of one comparison: of a claim
with many of them, one fails by chance more often than once in forty times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.experiments.claims import Block, Check, Comparison, RankAgreement, Term, words
from src.experiments.compare import Draws, Estimate, Sample, draws_of, rank_agreement
from src.experiments.experiment import Column, Experiment, MeanOf
from src.experiments.published import Labels
from src.experiments.results import Results

Outcome = Literal["holds", "fails", "undecided"]
TIE = 1e-9
Key = tuple[tuple[str, ...], str]
"""Labels of a row and name of a column."""


@dataclass(frozen=True)
class Verdict:
    """``text``: what decided it; ``estimate``: of that, with its interval where it is of ours; ``parts``: block by
    block (``where``), if there are several."""

    outcome: Outcome
    text: str
    estimate: Estimate | None = None
    where: str = ""
    parts: tuple[Verdict, ...] = ()

    @property
    def interval(self) -> str:
        """The estimate with its interval; "" without one."""
        if self.estimate is None:
            return ""
        return f"{self.estimate.value:+.3g}" + (f" {self.estimate.spread}" if self.estimate.seeds else "")


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of the rows of one block by one column, published against reproduced; ``rows``: how many have both
    numbers. Without an ``estimate`` a ``reason``."""

    column: Column
    where: str
    rows: int
    estimate: Estimate | None
    reason: str = ""


def printed_value(experiment: Experiment, labels: Labels, column: Column) -> float | None:
    """The number that the paper prints in a cell, or, where it prints none, the mean of those that it is a mean of."""
    published = experiment.published
    if published is None:
        return None
    value = published.value({**experiment.fixed, **labels}, column.name)
    if value is not None or not isinstance(column.source, MeanOf):
        return value
    parts = [printed_value(experiment, labels, experiment.column(name)) for name in column.source.columns]
    known = [part for part in parts if part is not None]
    return sum(known) / len(known) if len(known) == len(parts) else None


def printed_verdict(check: Check, experiment: Experiment) -> Verdict | None:
    """What the printed numbers say; ``None`` where the paper prints none of them, or they are the claim itself."""
    parts = []
    for block in check.blocks(experiment):
        found = [(one.name, printed_sum(experiment, one.terms)) for one in block.comparisons]
        known = [(name, value) for name, value in found if value is not None]
        if known:
            parts.append(printed_block(block, known, len(found)))
    return joined(parts) if parts else None


def printed_sum(experiment: Experiment, terms: Sequence[Term]) -> float | None:
    """A weighted sum of printed numbers; ``None`` where one is not printed."""
    values = [printed_value(experiment, labels, experiment.column(column)) for _, labels, column in terms]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(coefficient * value for (coefficient, _, _), value in zip(terms, known, strict=True))


def printed_block(block: Block, known: Sequence[tuple[str, float]], total: int) -> Verdict:
    """The verdict on the printed numbers of one block."""
    name, value = min(known, key=lambda one: one[1])
    outcome: Outcome = "undecided" if abs(value) <= TIE else "holds" if value > 0 else "fails"
    if total > len(known):
        name += f"; {total - len(known)} of {total} comparisons are not printed"
    return Verdict(outcome, name, Estimate(value, None, None, 0, 0), block.where)


def reproduced_verdict(check: Check, results: Results) -> Verdict:
    """What our numbers say."""
    if isinstance(check, RankAgreement):
        column = results.plan.experiment.column(check.column)
        parts = [agreement_verdict(one) for one in agreements(results, column, check.within)]
    else:
        parts = [reproduced_block(block, results) for block in check.blocks(results.plan.experiment)]
    return joined(parts)


def joined(parts: Sequence[Verdict]) -> Verdict:
    """The verdict on all blocks together; the one that decided it in front."""
    if len(parts) == 1:
        return parts[0]
    outcomes = [part.outcome for part in parts]
    outcome: Outcome = "fails" if "fails" in outcomes else "undecided" if "undecided" in outcomes else "holds"
    deciding = [part for part in parts if part.outcome == outcome]
    first = min(deciding, key=lambda part: part.estimate.value if part.estimate else 0.0)
    counted = ", ".join(f"{one} in {outcomes.count(one)}" for one in ("holds", "fails", "undecided") if one in outcomes)
    where = f"{first.where}: " if first.where else ""
    return Verdict(outcome, f"{counted} of {len(parts)}; {where}{first.text}", first.estimate, "", tuple(parts))


def expanded(experiment: Experiment, terms: Sequence[Term]) -> list[Term]:
    """The terms with the cells of means in the place of the means."""
    found: list[Term] = []
    for coefficient, labels, name in terms:
        source = experiment.column(name).source
        if isinstance(source, MeanOf):
            share = coefficient / len(source.columns)
            found += expanded(experiment, [(share, labels, part) for part in source.columns])
        else:
            found.append((coefficient, labels, name))
    return found


@dataclass(frozen=True)
class Cells:
    """The cells of several comparisons, each once, and their bootstrap (``None`` without a common seed)."""

    places: dict[Key, int]
    draws: Draws | None

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """A weighted sum; ``None`` when a cell of it is missing."""
        coefficients = np.zeros(len(self.places))
        for coefficient, labels, name in terms:
            place = self.places.get((tuple(labels.values()), name))
            if place is None:
                return None
            coefficients[place] += coefficient
        return None if self.draws is None else self.draws.contrast(coefficients)


def cells_of(results: Results, terms: Sequence[Term]) -> Cells:
    """The measured cells among ``terms``, which are single cells."""
    samples: dict[Key, Sample] = {}
    for _, labels, name in terms:
        key = (tuple(labels.values()), name)
        if key not in samples:
            samples[key] = results.sample(labels, results.plan.experiment.column(name))
    known = {key: sample for key, sample in samples.items() if sample.numbers}
    return Cells({key: place for place, key in enumerate(known)}, draws_of(list(known.values())))


def estimates(results: Results, comparisons: Sequence[Comparison]) -> list[Estimate | None]:
    """Each comparison with its interval; ``None`` where a cell is not measured."""
    experiment = results.plan.experiment
    terms = [expanded(experiment, one.terms) for one in comparisons]
    cells = cells_of(results, [term for one in terms for term in one])
    return [cells.estimate(one) for one in terms]


def reproduced_block(block: Block, results: Results) -> Verdict:
    """The verdict on our numbers of one block."""
    found = list(zip(block.comparisons, estimates(results, block.comparisons), strict=True))
    known = [(one.name, estimate) for one, estimate in found if estimate is not None]
    if not known:
        return Verdict("undecided", "not measured yet", None, block.where)
    failing = [one for one in known if one[1].below]
    open_ones = [one for one in known if not one[1].above]
    outcome: Outcome = "fails" if failing else "undecided" if open_ones or len(known) < len(found) else "holds"
    name, estimate = min(failing or open_ones or known, key=lambda one: one[1].value)
    if estimate.reason:
        name += f"; {estimate.reason}"
    if len(known) < len(found):
        name += f"; {len(found) - len(known)} of {len(found)} comparisons are not measured yet"
    return Verdict(outcome, name, estimate, block.where)


def agreements(results: Results, column: Column, within: Sequence[str]) -> list[Agreement]:
    """Kendall's tau of the rows of every block, published against reproduced; better is higher on both sides."""
    experiment = results.plan.experiment
    blocks: dict[str, list[Labels]] = {}
    for labels in experiment.keys:
        blocks.setdefault(words(labels, within), []).append(labels)
    found = []
    for where, rows in blocks.items():
        printed = [(labels, printed_value(experiment, labels, column)) for labels in rows]
        pairs = [(labels, value) for labels, value in printed if value is not None]
        found.append(agreement(results, column, where, pairs))
    return found


def agreement(results: Results, column: Column, where: str, pairs: Sequence[tuple[Labels, float]]) -> Agreement:
    """Kendall's tau in one block."""
    experiment = results.plan.experiment
    if len(pairs) < 2:
        return Agreement(column, where, len(pairs), None, "the paper prints fewer than two numbers")
    terms = {labels_key(labels): expanded(experiment, [(1.0, labels, column.name)]) for labels, _ in pairs}
    cells = cells_of(results, [term for one in terms.values() for term in one])
    matrix, values = [], []
    for labels, value in pairs:
        rows = [(cells.places.get((tuple(row.values()), name)), c) for c, row, name in terms[labels_key(labels)]]
        if all(place is not None for place, _ in rows):
            weights = np.zeros(len(cells.places))
            for place, coefficient in rows:
                weights[place] += coefficient
            matrix.append(weights)
            values.append(value)
    if len(values) < 2 or cells.draws is None:
        return Agreement(column, where, len(values), None, "fewer than two rows are measured")
    estimate = rank_agreement(values, cells.draws, np.array(matrix))
    reason = "all numbers of a side are equal" if estimate is None else estimate.reason
    return Agreement(column, where, len(values), estimate, reason)


def labels_key(labels: Labels) -> tuple[str, ...]:
    """A row as a key."""
    return tuple(labels.values())


def agreement_verdict(one: Agreement) -> Verdict:
    """Whether an order agrees with the printed one."""
    text = f"Kendall's tau of {one.rows} rows" + (f"; {one.reason}" if one.reason else "")
    if one.estimate is None:
        return Verdict("undecided", text, None, one.where)
    outcome: Outcome = "holds" if one.estimate.above else "fails" if one.estimate.below else "undecided"
    return Verdict(outcome, text, one.estimate, one.where)
