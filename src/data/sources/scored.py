"""Several scored responses per prompt, from a file of our own format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from src.data.pairs import (
    ScoredResponse,
    ScoredResponses,
    optional_text,
    prompt_from_json,
    require,
    score_field,
    text_field,
)
from src.data.sources.chain import check_made
from src.data.sources.files import content_hash, existing, located, read_json_lines
from src.data.sources.pairing import PairedResponses
from src.errors import UserError


@dataclass(frozen=True)
class ScoredResponsesFile(PairedResponses):
    """Pairs from a JSON-lines file of ``{prompt_id, prompt, responses: [{writer | model, text, score}]}``.

    The fields after ``path`` are those of ``Pairing``.
    """

    path: str
    pairing: str = "best_worst"
    min_gap: float = 0.0
    pairs_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.how()

    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses to each prompt; raises ``UserError`` with file and line for a bad record or a second use of a
        prompt's id."""
        file, lines = existing(self.path), dict[str, int]()
        for line, record in read_json_lines(file):
            with located(file, line):
                item = responses_of(record)
                if item.id in lines:
                    raise UserError(
                        f"prompt_id '{item.id}' was used in line {lines[item.id]}; give each prompt its own, and put "
                        "all responses to one prompt into one record"
                    )
            lines[item.id] = line
            yield item

    def content(self) -> str:
        """Hash of the uncompressed file; raises ``UserError`` when it is not what a manifest beside it describes."""
        file = existing(self.path)
        check_made(file)
        return content_hash([file])


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
    if entry.get("score") is None:
        raise UserError("field 'score' is missing; score every response first, or remove it")
    writer = optional_text(entry, "writer") or optional_text(entry, "model")
    return ScoredResponse(text_field(entry, "text"), score_field(entry, "score"), writer)
