"""Several scored responses per prompt, made into pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from src.data.pairs import (
    PreferencePair,
    ScoredResponse,
    ScoredResponses,
    optional_text,
    prompt_from_json,
    require,
    score_field,
    text_field,
)
from src.data.sources.base import PairSource, Skipped
from src.data.sources.files import content_hash, existing, located, read_json_lines
from src.data.splits import digest
from src.errors import UserError

PAIRINGS = ("best_worst", "all_pairs", "random")


@dataclass(frozen=True)
class ScoredResponsesFile(PairSource):
    """Pairs from a JSON-lines file of ``{prompt_id, prompt, responses: [{writer | model, text, score}]}``.

    ``pairing``: ``best_worst`` (highest against lowest score), ``all_pairs`` (every two responses), or ``random``
    (``pairs_per_prompt`` of them, drawn without replacement by ``seed`` and prompt id, whatever the order of
    the file). ``min_gap``: smallest score difference (source's unit) of a pair; tied scores never make a pair.
    """

    path: str
    pairing: str = "best_worst"
    min_gap: float = 0.0
    pairs_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        key = "dataset.source"
        if self.pairing not in PAIRINGS:
            raise UserError(f"{key}.pairing={self.pairing} is unknown; use one of {', '.join(PAIRINGS)}")
        if not isinstance(self.min_gap, (int, float)) or not 0 <= self.min_gap < math.inf:
            raise UserError(f"{key}.min_gap={self.min_gap} must be a number from 0 on (a difference of scores)")
        count = self.pairs_per_prompt
        if self.pairing == "random" and (not isinstance(count, int) or count < 1):
            raise UserError(f"{key}.pairing=random needs {key}.pairs_per_prompt, a number from 1 on")
        if self.pairing != "random" and count is not None:
            raise UserError(
                f"{key}.pairs_per_prompt={count} has no meaning with pairing={self.pairing}; "
                "leave it null or set pairing=random"
            )

    def prompts(self) -> Iterator[ScoredResponses]:
        """All responses to each prompt; raises ``UserError`` with file and line for a bad record."""
        file = existing(self.path)
        for line, record in read_json_lines(file):
            with located(file, line):
                responses = responses_of(record)
            yield responses

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """Pairs named ``<prompt id>/<place of chosen>-<place of rejected>``."""
        for item in self.prompts():
            yield from self._pairs_of(item)

    def content(self) -> str:
        """Hash of the uncompressed file."""
        return content_hash([existing(self.path)])

    def options(self) -> dict[str, Any]:
        """Pairing, gap and, for random pairs, their number and seed."""
        chosen: dict[str, Any] = {"pairing": self.pairing, "min_gap": float(self.min_gap)}
        if self.pairing == "random":
            chosen |= {"pairs_per_prompt": self.pairs_per_prompt, "seed": self.seed}
        return chosen

    def _pairs_of(self, item: ScoredResponses) -> Iterator[PreferencePair | Skipped]:
        count = len(item.responses)
        if count < 2:
            yield Skipped(item.id, "fewer than two responses")
            return
        candidates: list[tuple[int, int]] = list(combinations(range(count), 2))
        if self.pairing == "best_worst":
            best = max(range(count), key=lambda place: _score(item.responses[place]))
            worst = min(range(count), key=lambda place: _score(item.responses[place]))
            candidates = [(best, worst)] if best != worst else [(0, 1)]
        made = []
        for first, second in candidates:
            pair = self._pair(item, first, second)
            if isinstance(pair, Skipped):
                yield pair
            else:
                made.append(pair)
        if self.pairing == "random":
            made = _draw(made, self.pairs_per_prompt or 0, digest(self.seed, item.id))
        yield from made

    def _pair(self, item: ScoredResponses, first: int, second: int) -> PreferencePair | Skipped:
        if _score(item.responses[first]) < _score(item.responses[second]):
            first, second = second, first
        chosen, rejected = item.responses[first], item.responses[second]
        identity, gap = f"{item.id}/{first}-{second}", _score(chosen) - _score(rejected)
        if gap == 0:
            return Skipped(identity, "tied scores")
        if gap < self.min_gap:
            return Skipped(identity, "score gap below min_gap")
        return PreferencePair(
            identity,
            item.prompt,
            chosen.text,
            rejected.text,
            chosen_score=chosen.score,
            rejected_score=rejected.score,
            chosen_writer=chosen.writer,
            rejected_writer=rejected.writer,
        )


def responses_of(record: Mapping[str, Any]) -> ScoredResponses:
    """All responses in one record; raises ``UserError`` for a missing or wrong field, naming the response."""
    identity = str(require(record, "prompt_id"))
    prompt = prompt_from_json(require(record, "prompt"))
    entries = require(record, "responses")
    if not isinstance(entries, list):
        raise UserError(f"field 'responses' must be a list of objects with text and score, not {entries!r:.60}")
    responses = []
    for place, entry in enumerate(entries):
        try:
            responses.append(_response(entry))
        except UserError as error:
            raise UserError(f"response {place}: {error}") from error
    return ScoredResponses(identity, prompt, tuple(responses))


def _response(entry: Any) -> ScoredResponse:
    if not isinstance(entry, Mapping):
        raise UserError(f"must be an object with text and score, not {entry!r:.60}")
    require(entry, "score")
    writer = optional_text(entry, "writer") or optional_text(entry, "model")
    return ScoredResponse(text_field(entry, "text"), score_field(entry, "score"), writer)


def _score(response: ScoredResponse) -> float:
    assert response.score is not None  # responses_of requires it
    return response.score


def _draw(pairs: list[PreferencePair], count: int, seed: bytes) -> list[PreferencePair]:
    """``count`` of ``pairs`` (all, when there are no more), drawn by ``seed``, in their first order."""
    if len(pairs) <= count:
        return pairs
    places = random.Random(seed).sample(range(len(pairs)), count)
    return [pairs[place] for place in sorted(places)]
