"""What the formulas of this folder share: batches of random numbers, and exact derivatives by a complex step.

Nothing here, and no formula, knows ``src``: numpy alone, each formula as its paper prints it. A formula is a function
of a batch and constants that gives the batch loss; its gradient is Im f(s + ih)/h, exact to rounding for h = 1e-40. So
a formula must be written of functions that take complex numbers, choose by real parts, and say ``fixed(x)`` for what
carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
Constants = Mapping[str, Any]
State = Mapping[str, Any]
Formula = Callable[["Batch", Constants], Any]
StatefulFormula = Callable[["Batch", Constants, State], tuple[Any, State]]

STEP = 1e-40


@dataclass(frozen=True)
class Batch:
    """Pairs, [n] each: policy sums s, reference sums q (nats), tokens n, annotated scores c; w chosen, l rejected."""

    s_w: Numbers
    s_l: Numbers
    q_w: Numbers
    q_l: Numbers
    n_w: Numbers
    n_l: Numbers
    c_w: Numbers
    c_l: Numbers

    @property
    def a_w(self) -> Numbers:
        """Nats per token; 0 for an empty response."""
        return self.s_w / np.maximum(self.n_w, 1)

    @property
    def a_l(self) -> Numbers:
        return self.s_l / np.maximum(self.n_l, 1)

    @property
    def h(self) -> Numbers:
        """Margin of the summed log-ratios."""
        return (self.s_w - self.q_w) - (self.s_l - self.q_l)

    @property
    def h_average(self) -> Numbers:
        """Margin of the log-ratios per token."""
        return self.a_w - self.q_w / np.maximum(self.n_w, 1) - self.a_l + self.q_l / np.maximum(self.n_l, 1)

    @property
    def d(self) -> Numbers:
        """Margin of the log-probs per token."""
        return self.a_w - self.a_l

    @property
    def pairs(self) -> int:
        return len(self.n_w)

    def lists(self) -> dict[str, list[float]]:
        return {spec.name: getattr(self, spec.name).tolist() for spec in fields(self)}


def fixed(x: Numbers) -> Numbers:
    """x without its derivative."""
    return np.real(x)


def ell(x: Numbers) -> Numbers:
    """−log σ(x) = log(1 + e^−x), by whichever side does not overflow."""
    positive = np.real(x) > 0
    small = np.where(positive, -x, x)
    return np.log(1 + np.exp(small)) + np.where(positive, 0, -x)


def sigma(x: Numbers) -> Numbers:
    return np.exp(-ell(x))


def random_batch(seed: int, pairs: int) -> Batch:
    """Responses of 3 to 60 tokens at 0.5 to 2 nats each, near their reference; pair 1 is tied, pair 2 scored the other
    way round."""
    draw = np.random.default_rng(seed)
    n_w, n_l = draw.integers(3, 61, pairs).astype(float), draw.integers(3, 61, pairs).astype(float)
    s_w, s_l = -n_w * draw.uniform(0.5, 2.0, pairs), -n_l * draw.uniform(0.5, 2.0, pairs)
    q_w, q_l = s_w + draw.normal(0, 6, pairs), s_l + draw.normal(0, 6, pairs)
    c_w, c_l = draw.integers(5, 21, pairs) / 2, draw.integers(2, 5, pairs) / 2
    c_l[1] = c_w[1]
    c_w[2], c_l[2] = c_l[2], c_w[2]
    sums = [np.round(values, 3) for values in (s_w, s_l, np.minimum(q_w, -0.5), np.minimum(q_l, -0.5))]
    return Batch(*sums, n_w, n_l, c_w, c_l)


def empty_responses() -> Batch:
    """Two pairs, of which one has an empty chosen response and the other an empty rejected one."""

    def both(first: float, second: float) -> Numbers:
        return np.array([first, second], dtype=float)

    return Batch(
        *(both(0, -21.5), both(-17.25, 0), both(0, -20), both(-18, 0)),
        *(both(0, 19), both(14, 0), both(7, 6), both(3, 5.5)),
    )


BATCHES = {"A": random_batch(11, 8), "B": random_batch(12, 5), "Z": empty_responses()}


def gradient(formula: Callable[[Batch], Any], batch: Batch, name: str) -> list[float]:
    """d loss / d (``s_w`` or ``s_l``), [n]."""
    values = []
    for index in range(batch.pairs):
        moved = getattr(batch, name).astype(complex)
        moved[index] += 1j * STEP
        values.append(float(np.imag(formula(replace(batch, **{name: moved})))) / STEP)
    return values


def vector(tag: str, batch: str, formula: Formula, constants: Constants) -> dict[str, Any]:
    """One entry of a file: the loss of ``formula`` on a batch, and its gradient."""
    pairs = BATCHES[batch]

    def loss(moved: Batch) -> Any:
        return formula(moved, constants)

    return {
        "tag": tag,
        "batch": batch,
        "config": dict(constants),
        "batch_loss": float(np.real(loss(pairs))),
        "dL_ds_w": gradient(loss, pairs, "s_w"),
        "dL_ds_l": gradient(loss, pairs, "s_l"),
    }


def stateful_vectors(
    tag: str, formula: StatefulFormula, constants: Constants, initial: State, batches: Sequence[str] = ("A", "B")
) -> list[dict[str, Any]]:
    """Entries of a formula whose state goes from batch to batch."""
    entries, state = [], initial
    for batch in batches:
        before = state
        entry = vector(tag, batch, lambda pairs, given, before=before: formula(pairs, given, before)[0], constants)
        state = formula(BATCHES[batch], constants, before)[1]
        entries.append(entry | {"state_in": dict(before), "state_out": dict(state)})
    return entries
