"""What is shown of a prepared pair: every token with what becomes of it, and what truncation took away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.data.collate import collate
from src.data.pairs import Demonstration, PreferencePair
from src.data.pairset import PairSet, TokenizedPair
from src.data.showing.pieces import Piece, pieces_of
from src.data.sources.base import Source
from src.data.templates import ChatTemplate, Encoded, TemplateRefusal
from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT, SUPERVISED, CUT = "prompt", "supervised", "cut"
MEANINGS = {
    PROMPT: "seen by the model, not in the loss",
    SUPERVISED: "in the loss, counted in n",
    CUT: "taken away by truncation",
}


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind: prompt, supervised or cut."""

    kind: str
    pieces: list[Piece]

    @property
    def tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True)
class Side:
    """One row of the model's input. ``counted`` is n, the tokens that the loss counts; ``score`` may be ``None``."""

    name: str
    spans: list[Span]
    counted: int
    score: float | None

    def tokens(self, kind: str) -> int:
        """How many tokens of a kind there are."""
        return sum(span.tokens for span in self.spans if span.kind == kind)


@dataclass(frozen=True)
class ShownPair:
    """A prepared pair (or demonstration, with one side), ready to print."""

    id: str
    place: int
    flipped: bool
    sides: list[Side]


@dataclass(frozen=True)
class Cuts:
    """The ids of a pair before truncation: prompt, and a response for each side."""

    prompt: list[int]
    responses: list[list[int]]


def chosen_pairs(data: PairSet, count: int, wanted: Sequence[str]) -> list[TokenizedPair]:
    """The first ``count`` pairs, or those with the ids ``wanted``; raises ``UserError`` for an id that is not there."""
    if not wanted:
        return [data[index] for index in range(min(count, len(data)))]
    found = {pair.id: pair for pair in data if pair.id in set(wanted)}
    if missing := [identity for identity in wanted if identity not in found]:
        raise UserError(
            f"only={missing[0]}: no prepared pair of this split has that id (its first is '{data[0].id}'); it may be "
            "in the other split, or have been left out: manifest.json counts those by reason"
        )
    return [found[identity] for identity in wanted]


def cuts_of(pairs: Sequence[TokenizedPair], source: Source, template: ChatTemplate) -> dict[str, Cuts]:
    """The ids before truncation of ``pairs``, read and tokenised again, by pair id."""
    missing = {pair.id: pair for pair in pairs}
    result: dict[str, Cuts] = {}
    demonstrations = bool(pairs) and not any(pair.rejected_ids for pair in pairs)
    records: Iterator[PreferencePair | Demonstration] = source.demonstrations() if demonstrations else source.pairs()
    for record in records:
        pair = missing.pop(record.id, None)
        if pair is not None and isinstance(encoded := _encoded(record, pair.flipped, template), tuple):
            result[record.id] = Cuts(*encoded)
        if not missing:
            break
    return result


def _encoded(
    record: PreferencePair | Demonstration, flipped: bool, template: ChatTemplate
) -> Encoded | TemplateRefusal:
    if isinstance(record, Demonstration):
        texts = [record.response]
    else:
        texts = [record.chosen, record.rejected]
        texts = texts[::-1] if flipped != record.flipped else texts
    return template.encode_batch([(record.prompt, texts)])[0]


def shown(pair: TokenizedPair, tokenizer: PreTrainedTokenizerBase, cuts: Cuts | None = None) -> ShownPair:
    """``pair`` in pieces; masks and n are those of the batch that training makes of it.

    Raises ``UserError`` when ``cuts`` are not those of this pair.
    """
    batch = collate([pair])
    counted = batch.layout.supervised[:, 1:].sum(-1).tolist()
    starts = batch.layout.starts.tolist()
    responses, scores = (pair.chosen_ids, pair.rejected_ids), (pair.chosen_score, pair.rejected_score)
    sides = []
    for number, name in enumerate(("chosen", "rejected")[: len(counted)]):
        row = batch.layout.input_ids[number].tolist()[: starts[number] + len(responses[number])]
        parts = [(PROMPT, row[: starts[number]]), (SUPERVISED, row[starts[number] :])]
        if cuts is not None:
            whole = (cuts.prompt, cuts.responses[number])
            parts = _with_cuts(pair.id, parts[0][1], parts[1][1], *whole)
        spans = [Span(kind, pieces) for kind, pieces in _in_pieces(tokenizer, parts) if pieces]
        sides.append(Side(name, spans, counted[number], scores[number]))
    return ShownPair(pair.id, pair.index, pair.flipped, sides)


Part = tuple[str, list[int]]
"""A kind of token, and ids of that kind that follow each other."""


def _with_cuts(
    identity: str, prompt: list[int], response: list[int], whole_prompt: list[int], whole_response: list[int]
) -> list[Part]:
    """The parts of a row with what truncation took out of the prompt (behind its bos, if that stayed) and response."""
    gone = len(whole_prompt) - len(prompt)
    for head in (0, 1):
        if gone >= 0 and prompt == whole_prompt[:head] + whole_prompt[head + gone :]:
            break
    else:
        head = -1
    if head < 0 or response != whole_response[: len(response)]:
        raise UserError(
            f"the prepared pair '{identity}' is no cut of what its record gives now; the data changed while this ran, "
            "so run it again"
        )
    return [
        (PROMPT, prompt[:head]),
        (CUT, whole_prompt[head : head + gone]),
        (PROMPT, prompt[head:]),
        (SUPERVISED, response),
        (CUT, whole_response[len(response) :]),
    ]


def _in_pieces(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part]) -> Iterator[tuple[str, list[Piece]]]:
    """Pieces of each part. What the model sees is decoded as one text, what was cut by itself."""
    kept = pieces_of(tokenizer, [number for kind, ids in parts if kind != CUT for number in ids])
    for kind, ids in parts:
        if kind == CUT:
            yield kind, pieces_of(tokenizer, ids)
            continue
        taken, rest = [], len(ids)
        while rest > 0 and kept and len(kept[0].ids) <= rest:
            rest -= len(kept[0].ids)
            taken.append(kept.pop(0))
        if rest > 0:  # a character that lies across the border: the mask decides, so each part shows its own bytes
            over = kept.pop(0).ids
            taken += pieces_of(tokenizer, over[:rest])
            kept = pieces_of(tokenizer, over[rest:]) + kept
        yield kind, taken
