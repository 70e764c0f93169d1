"""Which texts are special tokens: the template may write them, a message may not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Marks:
    """The special tokens of a tokenizer, and the added ones that a template writes.

    ``pattern`` matches their texts, longest first, never the empty text; ``with_spaces`` also the space around them
    that the tokenizer takes into the token. ``unsafe``: texts that the tokenizer makes a token of even when it is asked
    to split special ones. ``anchor``: a special token to put before a text that is to be tokenised as if it stood
    behind one; ``None`` for a tokenizer to which that is no difference.
    """

    pattern: re.Pattern[str]
    with_spaces: re.Pattern[str]
    unsafe: frozenset[str]
    anchor: str | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, sample: str) -> Marks:
        """The marks of ``tokenizer``; ``sample`` is a text that the template wrote."""
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        special = {text for text, token in added.items() if token.special} | set(tokenizer.all_special_tokens)
        ordinary = {text for text in added if text not in special and text in sample}
        texts = sorted(filter(None, special | ordinary), key=lambda text: (-len(text), text))
        spaced = []
        for text in texts:
            left = r"\s*" if getattr(added.get(text), "lstrip", False) else ""
            right = r"\s*" if getattr(added.get(text), "rstrip", False) else ""
            spaced.append(f"{left}{re.escape(text)}{right}")
        anchor = _anchor(tokenizer, [text for text in texts if not getattr(added.get(text), "rstrip", False)])
        unsafe = ordinary if anchor is None else frozenset(texts)
        return cls(_either(map(re.escape, texts)), _either(spaced), frozenset(unsafe), anchor)

    def found_in(self, text: str) -> list[str]:
        """The marks in a text, in order."""
        return [match.group() for match in self.pattern.finditer(text)]

    def apart(self, text: str, table: dict[str, str]) -> Iterator[str]:
        """``text`` with the texts of ``table`` in the place of their characters, in parts none of which holds an unsafe
        text whole: cut behind its first character, it is tokenised as what it looks like."""
        part = ""
        for character in text:
            meant = table.get(character, character)
            if meant in self.unsafe and character in table:
                yield part + meant[:1]
                part = meant[1:]
            else:
                part += meant
        if part:
            yield part


def _either(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or r"(?!)")


def _anchor(tokenizer: PreTrainedTokenizerBase, candidates: Collection[str]) -> str | None:
    """A special token behind which a word has other tokens than by itself, as in vocabularies of words with their
    space, where only the first word of a text gets one."""
    alone = tokenizer("x", add_special_tokens=False)["input_ids"]
    for mark in sorted(candidates):
        identity, *behind = tokenizer(f"{mark}x", add_special_tokens=False)["input_ids"]
        if identity == tokenizer.convert_tokens_to_ids(mark):
            return None if behind == alone else mark
    return None
