"""Rendered tables and claims, as `python -m src.reproduce` leaves them, made fit for a page of the report.

A fragment is taken apart and written anew with the elements and attributes of tables alone, so that whatever a file
holds, the page runs no script of it and fetches nothing. A config hash in it becomes a link to its run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from src.errors import UserError

KEPT = frozenset(
    (
        *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "ul", "ol", "li", "dl", "dt", "dd"),
        *("b", "strong", "em", "i", "small", "span", "sup", "sub", "code", "abbr", "q", "cite", "br"),
        *("p", "h2", "h3", "h4", "div", "section", "details", "summary"),
    )
)
ATTRIBUTES = frozenset(("class", "scope", "colspan", "rowspan", "title", "headers"))
DROPPED = frozenset(("script", "style", "template", "iframe", "object", "svg", "math", "noscript", "textarea", "title"))
"""Elements that go with all they hold."""

HASH = re.compile(r"\b[0-9a-f]{10}\b")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A rendered table. ``name``: of its file; ``hashes``: config hashes of runs that it names."""

    name: str
    title: str
    body: str
    hashes: tuple[str, ...]


class Cleaner(HTMLParser):
    """Writes kept elements anew and everything else as text."""

    def __init__(self, links: Mapping[str, str]) -> None:
        super().__init__()
        self.links, self.parts, self.hashes = links, list[str](), dict[str, None]()
        self.title = ""
        self._open: list[str] = []
        self._dropping = 0
        self._heading = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._dropping += tag in DROPPED
        if tag not in KEPT or self._dropping:
            return
        given = "".join(f' {name}="{html.escape(value or "")}"' for name, value in attrs if name in ATTRIBUTES)
        if tag == "table":
            self.parts.append('<div class="scroll" tabindex="0" role="region" aria-label="Table">')
        self.parts.append(f"<{tag}{given}>")
        self._heading = not self.title and tag in ("caption", "h2", "h3")
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in DROPPED:
            self._dropping = max(0, self._dropping - 1)
        elif not self._dropping and tag in self._open:
            while self._open:
                last = self._open.pop()
                self.parts.append(f"</{last}>" + ("</div>" if last == "table" else ""))
                if last == tag:
                    break
            self._heading = False

    def handle_data(self, data: str) -> None:
        if self._dropping:
            return
        if self._heading:
            self.title += data
        start = 0
        for match in HASH.finditer(data):
            target = self.links.get(match[0])
            if target is not None:
                self.hashes[match[0]] = None
                link = f'<a href="{html.escape(target)}">{match[0]}</a>'
                self.parts += [html.escape(data[start : match.start()]), link]
                start = match.end()
        self.parts.append(html.escape(data[start:]))

    def close(self) -> None:
        super().close()
        while self._open:
            last = self._open.pop()
            self.parts.append(f"</{last}>" + ("</div>" if last == "table" else ""))


def cleaned(text: str, name: str, links: Mapping[str, str]) -> Fragment:
    """A fragment of a file called ``name``; ``links``: config hash -> page of the run."""
    cleaner = Cleaner(links)
    cleaner.feed(text)
    cleaner.close()
    title = " ".join(cleaner.title.split()) or name.replace("_", " ")
    return Fragment(name, title, "".join(cleaner.parts), tuple(cleaner.hashes))


def read_fragments(folders: Sequence[Path], links: Mapping[str, str]) -> list[Fragment]:
    """Every ``*.html`` of the folders, in order of name; a folder that is not there holds none."""
    files = sorted({file for folder in folders if folder.is_dir() for file in folder.glob("*.html")})
    found = []
    for file in files:
        try:
            found.append(cleaned(file.read_text(encoding="utf-8"), file.stem, links))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error}); make the table again, or delete it") from error
    return found
