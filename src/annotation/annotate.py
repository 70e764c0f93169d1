"""Scores for every response, shard by shard, and the files that training reads: all responses, and pairs of them."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from src.annotation.base import Batch, Candidates, Item, Score, ScoreBatch, Scorer, Shard, every_item
from src.annotation.inputs import Corpus
from src.annotation.pairs import write_training_files
from src.errors import UserError
from src.generation.shards import Journal, ShardedJsonl

STAGE = "annotate"
EMPTY = "empty response"
"""Why a response is not shown to any scorer: nothing can be learnt from it."""
UNKNOWN = Score(None)


@dataclass(frozen=True)
class AnnotateOptions:
    """``shard_size``: prompts a shard. ``max_unscored``: share of the responses that may stay without a score.
    ``min_gap``: smallest score difference of a pair, in the scorer's unit. ``kept``: where a scorer keeps answers."""

    shard_size: int
    max_unscored: float
    min_gap: float
    kept: Path


class Advance(Protocol):
    """Told how many responses were scored."""

    def __call__(self, responses: int) -> None: ...


@dataclass
class _Opened:
    """A scorer whose model is loaded when the first response needs it."""

    scorer: Scorer
    folder: Path
    function: ScoreBatch | None = field(default=None)

    def __call__(self, shard: Shard, batch: Batch) -> list[Score]:
        if self.function is None:
            self.function = self.scorer.open(self.folder)
        scores = self.function(shard, batch)
        for (prompt, place), score in zip(batch, scores, strict=True):
            if score.value is not None and not math.isfinite(score.value):
                raise UserError(
                    f"the scorer gives {score.value} for response {place} to prompt '{shard[prompt].id}', which orders "
                    "nothing; use scorer.dtype=float32, or another model"
                )
        return scores


def annotate(corpus: Corpus, scorer: Scorer, directory: Path, options: AnnotateOptions) -> dict[str, Any]:
    """Score what is not scored yet and write everything into ``directory``; returns the manifest of the pairs.

    Raises ``UserError`` when the directory holds something else, more than ``max_unscored`` of the responses have no
    score, or no pair comes of it.
    """
    store = ShardedJsonl(directory, options.shard_size)
    identity = {"inputs": [entry["hash"] for entry in corpus.inputs], "scorer": scorer.describe()}
    score = _Opened(scorer, options.kept)
    with store.claimed(identity):
        total = sum(len(item.responses) for item in corpus.candidates)
        with progress(total) as advance:
            for shard in store.pending(corpus.candidates):
                started = time.monotonic()
                with store.journal(shard.index) as journal:
                    scores = scored(shard.items, scorer.batches(shard.items), score, journal, advance)
                    records = [record_of(place, item, scores) for place, item in enumerate(shard.items)]
                    seconds = time.monotonic() - started
                    store.write(shard.index, records, seconds)
                if not sys.stderr.isatty():
                    shards = -(-len(corpus.candidates) // options.shard_size)
                    print(
                        f"  shard {shard.index + 1}/{shards}: {len(scores)} responses, {seconds:.1f} s", file=sys.stderr
                    )
        counts = counts_of(store.read())
        refuse_too_few(counts, options.max_unscored)
        manifest = store.finish(STAGE, identity, counts, chain=corpus.chain, inputs=corpus.inputs)
        return write_training_files(directory, store.read, manifest, options.min_gap)


def scored(
    shard: Shard, batches: list[Batch], score: ScoreBatch, journal: Journal, advance: Advance
) -> dict[Item, Score]:
    """Scores of a shard's responses: those that the journal has, and the others, a batch at a time."""
    found: dict[Item, Score] = {}
    for line in journal.records:
        for prompt, place, value, reason in line["scores"]:
            found[prompt, place] = Score(value, reason)
    for prompt, place in every_item(shard):
        if not shard[prompt].responses[place].text.strip():
            found[prompt, place] = Score(None, EMPTY)
    advance(len(found))
    for whole in batches:
        batch = tuple(item for item in whole if found.get(item, UNKNOWN).reason != EMPTY)
        # a batch is scored again as a whole, so that padding, and with it rounding, is that of an undisturbed run
        if all(item in found for item in batch):
            continue
        values = dict(zip(batch, score(shard, batch), strict=True))
        journal.append({"scores": [[*item, value.value, value.reason] for item, value in values.items()]})
        found |= values
        advance(len(batch))
    return found


def record_of(place: int, item: Candidates, scores: Mapping[Item, Score]) -> dict[str, Any]:
    """One prompt with its scored responses, as a line of a shard."""
    responses = []
    for number, response in enumerate(item.responses):
        score = scores[place, number]
        entry: dict[str, Any] = {"writer": response.writer, "text": response.text, "score": score.value}
        if score.value is None:
            entry["reason"] = score.reason
        responses.append(entry | dict(response.origin))
    prompt = [{"role": message.role, "content": message.content} for message in item.prompt]
    return {"prompt_id": item.id, "prompt": prompt, "responses": responses}


def counts_of(records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Prompts, responses, and the responses without a score by reason."""
    prompts = responses = 0
    unscored: Counter[str] = Counter()
    for record in records:
        prompts += 1
        responses += len(record["responses"])
        unscored.update(entry["reason"] for entry in record["responses"] if entry["score"] is None)
    return {"prompts": prompts, "responses": responses, "unscored": dict(sorted(unscored.items()))}


def refuse_too_few(counts: Mapping[str, Any], limit: float) -> None:
    """Raise ``UserError`` when more than a share ``limit`` of the responses has no score, the empty ones apart."""
    failed = {reason: count for reason, count in counts["unscored"].items() if reason != EMPTY}
    without, responses = sum(failed.values()), counts["responses"] - counts["unscored"].get(EMPTY, 0)
    if without > limit * responses:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in failed.items())
        raise UserError(
            f"{without} of {responses} responses have no score ({reasons}), more than max_unscored={limit:g} "
            "allows: the pairs would be of what happens to be easy to score; correct the scorer, or raise max_unscored"
        )


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """A bar over responses on a terminal; elsewhere there is a line a shard."""
    if not sys.stderr.isatty():
        yield lambda responses: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda responses: bar.update(task, advance=responses)


def lines_of(manifest: Mapping[str, Any]) -> str:
    """What became of everything, for the terminal."""
    counts = manifest["counts"]
    parts = [f"{counts['pairs']} pairs of {counts['prompts']} prompts and {counts['responses']} responses"]
    for reason, count in chain(counts["unscored"].items(), counts["skipped"].items()):
        parts.append(f"  {count} × {reason}")
    return "\n".join(parts)
