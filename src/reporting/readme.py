"""`python -m src.reporting.readme TABLE.md`: a rendered table of results/tables, with its claims, into README."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from src.config import ROOT
from src.errors import UserError

PLACE = re.compile(r"(<!-- reproduced table -->\n).*?(<!-- end of reproduced table -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="Markdown file that python -m src.reproduce wrote")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="page whose marked place is written")
    given = parser.parse_args()
    try:
        text = with_table(given.readme.read_text(encoding="utf-8"), text_of(given.table))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given.readme.write_text(text, encoding="utf-8")
    return 0


def text_of(table: Path) -> str:
    """The table, and its claims folded below it; headings one level down. Raises ``UserError`` where there is none."""
    if not table.exists():
        raise UserError(
            f"{table}: no such file; a table is written by python -m src.reproduce paper=amapo table=2 (--table, when "
            "its records are there)"
        )
    parts = [lowered(table)]
    claims = table.with_name(f"{table.stem}_claims.md")
    if claims.exists():
        parts.append(f"<details>\n<summary>Claims of the paper, checked</summary>\n\n{lowered(claims)}\n\n</details>")
    return "\n\n".join(parts)


def lowered(page: Path) -> str:
    """A page's text with its headings one level down."""
    return re.sub(r"^(#+ )", r"#\1", page.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()


def with_table(readme: str, table: str) -> str:
    """``readme`` with ``table`` between its marks; raises ``UserError`` where it has none."""
    if PLACE.search(readme) is None:
        raise UserError(
            "the page has no marks <!-- reproduced table --> and <!-- end of reproduced table -->; add them"
        )
    return PLACE.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme)


if __name__ == "__main__":
    sys.exit(main())
