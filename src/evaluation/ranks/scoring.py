"""From rows, one per pair, to scores: which rows count (docs/evaluation/ranking.md), and the metrics of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.items import parted
from src.evaluation.statistics import ranking_metrics

Row = Mapping[str, Any]
GROUPS = {
    "rewards": ("chosen_reward", "rejected_reward"),
    "log-probs": ("chosen_sum", "rejected_sum", "chosen_tokens", "rejected_tokens"),
    "reference log-probs": ("reference_chosen_sum", "reference_rejected_sum"),
}
"""Columns that are there together or not at all."""

NUMBERS = (*(name for group in GROUPS.values() for name in group), "chosen_score", "rejected_score")
NAN = float("nan")


def score_rows(rows: Iterable[Row], min_score_gap: float = 0.0) -> Scores:
    """The ranking metrics of one model's rows, each with ``chosen_reward`` and ``rejected_reward`` or with log-probs.

    The first row of an ``id`` counts. A row is left out where a number is missing or not finite that other rows have;
    scores may be missing. Ties are wrong. Raises ``UserError`` when nothing is left to rank.
    """
    kept, counts = told_apart(rows)
    present = [name for name, group in GROUPS.items() if any(finite(row, key) for row in kept for key in group)]
    if not {"rewards", "log-probs"} & set(present):
        raise UserError(
            "no row has chosen_reward and rejected_reward, or chosen_sum, rejected_sum, chosen_tokens and "
            "rejected_tokens, so there is nothing to rank by; give rows with rewards or with log-probs"
        )
    if "log-probs" not in present and "reference log-probs" in present:
        raise UserError(
            "rows have reference_chosen_sum and reference_rejected_sum without chosen_sum and rejected_sum, which they "
            "are compared with; give both, or leave the reference out"
        )
    needed = [key for name in present for key in GROUPS[name]]
    whole = [row for row in kept if all(finite(row, key) for key in needed)]
    counts["not_finite"] = len(kept) - len(whole)
    if not whole:
        raise UserError(
            f"none of {len(kept)} rows has a finite number in each of {', '.join(needed)}; the weights may have "
            "diverged: score rows of an earlier checkpoint"
        )
    columns = columns_of(whole, needed)
    metrics = ranking_metrics(**columns, min_score_gap=min_score_gap)
    counts |= counts_of(columns, min_score_gap)
    ids = [str(row.get("id") or place) for place, row in enumerate(whole)]
    return Scores(metrics, counts, tuple(notes_of(counts)), items=items_of(columns, ids, min_score_gap))


def told_apart(rows: Iterable[Row]) -> tuple[list[Row], dict[str, int]]:
    """The rows that do not repeat an id, in order; rows without one are all told apart."""
    kept, seen, total = [], set[str](), 0
    for row in rows:
        total += 1
        identity = row.get("id")
        if identity is not None and str(identity) in seen:
            continue
        seen.add(str(identity))
        kept.append(row)
    return kept, {"rows": total, "duplicates": total - len(kept)}


def finite(row: Row, key: str) -> bool:
    """Whether a row has a number at ``key``."""
    value = row.get(key)
    return value is not None and math.isfinite(value)


def columns_of(rows: Sequence[Row], needed: Sequence[str]) -> dict[str, Any]:
    """The arguments of ``ranking_metrics``; a pair without a prompt's id is a prompt of its own."""
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in needed}
    scores = {f"{side}_scores": [row.get(f"{side}_score") for row in rows] for side in ("chosen", "rejected")}
    if any(value is not None for values in scores.values() for value in values):
        columns |= scores
    columns["flipped"] = [bool(row.get("flipped")) for row in rows]
    ids: list[Hashable] = [
        ("row", place) if row.get("prompt_id") is None else ("prompt", str(row["prompt_id"]))
        for place, row in enumerate(rows)
    ]
    columns["prompt_ids"] = ids
    return columns


def counts_of(columns: Mapping[str, Any], min_score_gap: float) -> dict[str, int]:
    """How many pairs fall under which rule; ties (and flipped pairs) among those that are ranked."""
    gap, ranked = gaps_of(columns, min_score_gap)
    counts = {
        "pairs": int(ranked.sum()),
        "below_gap": int((~ranked).sum()),
        "unscored": int(np.isnan(gap).sum()),
        "flipped": int(np.array(columns["flipped"])[ranked].sum()),
    }
    for name, (chosen, rejected) in rewards_of(columns).items():
        counts[f"ties_{name}"] = int((chosen == rejected)[ranked].sum())
    return counts


def gaps_of(columns: Mapping[str, Any], min_score_gap: float) -> tuple[Any, Any]:
    """Score gap of every pair (NaN without scores), and whether the pair is ranked."""
    size = len(columns["flipped"])
    gap = np.full(size, NAN)
    if "chosen_scores" in columns:
        chosen, rejected = (np.array(columns[f"{side}_scores"], dtype=np.float64) for side in ("chosen", "rejected"))
        gap = np.abs(chosen - rejected)
    return gap, gap >= min_score_gap if min_score_gap > 0 else np.ones(size, dtype=bool)


def items_of(columns: Mapping[str, Any], ids: Sequence[str], min_score_gap: float) -> dict[str, dict[str, float]]:
    """Whether each pair is ranked right (1 or 0), under each accuracy; pairs of one prompt as parts of its first.

    ``ids``: of the pairs, equal for all models.
    """
    first: dict[Hashable, str] = {}
    names = parted([first.setdefault(prompt, own) for prompt, own in zip(columns["prompt_ids"], ids, strict=True)], ids)
    _, ranked = gaps_of(columns, min_score_gap)
    flipped = np.array(columns["flipped"], dtype=bool)
    items: dict[str, dict[str, float]] = {}
    for name, (chosen, rejected) in rewards_of(columns).items():
        right = (chosen > rejected).astype(np.float64)
        for part, keep in (("", ranked), ("_clean", ranked & ~flipped), ("_flipped", ranked & flipped)):
            if part and not (flipped & ranked).any():
                continue
            places = np.flatnonzero(keep)
            items[f"accuracy/{name}{part}"] = {names[place]: float(right[place]) for place in places}
    return {metric: values for metric, values in items.items() if values}


def rewards_of(columns: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The rewards that accuracies are of, (chosen, rejected), by the metric's name."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items() if name in NUMBERS}
    found: dict[str, tuple[Any, Any]] = {}
    if "chosen_reward" in arrays:
        found["reward"] = arrays["chosen_reward"], arrays["rejected_reward"]
    if "chosen_sum" in arrays:
        chosen, rejected = arrays["chosen_sum"], arrays["rejected_sum"]
        tokens = [np.maximum(arrays[f"{side}_tokens"], 1.0) for side in ("chosen", "rejected")]
        found |= {"average": (chosen / tokens[0], rejected / tokens[1]), "sum": (chosen, rejected)}
        if "reference_chosen_sum" in arrays:
            found["reference"] = (
                chosen - arrays["reference_chosen_sum"],
                rejected - arrays["reference_rejected_sum"],
            )
    return found


def notes_of(counts: Mapping[str, int]) -> list[str]:
    """What was left out, in words."""
    said = {
        "duplicates": "rows of an id that was there already: the first counts",
        "not_finite": "rows without a finite number in every column that the others have: left out",
        "below_gap": "pairs without scores that differ by min_score_gap: left out",
    }
    notes = [f"{counts[name]} {text}" for name, text in said.items() if counts.get(name)]
    ties = {name.removeprefix("ties_"): count for name, count in counts.items() if name.startswith("ties_") and count}
    if ties:
        notes.append(f"tied pairs count as wrong ({', '.join(f'{count} by {name}' for name, count in ties.items())})")
    return notes
