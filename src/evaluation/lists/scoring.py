"""From rewarded responses to scores: which prompts count, and the means over them (docs/evaluation/listwise.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.errors import UserError
from src.evaluation.benchmark import Scores
from src.evaluation.items import finite_items, ratio_items
from src.evaluation.lists.bootstrap import Ratio, estimates, mean_of, ratio_of
from src.evaluation.lists.metrics import Floats, Gains, best_of, kendall, ndcg, random_ndcg, spearman

ALL = "all"
Size = int | str
"""A number of responses, or ``all`` of a prompt's."""


@dataclass(frozen=True)
class RewardedResponses:
    """The responses to one prompt: ground-truth scores and rewards, [m] each; NaN where there is none."""

    prompt_id: str
    scores: tuple[float, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class ListRules:
    """What is computed. ``k``: cut-offs of NDCG. ``n``: sizes of the draws of best-of-n; ``None`` takes 1, 2, 4, 8, …
    and all, ``every`` each number from 1 on."""

    k: tuple[Size, ...] = (1, 3, 5, ALL)
    n: tuple[Size, ...] | str | None = None
    gains: Gains = field(default_factory=Gains)

    def __post_init__(self) -> None:
        for name, sizes in (("k", self.k), ("n", self.n)):
            if isinstance(sizes, str):
                if sizes != "every":
                    raise UserError(f"{name}={sizes} is not known; give a list such as [1,4,all], every or null")
            elif sizes is not None:
                refuse_sizes(name, sizes)

    def draws(self, largest: int) -> list[Size]:
        """The sizes of best-of-n where the longest list has ``largest`` responses."""
        if self.n == "every":
            return [*range(1, largest + 1), ALL]
        if self.n is None:
            return [*(2**power for power in range(largest.bit_length()) if 2**power < largest), ALL]
        return list(self.n)


def refuse_sizes(name: str, sizes: Sequence[Size]) -> None:
    """Raise ``UserError`` for what is no number of responses, or comes twice."""
    for size in sizes:
        if size != ALL and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UserError(f"{name} holds {size!r}, which is no number of responses; give numbers from 1 on, or all")
    if not sizes or len(set(sizes)) < len(sizes):
        raise UserError(f"{name}={list(sizes)} must hold at least one number, each once; give a list such as [1,4,all]")


@dataclass(frozen=True)
class Usable:
    """Prompts that count, as (scores, rewards), with their ids, and how many fell under which rule."""

    lists: tuple[tuple[Floats, Floats], ...]
    counts: Mapping[str, int]
    ids: tuple[str, ...] = ()


def usable(items: Iterable[RewardedResponses]) -> Usable:
    """Apply the rules: the first line of a prompt counts; a response without a finite score or reward is left out; so
    is a prompt with fewer than two responses left, or all of whose scores are equal."""
    counts = dict.fromkeys(
        ("prompts", "ranked", "responses", "duplicates", "unscored", "not_finite", "single", "all_tied"), 0
    )
    counts |= {"constant_rewards": 0, "tied_rewards": 0}
    seen, lists, ids = set[str](), [], list[str]()
    for item in items:
        if item.prompt_id in seen:
            counts["duplicates"] += 1
            continue
        seen.add(item.prompt_id)
        counts["prompts"] += 1
        scores, rewards = np.array(item.scores, dtype=np.float64), np.array(item.rewards, dtype=np.float64)
        scored, finite = np.isfinite(scores), np.isfinite(rewards)
        counts["unscored"] += int((~scored).sum())
        counts["not_finite"] += int((scored & ~finite).sum())
        scores, rewards = scores[scored & finite], rewards[scored & finite]
        if len(scores) < 2:
            counts["single"] += 1
        elif np.ptp(scores) == 0:
            counts["all_tied"] += 1
        else:
            distinct = len(np.unique(rewards))
            counts["constant_rewards"] += distinct == 1
            counts["tied_rewards"] += 1 < distinct < len(rewards)
            counts["ranked"] += 1
            counts["responses"] += len(scores)
            lists.append((scores, rewards))
            ids.append(item.prompt_id)
    return Usable(tuple(lists), counts, tuple(ids))


def score(items: Iterable[RewardedResponses], rules: ListRules) -> Scores:
    """All metrics over the prompts that count (names in docs/evaluation/listwise.md).

    Raises ``UserError`` when no prompt counts, or a score lies below the gains' zero.
    """
    found = usable(items)
    if not found.lists:
        told = ", ".join(f"{name}: {count}" for name, count in found.counts.items() if count)
        raise UserError(
            f"no prompt can be ranked ({told}): it takes two responses with a score and a finite reward, and scores "
            "that differ; give responses of several scores to each prompt"
        )
    ratios = order_ratios(found.lists, rules)
    draws = rules.draws(max(len(scores) for scores, _ in found.lists))
    curves = best_of_ratios(found.lists, draws)
    metrics = estimates(ratios | curves)
    details: dict[str, Any] = {
        "best_of": {
            str(size): {
                part: metrics[name]["value"]
                for part in ("score", "random", "best", "gain")
                if (name := best_name(size, part)) in metrics
            }
            for size in draws
        }
    }
    of_prompts = {name: items_of(ratio, found.ids) for name, ratio in (ratios | curves).items()}
    values = {name: own for name, own in of_prompts.items() if own}
    return Scores(metrics, found.counts, tuple(notes_of(found.counts)), details, values)


def items_of(ratio: Ratio, ids: Sequence[str]) -> dict[str, float]:
    """The value of each prompt that counts; linearized where the metric is a ratio of means."""
    counted = ratio.counted
    values = ratio_items(ratio.above[counted], ratio.below[counted])
    return finite_items([name for name, own in zip(ids, counted, strict=True) if own], values)


def order_ratios(lists: Sequence[tuple[Floats, Floats]], rules: ListRules) -> dict[str, Ratio]:
    """NDCG@k, beside what a random order has, and the two correlations."""
    ratios: dict[str, Ratio] = {}
    gains = [rules.gains(scores) for scores, _ in lists]
    for size in rules.k:
        k = None if isinstance(size, str) else size
        values = [ndcg(rewards, gain, k) for (_, rewards), gain in zip(lists, gains, strict=True)]
        chance = [random_ndcg(gain, k) for gain in gains]
        reason = "no prompt has a gain"
        ratios[f"ndcg@{size}"] = mean_of(np.array(values), reason)
        ratios[f"ndcg@{size}/random"] = mean_of(np.array(chance), reason)
    for name, function in (("kendall_tau_b", kendall), ("spearman", spearman)):
        values = [function(rewards, scores) for scores, rewards in lists]
        ratios[name] = mean_of(np.array(values), "undefined for these scores")
    return ratios


def best_of_ratios(lists: Sequence[tuple[Floats, Floats]], draws: Sequence[Size]) -> dict[str, Ratio]:
    """Best-of-n by the reward, at random, and by the score itself; and the share of the way between the latter two.

    Prompts with fewer than n responses do not count for that n.
    """
    columns = {size: np.full((len(lists), 3), np.nan) for size in draws}
    for place, (scores, rewards) in enumerate(lists):
        m, mean = len(scores), float(scores.mean())
        sizes = [m if isinstance(size, str) else size for size in draws]
        picked, best = best_of(rewards, scores, sizes), best_of(scores, scores, sizes)
        for index, size in enumerate(draws):
            if sizes[index] <= m:
                columns[size][place] = picked[index], mean, best[index]
    ratios: dict[str, Ratio] = {}
    for size, column in columns.items():
        none = f"no prompt has {size} responses"
        picked, mean_scores, best = column.T
        for part, values in (("score", picked), ("random", mean_scores), ("best", best)):
            ratios[best_name(size, part)] = mean_of(values, none)
        if size != 1:  # one response leaves nothing to choose
            ratios[best_name(size, "gain")] = ratio_of(picked - mean_scores, best - mean_scores, none)
    return ratios


def best_name(size: Size, part: str) -> str:
    """``best_of_4`` and ``best_of_4/random``, ``/best``, ``/gain``."""
    return f"best_of_{size}" if part == "score" else f"best_of_{size}/{part}"


def notes_of(counts: Mapping[str, int]) -> Iterable[str]:
    """What was left out, in words."""
    said = {
        "duplicates": "lines of a prompt that was there already: the first counts",
        "unscored": "responses without a finite score: left out",
        "not_finite": "responses without a finite reward: left out",
        "single": "prompts with fewer than two usable responses: left out",
        "all_tied": "prompts all of whose scores are equal: left out",
        "constant_rewards": "prompts all of whose rewards are equal: correlations 0, every order alike",
    }
    return [f"{counts[name]} {text}" for name, text in said.items() if counts[name]]
