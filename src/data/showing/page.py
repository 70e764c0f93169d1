"""Shown pairs as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.data.showing.rows import CUT, MEANINGS, PROMPT, ShownPair
from src.data.showing.terminal import in_three, visible_line

FOLDER = Path(__file__).parent


def page_of(pairs: Sequence[ShownPair], heading: Sequence[str], *, ids: bool = False) -> str:
    """The page. Everything that comes from data is escaped; ``ids`` puts each token's number behind it."""
    jinja = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["line"] = visible_line
    return jinja.get_template("page.html.j2").render(
        pairs=pairs, heading=heading, meanings=MEANINGS, ids=ids, in_three=in_three, PROMPT=PROMPT, CUT=CUT
    )
