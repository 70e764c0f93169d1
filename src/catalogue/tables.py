"""The tables beside the vectors: supervised losses, ranking metrics, γ-PO's solver, AlphaPO on tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.catalogue.measure import Arithmetic, Batch, Figures, inputs_of, loss_of, plain
from src.catalogue.routes import ROUTES, TABLES, Route, settings
from src.catalogue.rows import objective_of
from src.evaluation.statistics import pairwise_accuracy, ranking_metrics
from src.objective.dynamic import dynamic_margins
from src.objective.types import PairInputs, PairLogProbs, ResponseLogProbs

Entry = Mapping[str, Any]
Batches = Mapping[str, Batch]
Figured = tuple[Figures, Callable[[Arithmetic], Figures]]
"""What the file says of a row of a table, and how we find the same."""

FIXED_POINT_UPDATES = 2000
"""Updates after which mirror descent moves by less than rounding: each takes off a share min(0.5, tau) at least."""


def losses(values: Mapping[str, Any]) -> Figures:
    return {"loss": as_lists(values), "gradient": {}, "others": {}}


def others(values: Mapping[str, Any]) -> Figures:
    return {"loss": {}, "gradient": {}, "others": as_lists(values)}


def as_lists(values: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: plain(value) if isinstance(value, list) else [plain(value)] for name, value in values.items()}


# --- supervised fine-tuning -------------------------------------------------------------------------------------------


def supervised(entry: Entry, batches: Batches) -> Figured:
    """Loss of the chosen responses of a batch under each normalization."""
    named = {key: value for key, value in entry.items() if key != "batch"}

    def measure(arithmetic: Arithmetic) -> Figures:
        found = {}
        for name in named:
            method, values = settings(TABLES["sft"], {"normalization": name})
            objective = objective_of(method, values)
            pairs = inputs_of(batches[entry["batch"]], arithmetic, objective.needs, None)
            found[name] = loss_of(objective, pairs, objective.initial_state())[0].item()
        return losses(found)

    return losses(named), measure


# --- metrics ----------------------------------------------------------------------------------------------------------

METRICS = {
    "pwa_strict": "accuracy/average",
    "ranking_accuracy_sum_logp": "accuracy/sum",
    "dpo_reward_accuracy": "accuracy/reference",
    "spearman_eq10_on_average_ranks": "spearman/average_eq10",
    "spearman_pearson_on_average_ranks": "spearman/average",
}
"""Names in the file and in a ranking record."""


def ranked(entry: Entry, batches: Batches) -> Figured:
    """Ranking metrics of the pairs of a batch whose scores are ``min_delta`` apart."""
    batch = batches[entry["batch"]]
    named = {key: value for key, value in entry.items() if key not in ("batch", "min_delta")}

    def measure(arithmetic: Arithmetic) -> Figures:
        metrics = ranking_metrics(
            chosen_sum=batch["s_w"],
            rejected_sum=batch["s_l"],
            chosen_tokens=batch["n_w"],
            rejected_tokens=batch["n_l"],
            reference_chosen_sum=batch["q_w"],
            reference_rejected_sum=batch["q_l"],
            chosen_scores=batch["c_w"],
            rejected_scores=batch["c_l"],
            min_score_gap=entry["min_delta"],
        )
        found: dict[str, Any] = {name: metrics[ours]["value"] for name, ours in METRICS.items()}
        found["n_pairs"] = metrics["accuracy/average"]["n"]
        found["pwa_ties_half"] = accuracy_with_half_ties(batch, entry["min_delta"])
        return others({name: found.get(name) for name in named})

    return others(named), measure


def accuracy_with_half_ties(batch: Batch, smallest: float) -> float | None:
    """Pairwise accuracy in which a tie counts half: the mean of it with every tie wrong and with every tie right."""
    kept = [i for i in range(len(batch["s_w"])) if abs(batch["c_w"][i] - batch["c_l"][i]) >= smallest]
    chosen, rejected = ([batch[s][i] / max(batch[n][i], 1) for i in kept] for s, n in (("s_w", "n_w"), ("s_l", "n_l")))
    right, wrong = pairwise_accuracy(chosen, rejected), pairwise_accuracy(rejected, chosen)
    return None if right is None or wrong is None else (right + 1 - wrong) / 2


# --- the solver of γ-PO -----------------------------------------------------------------------------------------------


def solved(entry: Entry, batches: Batches) -> Figured:
    """γ of given reward margins after 19 and 20 updates and at the fixed point."""
    after = {"gamma_19": 19, "gamma_20": 20, "gamma_fixed_point": FIXED_POINT_UPDATES}
    named = {name: entry[name] for name in (*after, "mean_gamma") if name in entry}

    def measure(arithmetic: Arithmetic) -> Figures:
        margins = arithmetic.tensor(entry["reward_margin"])
        found: dict[str, list[float]] = {}
        for name in named:
            gamma = dynamic_margins(margins, entry["gamma0"], entry["tau"], after.get(name, 20), entry["eta"])
            found[name] = [gamma.mean().item()] if name == "mean_gamma" else gamma.tolist()
        return others(found)

    return others(named), measure


# --- AlphaPO on tokens ------------------------------------------------------------------------------------------------


def shaped(entry: Entry, batches: Batches) -> Figured:
    """Rewards without beta and losses of both forms of AlphaPO, from log-probs of single tokens."""
    forms = {"": ROUTES["alphapo_token"], "_seq_form": TABLES["alphapo_sequence"]}
    config = {key: entry[key] for key in ("beta", "alpha", "gamma")}
    names = {suffix: [f"r_w{suffix}", f"r_l{suffix}", f"loss{suffix}"] for suffix in forms}
    said = losses({f"loss{suffix}": entry[f"loss{suffix}"] for suffix in forms})
    said["others"] = as_lists({name: entry[name] for suffix in forms for name in names[suffix][:2]})

    def measure(arithmetic: Arithmetic) -> Figures:
        found: dict[str, Any] = {"loss": {}, "gradient": {}, "others": {}}
        for suffix, route in forms.items():
            chosen, rejected, loss = shaped_form(route, config, entry["tokens"], arithmetic)
            found["others"] |= {names[suffix][0]: chosen, names[suffix][1]: rejected}
            found["loss"][names[suffix][2]] = loss
        return found

    return said, measure


def shaped_form(
    route: Route, config: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]], arithmetic: Arithmetic
) -> tuple[list[float], list[float], list[float]]:
    """Rewards divided by beta of both responses, and the loss, of each pair by itself."""
    method, values = settings(route, config)
    objective = objective_of(method, values)
    pairs = PairInputs(PairLogProbs(*(responses([row[side] for row in tokens], arithmetic) for side in ("w", "l"))))
    rewards = objective.rewards(pairs.policy, None)
    each = [loss_of(objective, pairs[index : index + 1], {})[0].item() for index in range(len(tokens))]
    return (rewards.chosen / config["beta"]).tolist(), (rewards.rejected / config["beta"]).tolist(), each


def responses(rows: Sequence[Sequence[float]], arithmetic: Arithmetic) -> ResponseLogProbs:
    """Responses from the log-probs of their tokens, padded with zeros."""
    terms: list[Tensor] = [arithmetic.tensor(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(terms, batch_first=True)
    return ResponseLogProbs(padded.sum(1), arithmetic.tensor([len(row) for row in rows]), padded)


KNOWN: Mapping[str, Callable[[Entry, Batches], Figured]] = {
    "sft": supervised,
    "metrics": ranked,
    "gamma_md": solved,
    "alphapo_gappo_token_form": shaped,
}
"""By the name of the table in the file."""

EXACT_ONLY = ("metrics",)
"""Tables that are computed in float64 whatever the model's precision."""


def rows_of(name: str, entries: Sequence[Entry], batches: Batches) -> Iterator[tuple[str, Figured | None]]:
    """Every row of a table: what it is of, and its figures; ``None`` where the file lacks its batch."""
    for position, entry in enumerate(entries, 1):
        batch = entry.get("batch")
        of = f"row {position}" + (f" (batch {batch})" if batch else "")
        yield of, KNOWN[name](entry, batches) if batch is None or batch in batches else None
