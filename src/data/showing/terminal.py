"""Shown pairs in the terminal: tokens apart, coloured by what becomes of them; without colour, between brackets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from src.data.showing.pieces import Piece, visible
from src.data.showing.rows import CUT, MEANINGS, PROMPT, SUPERVISED, ShownPair, Side, Span

if TYPE_CHECKING:
    from rich.console import Console

BRACKETS = {PROMPT: ("", ""), SUPERVISED: ("⟦", "⟧"), CUT: ("✂", "✂")}
STYLES = {PROMPT: "cyan", SUPERVISED: "green", CUT: "red strike"}
BETWEEN = "│"


def print_pairs(pairs: Sequence[ShownPair], heading: Sequence[str], console: Console, *, ids: bool = False) -> None:
    """Print ``heading`` and ``pairs``; ``ids`` puts each token's number behind it."""
    for words in heading:
        console.print(visible_line(words), style="bold", soft_wrap=True, markup=False, highlight=False)
    console.print(legend(), soft_wrap=True)
    for pair in pairs:
        for line in lines_of(pair, ids=ids):
            console.print(line, soft_wrap=True)


def legend() -> Text:
    """What brackets and colours mean."""
    text = Text(f"tokens are apart by {BETWEEN}, special ones underlined\n", style="dim")
    for kind, meaning in MEANINGS.items():
        left, right = BRACKETS[kind]
        text.append(f"{left}{kind}{right}", style=STYLES[kind])
        text.append(f": {meaning}\n")
    return text


def lines_of(pair: ShownPair, *, ids: bool = False) -> list[Text]:
    """A pair as styled text: a line on it, then a line and the tokens of each side."""
    title = Text(f"#{pair.place} {visible_line(pair.id)}", style="bold")
    title.append("  FLIPPED: the labels were exchanged" if pair.flipped else "  not flipped", style="bold yellow")
    result = [title]
    for side in pair.sides:
        result += [Text(summary(side), style="bold"), tokens_of(side, ids=ids)]
    return [*result, Text()]


def summary(side: Side) -> str:
    """Which side, its score, and how many tokens of each kind."""
    score = "no score" if side.score is None else f"score {side.score:g}"
    cut = f", {side.tokens(CUT)} cut" if side.tokens(CUT) else ""
    return f"{side.name}: {score}, n = {side.counted} ({side.tokens(PROMPT)} tokens of prompt{cut})"


def tokens_of(side: Side, *, ids: bool = False) -> Text:
    """The tokens of one row."""
    text = Text()
    for span in side.spans:
        _append(text, span, ids=ids)
    return text


def _append(text: Text, span: Span, *, ids: bool) -> None:
    left, right = BRACKETS[span.kind]
    style = STYLES[span.kind]
    text.append(left, style=style)
    for number, piece in enumerate(span.pieces):
        if number:
            text.append(BETWEEN, style="dim")
        body, note, ending = in_three(piece, ids=ids)
        text.append(body, style=f"{style} bold underline" if piece.special else style)
        text.append(note, style="dim")
        text.append(ending)
    text.append(right, style=style)


def note_of(piece: Piece, *, ids: bool) -> str:
    """Ids where asked for; otherwise how many tokens a piece has, where that is not one."""
    if ids:
        return "{" + " ".join(map(str, piece.ids)) + "}"
    return "" if len(piece.ids) == 1 else "{" + f"{len(piece.ids)} tokens" + "}"


def in_three(piece: Piece, *, ids: bool) -> tuple[str, str, str]:
    """A piece as it is shown: its text, the note on it, and the line break that ends the text, if one does."""
    text = visible(piece.text)
    body = text.removesuffix("\n")
    return body, note_of(piece, ids=ids), text[len(body) :]


def visible_line(text: str) -> str:
    """``text`` on one line, safe for a screen."""
    return visible(text).replace("\n", "")
