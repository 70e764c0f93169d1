"""Answers of a model that are matched to questions by id, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from src.errors import UserError
from src.evaluation.benchmark import Item, Outputs

SHOWN = 5


def collected(rows: Iterable[tuple[str, tuple[str, ...]]], source: str) -> tuple[dict[str, tuple[str, ...]], int]:
    """Answers by item id, and how many rows only repeated an earlier one word for word.

    ``source``: the file they are from, for messages. Raises ``UserError`` when an id has two different answers.
    """
    found: dict[str, tuple[str, ...]] = {}
    repeated = 0
    differing: dict[str, None] = {}
    for identity, answers in rows:
        if identity not in found:
            found[identity] = answers
        elif found[identity] == answers:
            repeated += 1
        else:
            differing.setdefault(identity)
    if differing:
        raise UserError(
            f"{source} holds different answers to the same question, {len(differing)} times "
            f"({named(list(differing))}), so it cannot be said which one is meant; leave one answer to each"
        )
    return found, repeated


def completed(items: Sequence[Item], outputs: Mapping[str, tuple[str, ...]], source: str) -> Outputs:
    """``outputs`` in the order of ``items``.

    Raises ``UserError`` for items without an answer, answers to no item, and another number of turns.
    """
    missing = [item.id for item in items if item.id not in outputs]
    known = {item.id for item in items}
    foreign = [identity for identity in outputs if identity not in known]
    short = [item.id for item in items if item.id in outputs and len(outputs[item.id]) != len(item.turns)]
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} of {len(items)} questions have no answer ({named(missing)})")
    if foreign:
        reasons.append(f"{len(foreign)} answers are to no question of the benchmark ({named(foreign)})")
    if short:
        reasons.append(f"{len(short)} questions have another number of turns than answers ({named(short)})")
    if reasons:
        raise UserError(
            f"{source} does not hold one answer to every question: {'; '.join(reasons)}. Give all {len(items)}, in any "
            "order"
        )
    return {item.id: tuple(outputs[item.id]) for item in items}


def named(ids: Sequence[str]) -> str:
    """The first few ids, each short enough for a line."""
    shown = ", ".join(identity if len(identity) <= 60 else f"{identity[:59]}…" for identity in ids[:SHOWN])
    return shown + (f", and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
