"""A model's scores from its judgments, computed by the alpaca-eval package, and the rules for what is not there.

* All questions once, in any order: they are put into the baseline's order, since the package's length-controlled win
  rate looks an instruction's difficulty up by the number of the row.
* A question twice: refused, whatever the judgments say.
* Questions missing: refused, but for the models of ``PUBLISHED_ROWS`` (if the file has just as many preferences), and
  on demand (``missing_rows=as_published``). What is there is then scored the leaderboard's way, row i with the
  difficulty of instruction i.
* Preference 0 is a tie (1.5). None, NaN and numbers outside [1, 2] are dropped from both win rates, and counted.
  None of all left is an error.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.data.sources.files import existing
from src.errors import UserError
from src.evaluation.alpaca.annotations import Annotations, Row
from src.evaluation.alpaca.linear import linear_values
from src.evaluation.alpaca.package import LC, alpaca_eval, local_files, quiet
from src.evaluation.alpaca.reference import Reference, read_text
from src.evaluation.benchmark import Scores
from src.evaluation.items import finite_items
from src.evaluation.statistics import Metric, missing

LINEAR = "linear_preference"
"""Column of the values by which the length-controlled win rate is resampled."""

FOLDS = 5
"""Of the package's cross-validation."""

PUBLISHED_ROWS = {
    "Meta-Llama-3.1-8B-Instruct-Turbo": 802,
    "Qwen1.5-1.8B-Chat": 804,
    "Snorkel-Mistral-PairRM-DPO": 804,
    "TempNet-LLaMA2-Chat-70B-v0.1": 804,
    "alpaca-7b_concise": 804,
    "alpaca-7b_verbose": 802,
    "ghost-7b-alpha": 801,
    "gpt35_turbo_instruct": 804,
    "llama-2-70b-chat-hf": 804,
    "minotaur-13b": 804,
    "phi-2": 803,
    "platolm-7b": 803,
    "text_davinci_001": 803,
}
"""Models whose published scores are of fewer than 805 preferences. Source: column n_total of
weighted_alpaca_eval_gpt4_turbo_leaderboard.csv, tatsu-lab/alpaca_eval at commit cd543a14."""

COEFFICIENTS = {
    "np.tanh(std_delta_len)": "length",
    "instruction_difficulty": "difficulty",
    "not_gamed_baseline.astype(float)": "model",
}

Strengths = float | Mapping[str, float | None] | None
"""C of the regression, inverse strength of its L1 penalty: one for all, by model, or ``None`` for cross-validation."""


@dataclass(frozen=True)
class Rules:
    """How judgments are scored. ``as_published``: incomplete ones too, the leaderboard's way."""

    regularization: Strengths = None
    as_published: bool = False

    def strength(self, annotations: Annotations) -> float | None:
        """C for a model; ``None`` for cross-validation."""
        if not isinstance(self.regularization, Mapping):
            return self.regularization
        return self.regularization.get(annotations.model)


def read_regularization(value: Any) -> Strengths:
    """The key's value: null, a number, a mapping model -> number or null, or a JSON file of such a mapping."""
    if isinstance(value, str):
        path = existing(value, "regularization")
        try:
            value = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise UserError(f"regularization={path} is no readable JSON: {error}; give {{model: C}}") from error
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    for one in values:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < 1e12):
            raise UserError(
                f"regularization: C is {one!r:.40}, but must be a number above 0, or null for cross-validation; give "
                "one number, or a JSON file {model: number}"
            )
    return {str(name): one for name, one in value.items()} if isinstance(value, Mapping) else value


def scores_of(annotations: Annotations, reference: Reference, rules: Rules) -> Scores:
    """The leaderboard's columns for one model; raises ``UserError`` where the rules above refuse it."""
    rows, complete, notes = ordered(annotations, reference, rules)
    counts = counts_of(rows, len(reference.questions))
    if not counts["judged"]:
        raise UserError(
            f"{annotations.model}: none of its {len(rows)} judgments in {annotations.source} holds a preference from 1 "
            "to 2, so there is nothing to score; judge again, with a judge that gives log-probs"
        )
    frame = frame_of(rows, annotations, reference)
    lengths = all(row.length_1 is not None and row.length_2 is not None for row in rows)
    metrics, details = package_metrics(frame, reference, rules.strength(annotations), lengths)
    items = items_of(frame, rows)
    if lengths:
        average = int(sum(row.length_2 or 0 for row in rows) / len(rows))
        metrics["avg_length"] = {"value": average, "low": None, "high": None, "n": len(rows)}
    else:
        metrics["avg_length"] = missing("the file has no lengths", len(rows))
    if complete and (by_dataset := win_rates_by_dataset(rows, reference)):
        details["win_rate_by_dataset"] = by_dataset
    if isinstance(rules.regularization, Mapping) and annotations.model not in rules.regularization:
        notes.append("C by cross-validation: the mapping of regularization has no such model")
    if dropped := counts["no_preference"] + counts["invalid"]:
        notes.append(f"{dropped} of {len(rows)} judgments hold no preference from 1 to 2 and count nowhere")
    shown = {name: metrics[name] for name in LEADERBOARD if name in metrics}
    return Scores(shown, counts, tuple(notes), details, items)


LEADERBOARD = (
    *("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"),
    *("avg_length", "length_controlled_winrate", "lc_standard_error"),
)
"""The leaderboard's columns, in its order."""


def ordered(annotations: Annotations, reference: Reference, rules: Rules) -> tuple[list[Row], bool, list[str]]:
    """Rows in the baseline's order, whether all are there, and what to say if not."""
    rows = sorted(annotations.rows, key=lambda row: row.place)
    total = len(reference.questions)
    again = sorted({row.place for row, before in zip(rows[1:], rows, strict=False) if row.place == before.place})
    if again:
        question = reference.questions[again[0]].instruction
        raise UserError(
            f"{annotations.model}: {len(again)} of {total} instructions have several rows in {annotations.source}, the "
            f"first of them {question!r:.60} (number {again[0]}); leave one row of each"
        )
    if len(rows) == total:
        return rows, True, []
    if all(row.length_1 is None for row in rows):
        return rows, False, [f"{len(rows)} of {total} instructions: log-probs alone, a check of the parser"]
    preferences = sum(usable(row.preference) for row in rows)
    published = {PUBLISHED_ROWS.get(annotations.model), PUBLISHED_ROWS.get(annotations.generator)}
    if not rules.as_published and preferences not in published:
        absent = sorted(set(range(total)) - {row.place for row in rows})
        raise UserError(
            f"{annotations.model}: {len(rows)} of {total} instructions in {annotations.source} (missing: "
            f"{', '.join(map(str, absent[:5]))}{', …' if len(absent) > 5 else ''}); judge the others too, or score "
            "what is there as the leaderboard does: missing_rows=as_published"
        )
    note = (
        f"scored as published on {len(rows)} of {total} instructions; the length-controlled win rate takes the "
        "difficulty of instruction i for row i, also after the first missing one"
    )
    return rows, False, [note]


def usable(preference: float | None) -> bool:
    """Whether a win rate counts it: 0 (a tie) or from 1 to 2."""
    return preference is not None and (preference == 0 or 1 <= preference <= 2)


def counts_of(rows: Sequence[Row], total: int) -> dict[str, int]:
    """How many rows fell under which rule."""
    preferences = [row.preference for row in rows]
    return {
        "questions": total,
        "rows": len(rows),
        "missing": total - len(rows),
        "judged": sum(usable(value) for value in preferences),
        "ties": sum(value in (0, 1.5) for value in preferences),
        "no_preference": sum(value is None for value in preferences),
        "invalid": sum(value is not None and not usable(value) for value in preferences),
    }


def frame_of(rows: Sequence[Row], annotations: Annotations, reference: Reference) -> Any:
    """The rows as the package takes them; of the texts it reads the lengths alone."""
    import pandas

    preferences = [
        float("nan") if row.preference is None or not usable(row.preference) else row.preference for row in rows
    ]
    return pandas.DataFrame(
        {
            "preference": pandas.Series(preferences, dtype=float),
            "output_1": ["x" * (row.length_1 or 0) for row in rows],
            "output_2": ["x" * (row.length_2 or 0) for row in rows],
            "generator_1": reference.baseline,
            "generator_2": annotations.generator,
        }
    )


def package_metrics(
    frame: Any, reference: Reference, strength: float | None, lengths: bool
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """What ``get_length_controlled_winrate`` gives (``get_winrate`` where there are no lengths), and C with the
    coefficients."""
    alpaca_eval()
    from alpaca_eval.metrics import get_length_controlled_winrate, get_winrate
    from alpaca_eval.metrics.glm_winrate import GLM_INFO

    reason = reason_without_lc(frame, lengths, reference)
    if reason:
        with quiet():
            found = get_winrate(frame)
        details: dict[str, Any] = {}
    else:
        fit = {"n_splits": FOLDS} if strength is None else {"n_splits": 0, "C": strength}
        with local_files({"df_gamed.csv": reference.gamed}) as fits:
            found = get_length_controlled_winrate(
                frame, glm_name=LC, save_weights_dir=None, glm_info=GLM_INFO[LC] | {"kwargs": fit}
            )
        details = {"regularization": regression(fits.fits[0].model, strength) if fits.fits else None}
        if fits.fits:
            answered = frame["preference"].notna().tolist()
            frame[LINEAR] = linear_values(frame["glm_preference"].tolist(), answered, fits.fits[0])
    n = int(found["n_total"])
    metrics: dict[str, Metric] = {
        name: {"value": plain(value), "low": None, "high": None, "n": n} for name, value in found.items()
    }
    if reason:
        metrics |= {name: missing(reason, n) for name in LEADERBOARD[-2:]}
    return metrics, details


def items_of(frame: Any, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """In percent by number of the instruction: the preference (a tie is 50), and the part in the length-controlled win
    rate where there is one."""
    ids = [f"{row.place:03d}" for row in rows]
    preferences = [1.5 if value == 0 else value for value in frame["preference"].tolist()]
    items = {"win_rate": finite_items(ids, [100 * (value - 1) for value in preferences])}
    if LINEAR in frame:
        items["length_controlled_winrate"] = finite_items(ids, [100 * value for value in frame[LINEAR].tolist()])
    return items


def reason_without_lc(frame: Any, lengths: bool, reference: Reference) -> str:
    """Why there is no length-controlled win rate ("" where there is one)."""
    if not lengths:
        return "the file has no lengths"
    if not reference.gamed:
        return "df_gamed.csv is not at hand; give it as gamed_annotations=FILE"
    if frame["generator_1"].iloc[0] == frame["generator_2"].iloc[0]:
        return ""
    if len(frame) < 2 * FOLDS:
        return f"{len(frame)} instructions are too few for the regression"
    if (frame["output_1"].str.len() - frame["output_2"].str.len()).std() == 0:
        return "all lengths differ from the baseline's by the same, so length cannot be controlled for"
    return ""


def regression(model: Any, strength: float | None) -> dict[str, Any]:
    """C and the coefficients of a fitted regression."""
    names = [str(name) for name in model.feature_names_in_]
    coefficients = {
        COEFFICIENTS.get(name, name): float(value) for name, value in zip(names, model.coef_[0], strict=True)
    }
    chosen = float(model.C_[0]) if strength is None else float(strength)
    return {"C": chosen, "by": "cross-validation" if strength is None else "given", "coefficients": coefficients}


def win_rates_by_dataset(rows: Sequence[Row], reference: Reference) -> dict[str, dict[str, float | int | None]]:
    """Win rate, standard error and count for each collection the questions are from ({} where that is not said)."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if usable(row.preference) and (name := reference.questions[row.place].dataset):
            groups.setdefault(name, []).append(row.preference or 1.5)
    found: dict[str, dict[str, float | int | None]] = {}
    for name, values in sorted(groups.items()):
        error = 100 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        found[name] = {"win_rate": 100 * (statistics.fmean(values) - 1), "standard_error": error, "n": len(values)}
    return found


def plain(value: Any) -> float | int | None:
    """A number of numpy's as Python's own; ``None`` for NaN."""
    number = value.item() if hasattr(value, "item") else value
    return None if number != number else number
