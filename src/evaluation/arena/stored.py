"""Scoring judgments and battles that are stored already: no checkpoint, no judge, no network, no record.

Judgments (``model_judgment/<judge>/<model>.jsonl``) are read from the judge's texts, by the rules chosen; the label
that stands beside a text is only compared. Battles (``arena_hard_battles.jsonl``) are what show_result.py of 2024
made of judgments: it left out games without a verdict and wrote ``>>`` three times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from src.data.pairs import optional_text, require, text_field
from src.data.sources.files import existing, located
from src.errors import Problems, UserError
from src.evaluation.arena.files import question_id, read_answers, read_questions, refuse_other_category
from src.evaluation.arena.scores import Duel, ModelDuels, score
from src.evaluation.arena.verdicts import ABSENT, CONTRADICTORY, NO_LABEL, RULES, STRONG, UNKNOWN, Rules, Verdict
from src.evaluation.finish import ModelScores
from src.evaluation.stored import files_given, refuse_second_judge, stored_rows

if TYPE_CHECKING:
    from src.benchmark_schema import ArenaHardConfig

BASELINE = "gpt-4-0314"
OFFICIAL_QUESTIONS = 500
UNREAD = (
    *("checkpoint", "outputs", "template", "dtype", "max_items"),
    *("decoding.temperature", "decoding.top_p", "decoding.max_new_tokens"),
)
"""Keys, null unless they are given, that stored judgments have no use for."""

WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
"""Points of A by ``winner``."""

GAMES = ((0.0,), (0.0,) * STRONG, (0.5,), (1.0,), (1.0,) * STRONG)
TWO_GAMES = [sorted(one + other) for one, other in combinations_with_replacement(GAMES, 2)]
"""The model's points that one game can come to (an odd number of battles), and two (an even number), ascending."""


@dataclass(frozen=True)
class Judgment:
    """Both games of a model on a question, game 1 (baseline shown as A) first; ``relabelled``: how many stored labels
    differ from what the rules read in the text."""

    question: str
    verdicts: tuple[Verdict, Verdict]
    relabelled: int = 0

    def duel(self, rules: Rules) -> Duel:
        """What it comes to for the model."""
        first, second = (rules.points(one, swapped=game == 1) for game, one in enumerate(self.verdicts))
        return Duel(self.question, first + second, bool(first) and bool(second))


@dataclass
class Judgments:
    """The judgments of one model, in the order of the files."""

    model: str
    judge: str | None
    rows: list[Judgment] = field(default_factory=list)


def duels_of_judgments(found: Judgments, rules: Rules, duplicates: str, questions: Sequence[str] | None) -> ModelDuels:
    """What a model's judgments come to. Rules, each counted:

    * a question judged again: ``duplicates`` last (the last judgment counts) or all (each, as in the owners' scripts);
    * a question that is none of ``questions``: left out; one of them that is not judged: missing;
    * a game without a verdict: no label, contradictory labels (v0.1), a label that is no verdict, no judgment.
    """
    rows, counts = found.rows, Counter[str]()
    if questions is not None:
        known = set(questions)
        counts["unknown_questions"] = sum(1 for row in rows if row.question not in known)
        rows = [row for row in rows if row.question in known]
    times = Counter(row.question for row in rows)
    counts["duplicate_judgments"] = len(rows) - len(times)
    if duplicates == "last":
        rows = list({row.question: row for row in rows}.values())
    problems = Counter(verdict.problem for row in rows for verdict in row.verdicts)
    counts["unparsable"] = problems[NO_LABEL] + problems[CONTRADICTORY] + problems[UNKNOWN]
    counts["contradictory"], counts["unknown_label"] = problems[CONTRADICTORY], problems[UNKNOWN]
    counts["missing_games"] = problems[ABSENT]
    counts["relabelled"] = sum(row.relabelled for row in rows)
    counts["missing_questions"] = missing_questions(times, questions)
    notes = notes_of(counts, "judgments", rules.name, duplicates)
    return ModelDuels(found.model, found.judge, tuple(row.duel(rules) for row in rows), counts, notes)


def missing_questions(seen: Iterable[str], questions: Sequence[str] | None) -> int:
    """How many of ``questions`` (of the 500 where they are not given) have no row."""
    ids = set(seen)
    return max(0, OFFICIAL_QUESTIONS - len(ids)) if questions is None else len(set(questions) - ids)


def notes_of(counts: Mapping[str, int], rows: str, rules: str = "", duplicates: str = "all") -> tuple[str, ...]:
    """What a reader of the score must know of the files, as sentences."""
    how = "the last judgment of each counts" if duplicates == "last" else "every judgment counts"
    said = {
        "missing_questions": "{} questions have no row: not to be compared with scores over all of them",
        "unknown_questions": f"{{}} {rows} are of questions that questions= does not have; they are left out",
        "duplicate_judgments": f"{{}} judgments are of a question that was judged already; {how}",
        "relabelled": f"{{}} stored labels are not what rules {rules} read in the judge's text, which counts",
        "irregular_questions": "{} questions have battles that no two games come to (judged twice?); all of them count",
    }
    return tuple(text.format(counts[name]) for name, text in said.items() if counts.get(name))


def read_judgments(files: Sequence[str], rules: Rules, baseline: str) -> list[Judgments]:
    """Judgments of pairs, model by model in the order in which they first occur.

    Raises ``UserError`` with file and line for a line that is none, another baseline or category, and for a second
    judge: scores by different judges cannot stand side by side.
    """
    found: dict[str, Judgments] = {}
    judges: dict[str | None, None] = {}
    for file in files:
        for path, line, record in stored_rows(file, "judgments"):
            with located(Path(path), line):
                refuse_other_category(record)
                if (other := optional_text(record, "baseline")) not in (None, baseline):
                    raise UserError(f"judged against {other}, not {baseline}; write baseline={other}")
                model, judge = text_field(record, "model"), optional_text(record, "judge")
                refuse_second_judge(judges, judge)
                judgment = judgment_of(record, rules)
            found.setdefault(model, Judgments(model, judge)).rows.append(judgment)
    return list(found.values())


def judgment_of(record: Mapping[str, Any], rules: Rules) -> Judgment:
    """One line of a judgment file. A game that is null or not there has no judgment."""
    games = require(record, "games")
    if not isinstance(games, list) or len(games) > 2:
        raise UserError(f"field 'games' must be a list of two games, not {games!r:.60}")
    read = [verdict_of(game, rules) for game in [*games, None, None][:2]]
    return Judgment(question_id(record), (read[0][0], read[1][0]), sum(differs for _, differs in read))


def verdict_of(game: Any, rules: Rules) -> tuple[Verdict, bool]:
    """A game's verdict, and whether its stored label is another. Without the judge's text the stored label counts."""
    if game is None:
        return Verdict(None, ABSENT), False
    if not isinstance(game, Mapping):
        raise UserError(f"each of 'games' must be an object, not {game!r:.40}")
    judgment, stored = game.get("judgment"), optional_text(game, "score")
    text = optional_text(judgment, "answer") if isinstance(judgment, Mapping) else optional_text(game, "judgment")
    if text is None:
        return (rules.known([stored]), False) if stored is not None else (Verdict(None, ABSENT), False)
    verdict = rules.read(text)
    return verdict, "score" in game and stored != verdict.label


def read_battles(files: Sequence[str], baseline: str, questions: Sequence[str] | None) -> list[ModelDuels]:
    """Battles, model by model in the order in which they first occur.

    A battles file does not say which game a row is of, so every row counts, as the owners' script counts it. A question
    with as many rows as one game can make had one verdict.
    Raises ``UserError`` with file and line for a row that is no battle with the baseline, and for a model in two files.
    """
    found: dict[str, dict[str, list[float]]] = {}
    origin: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    known = None if questions is None else set(questions)
    for file in files:
        for path, line, record in stored_rows(file, "battles"):
            with located(Path(path), line):
                model, question, points = battle_of(record, baseline)
                if origin.setdefault(model, path) != path:
                    raise UserError(f"{model} is in {origin[model]} too, so its battles would count twice; give one")
            rows = found.setdefault(model, {})
            if known is not None and question not in known:
                unknown[model] += 1
            else:
                rows.setdefault(question, []).append(points)
    return [duels_of_battles(model, rows, unknown[model], questions) for model, rows in found.items()]


def battle_of(record: Mapping[str, Any], baseline: str) -> tuple[str, str, float]:
    """(model, question, the model's points) of one row."""
    a, b, winner = (text_field(record, name) for name in ("model_a", "model_b", "winner"))
    if (a == baseline) == (b == baseline):
        raise UserError(f"{a} against {b} is no battle with {baseline} alone; name the baseline: baseline=NAME")
    if winner not in WINNERS:
        raise UserError(f"winner '{winner}' is not known; it must be one of: {', '.join(WINNERS)}")
    points = WINNERS[winner]
    return (b, question_id(record), 1.0 - points) if a == baseline else (a, question_id(record), points)


def duels_of_battles(
    model: str, rows: Mapping[str, Sequence[float]], unknown: int, questions: Sequence[str] | None
) -> ModelDuels:
    """What a model's battles come to."""
    found = [(question, tuple(points)) for question, points in rows.items()]
    counts = {
        "unknown_questions": unknown,
        "irregular_questions": sum(1 for _, points in found if points not in GAMES and sorted(points) not in TWO_GAMES),
        "missing_questions": missing_questions(rows, questions),
    }
    duels = tuple(Duel(question, points, points not in GAMES) for question, points in found)
    return ModelDuels(model, None, duels, counts, notes_of(counts, "battles"))


def stored_scores(config: ArenaHardConfig) -> list[ModelScores]:
    """The scores of every model in the files of ``config.judgments`` or ``config.battles``, in their order."""
    refuse_unread(config)
    rules, baseline = RULES[config.rules], baseline_of(config)
    questions = None
    if config.questions is not None:
        questions = [one.id for one in read_questions(existing(config.questions, "questions"))]
    if config.battles is not None:
        models = read_battles(files_given(config.battles, "battles"), baseline, questions)
    else:
        found = read_judgments(files_given(config.judgments, "judgments"), rules, baseline)
        models = [duels_of_judgments(one, rules, config.duplicates, questions) for one in found]
    scores = score(models, rules, config.rounds, config.seed, baseline)
    return [ModelScores(one.model, one.judge, scored) for one, scored in zip(models, scores, strict=True)]


def baseline_of(config: ArenaHardConfig) -> str:
    """The name of the model compared with: given, that of ``baseline_answers``, or the official one."""
    if config.baseline_answers is None:
        return config.baseline or BASELINE
    return same_baseline(config.baseline, *read_answers(existing(config.baseline_answers, "baseline_answers")))


def same_baseline(wanted: str | None, found: str, answers: Mapping[str, str]) -> str:
    """``found``, whose ``answers`` these are; raises ``UserError`` where another was wanted."""
    if wanted not in (None, found):
        raise UserError(
            f"baseline={wanted}, but baseline_answers holds {len(answers)} answers of {found}; give those of {wanted}, "
            "or leave baseline out"
        )
    return found


def refuse_unread(config: ArenaHardConfig) -> None:
    """Raise ``Problems`` for keys that would not be read."""
    key = "judgments" if config.judgments is not None else "battles"
    problems = []
    if config.judgments is not None and config.battles is not None:
        problems.append("judgments= and battles= are given; score one of the two")
    if config.stage != "score":
        problems.append(f"{key}= is for stage=score, not stage={config.stage}; write stage=score, or leave it out")
    if config.benchmark != "official":
        problems.append(f"benchmark={config.benchmark} would not be read where stored {key} are scored; leave it out")
    if config.dry_run:
        problems.append(f"dry_run=true has nothing to tell where stored {key} are scored; leave it out")
    problems += [
        f"{name}={value} would not be read where stored {key} are scored; leave it out"
        for name in UNREAD
        if (value := OmegaConf.select(cast(DictConfig, config), name)) is not None
    ]
    if problems:
        raise Problems(problems)
