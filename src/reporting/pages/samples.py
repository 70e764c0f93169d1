"""Samples behind a record: prompt, the model's answer beside the other one, and what the judge said of it.

They are read from where the record says that its answers and judgments are kept. What is absent or damaged becomes a
note: a record is complete without its samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.evaluation.arena.verdicts import RULES
from src.evaluation.harness.samples import Row, is_choice, records_of, row_of
from src.evaluation.mtbench.ratings import parse_rating
from src.evaluation.records import Record

SHOWN = 20
"""Samples of one record on a page."""

READ = 2000
"""Rows of one file that are looked at."""

LONGEST = 4000
"""Characters of one text on a page."""

WON, LOST, TIED, UNREAD = "won", "lost", "tied", "no verdict"
RIGHT, WRONG, GRADED = "right", "wrong", "graded"


@dataclass(frozen=True, slots=True)
class Text:
    """A text and who it is of."""

    title: str
    text: str

    @property
    def shown(self) -> str:
        """As far as it fits on a page."""
        return self.text[:LONGEST]

    @property
    def rest(self) -> int:
        """Characters that are not shown."""
        return max(0, len(self.text) - LONGEST)


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. ``answers``: the model's first; ``verdicts``: in the judge's words; ``outcome``: in a word, as the
    model sees it; ``score``: the same as a number in words; ``rank``: by which the worst and the best are found."""

    id: str
    prompt: tuple[Text, ...]
    answers: tuple[Text, ...]
    verdicts: tuple[Text, ...]
    outcome: str
    score: str
    rank: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What is shown of a record. ``total``: of so many; ``notes``: what could not be read, how these were chosen."""

    shown: tuple[Sample, ...] = ()
    total: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The outcomes among those shown, each once."""
        return tuple(dict.fromkeys(sample.outcome for sample in self.shown))


def samples_of(record: Record) -> Samples:
    """Samples of a record: the worst, the best, and some from the middle."""
    reader = READERS.get(record.benchmark)
    if reader is None:
        return Samples()
    try:
        found = reader(record)
    except FileNotFoundError as error:
        return Samples(notes=(f"Not shown: {error.filename} is not on this machine.",))
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        return Samples(notes=(f"Not shown: the files behind the record cannot be read ({error}).",))
    return chosen(found)


def chosen(found: Sequence[Sample]) -> Samples:
    """At most ``SHOWN``: two fifths the worst, two fifths the best, the rest from the middle; worst first."""
    ordered = sorted(found, key=lambda sample: (sample.rank, sample.id))
    if len(ordered) <= SHOWN:
        return Samples(tuple(ordered), len(ordered))
    ends, middle = 2 * SHOWN // 5, SHOWN - 2 * (2 * SHOWN // 5)
    start = (len(ordered) - middle) // 2
    kept = [*ordered[:ends], *ordered[start : start + middle], *ordered[-ends:]]
    note = f"{SHOWN} of {len(ordered)}: the {ends} worst, {middle} from the middle and the {ends} best."
    return Samples(tuple(kept), len(ordered), (note,))


def judged_samples(record: Record) -> list[Sample]:
    """Of AlpacaEval, Arena-Hard and MT-Bench: one sample a question (and turn), with all judgments of it."""
    answers = answers_of(record)
    judgments: dict[str, list[dict[str, Any]]] = {}
    for line in shard_lines(Path(record.sources["judgments"]["path"])):
        judgments.setdefault(question_of(record.benchmark, str(line["id"])), []).append(line)
    model = record.run.method if record.run.method != "none" else record.run.model
    return [
        judged_sample(record.benchmark, model, key, lines, answers.get(key))
        for key, lines in islice(judgments.items(), READ)
    ]


def question_of(benchmark: str, request: str) -> str:
    """What the requests about one answer have in common: the item, and in MT-Bench its turn."""
    if benchmark == "arena_hard":
        return request.rpartition(":game-")[0] or request
    return request if benchmark == "mt_bench" else f"{request}:turn-1"


def answers_of(record: Record) -> dict[str, dict[str, Any]]:
    """The model's answers by item and turn (``:turn-1`` where a benchmark has turns)."""
    found = {}
    for name, source in record.sources.items():
        if name.startswith("answers"):
            for line in shard_lines(Path(source["path"])):
                turn = sum(message["role"] == "user" for message in line["prompt"])
                key = str(line["prompt_id"]) if record.benchmark == "arena_hard" else f"{line['prompt_id']}:turn-{turn}"
                found[key] = line
    return found


def shard_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a directory of shards, or of stored answers' own file, in order, at most ``READ`` of them."""
    if path.is_file():
        raise UserError(f"{path} is a file in a format of its owners")
    files = sorted((path / "shards").glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(2, "no shards", str(path))
    yield from islice((json.loads(line) for file in files for line in lines_of(file)), READ)


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a file that hold something."""
    with file.open(encoding="utf-8") as content:
        yield from (line for line in content if line.strip())


def judged_sample(
    benchmark: str, model: str, key: str, lines: Sequence[Mapping[str, Any]], answer: Mapping[str, Any] | None
) -> Sample:
    """One question with its judgments."""
    own = "" if answer is None else str(answer["response"])
    prompt = () if answer is None else tuple(Text(str(m["role"]), str(m["content"])) for m in answer["prompt"])
    answers = [Text(model, own)]
    shown = shown_in(lines[0])
    if len(shown) == 2:
        answers.append(Text("baseline", shown[1] if shown[0] == own else shown[0]))
    verdicts = tuple(Text(said_at(line, own), str(line["text"])) for line in lines)
    outcome, score, rank = VERDICTS[benchmark](lines, own)
    return Sample(key.removesuffix(":turn-1"), prompt, tuple(answers), verdicts, outcome, score, rank)


def shown_in(line: Mapping[str, Any]) -> list[str]:
    """The answers that a judgment is about, in the order in which the judge saw them; [] where that was not kept."""
    return [str(text) for text in line.get("shown") or ()]


def said_at(line: Mapping[str, Any], own: str) -> str:
    """Which of the two answers the judge saw first, where that is known."""
    shown = shown_in(line)
    judge = str(line["judge"].get("model", "judge"))
    if len(shown) != 2:
        return judge
    return f"{judge}, shown the {'model' if shown[0] == own else 'baseline'} first"


def alpaca_verdict(lines: Sequence[Mapping[str, Any]], own: str) -> tuple[str, str, float]:
    """The probability that the model's answer is the better one: p(m) or p(M) among the likeliest first tokens."""
    shown, logprobs = shown_in(lines[-1]), lines[-1].get("logprobs")
    weights = {"m": 0.0, "M": 0.0}
    for top in logprobs[0]["top_logprobs"] if logprobs else ():
        if top["token"] in weights:
            weights[top["token"]] += math.exp(top["logprob"])
    total = sum(weights.values())
    if not total or len(shown) != 2:
        return UNREAD, "", 0.5
    won = weights["m" if shown[0] == own else "M"] / total
    return named(won - 0.5), f"preferred with probability {won:.2f}", won


def arena_verdict(lines: Sequence[Mapping[str, Any]], own: str) -> tuple[str, str, float]:
    """The labels of both games, from the model's side: it is shown as B in the first and as A in the second."""
    games: dict[bool, str] = {}
    for line in lines:
        swapped = str(line["id"]).endswith(":game-2")
        games[swapped] = games.get(swapped, "") + f"\n{line['text']}"
    rules = RULES["v0.1"]
    read = {swapped: rules.read(text) for swapped, text in games.items()}
    points = [point for swapped, verdict in read.items() for point in rules.points(verdict, swapped=swapped)]
    labels = ", ".join(verdict.label or verdict.problem for verdict in read.values())
    if not points:
        return UNREAD, labels, 0.5
    mean = sum(points) / len(points)
    return named(mean - 0.5), f"{labels}: {mean:.2f} of a win", mean


def rating_verdict(lines: Sequence[Mapping[str, Any]], own: str) -> tuple[str, str, float]:
    """The rating."""
    rating = parse_rating(str(lines[-1]["text"]))
    return (UNREAD, "", 0.0) if rating is None else (GRADED, f"rated {rating:g} of 10", rating)


VERDICTS: Mapping[str, Callable[[Sequence[Mapping[str, Any]], str], tuple[str, str, float]]] = {
    "alpaca_eval": alpaca_verdict,
    "arena_hard": arena_verdict,
    "mt_bench": rating_verdict,
}


def named(difference: float) -> str:
    """A difference in a word."""
    return TIED if abs(difference) < 1e-9 else WON if difference > 0 else LOST


def harness_samples(record: Record) -> list[Sample]:
    """Of lm-eval's tasks: the request, what the model answered or found likeliest, and the right answer."""
    found = []
    for name, source in record.sources.items():
        if name.startswith("samples/"):
            rows = (row_of(line) for _, line in islice(records_of(Path(source["path"])), READ))
            found += [harness_sample(name.removeprefix("samples/"), row) for row in rows]
    return found


def harness_sample(task: str, row: Row) -> Sample:
    """One document of a task."""
    asked = str(row.arguments[0][0]) if row.arguments else json.dumps(row.doc, ensure_ascii=False)
    answer, right = (str(row.resps[0][0]) if row.resps and row.resps[0] else ""), str(row.target)
    if is_choice(row):
        options = [str(one[1]) for one in row.arguments]
        likeliest = max(range(len(options)), key=lambda place: row.resps[place][0][0])
        answer = options[likeliest]
        if isinstance(row.target, int) and 0 <= row.target < len(options):
            right = options[row.target]
    values = [value for value in row.values.values() if isinstance(value, (int, float))]
    score = float(values[0]) if values else 0.0
    written = ", ".join(f"{name} {value:g}" for name, value in row.values.items() if isinstance(value, (int, float)))
    outcome = RIGHT if score > 0 else WRONG
    texts = (Text("answer", answer), Text("right answer", right))
    return Sample(f"{task} {row.doc_id}", (Text("request", asked),), texts, (), outcome, written, score)


def reward_samples(record: Record) -> list[Sample]:
    """Of RM-Bench: the short right answer beside the long, marked-up wrong one, which is the hard comparison."""
    found = []
    for line in islice(map(json.loads, lines_of(Path(record.sources["samples"]["path"]))), READ):
        good, bad = line["score_chosen"], line["score_rejected"]
        right = sum(a is not None and b is not None and a > b for a in good for b in bad)
        gap = (good[0] if good[0] is not None else math.nan) - (bad[-1] if bad[-1] is not None else math.nan)
        prompt = line["prompt"] if isinstance(line["prompt"], list) else [{"role": "user", "content": line["prompt"]}]
        texts = (
            Text(f"right, concise: reward {good[0]:.4g}", str(line["chosen"][0])),
            Text(f"wrong, detailed: reward {bad[-1]:.4g}", str(line["rejected"][-1])),
        )
        score = f"{right} of {len(good) * len(bad)} comparisons right"
        rank = gap if math.isfinite(gap) else -math.inf
        outcome = RIGHT if gap > 0 else WRONG
        asked = tuple(Text(str(m["role"]), str(m["content"])) for m in prompt)
        found.append(Sample(str(line["id"]), asked, texts, (), outcome, score, rank))
    return found


READERS: Mapping[str, Callable[[Record], list[Sample]]] = {
    "alpaca_eval": judged_samples,
    "arena_hard": judged_samples,
    "mt_bench": judged_samples,
    "lm_harness": harness_samples,
    "rm_bench": reward_samples,
}
