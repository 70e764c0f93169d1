"""Token ids as pieces of text, so that each token can be seen by itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 8
"""Tokens before a piece that are decoded with it: decoders look back at most one token, so this is ample."""
MARKS = {"\n": "↵\n", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that a screen does not show, or that change how it shows others."""
JOINERS = "\u200c\u200d"
"""Format characters inside emoji and many scripts, without which the text would not look as it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token; of several where they have only together a text (bytes of one character)."""

    text: str
    ids: tuple[int, ...]
    special: bool = False


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids as the tokenizer says it, special tokens included and no space tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Piece]:
    """``ids`` in pieces, whose texts joined are exactly the decoded text of all of them."""
    full = decoded(tokenizer, ids)
    ends = list(_ends(tokenizer, ids, full, WINDOW))
    if not ends or ends[-1] != (len(ids), len(full)):
        # a decoder that looks further back than the window
        ends = list(_ends(tokenizer, ids, full, len(ids)))
    if not ends or ends[-1] != (len(ids), len(full)):
        ends = [*ends, (len(ids), len(full))]
    specials = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    pieces, start, place = [], 0, 0
    for end, stop in ends:
        group = tuple(ids[start:end])
        if group:
            pieces.append(Piece(full[place:stop], group, len(group) == 1 and group[0] in specials))
        start, place = end, stop
    return pieces


def _ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], full: str, window: int) -> Iterator[tuple[int, int]]:
    """(tokens, characters) after each token at which the text so far is a beginning of ``full``."""
    done, place = 0, 0
    for end in range(1, len(ids) + 1):
        start = max(0, done - window)
        before = decoded(tokenizer, ids[start:done])
        together = decoded(tokenizer, ids[start:end])
        if together.startswith(before) and full.startswith(together[len(before) :], place):
            done, place = end, place + len(together) - len(before)
            yield done, place


def visible(text: str) -> str:
    """``text`` for a screen: line ends and tabs have a mark, and what would steer the screen is spelt out.

    An escape sequence or a change of writing direction in a response would otherwise act on the terminal or the page.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in HIDDEN and character not in JOINERS:
        return f"⟨U+{ord(character):04X}⟩"
    return character
