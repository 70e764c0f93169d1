"""Pages from templates: escaped, self-contained, and allowed to run the report's own script alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.reporting import charts
from src.reporting.tables import number, spread, title

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def jinja() -> Environment:
    """The templates, with what they all use. Everything is escaped but what is ``Markup`` already."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals.update(
        metric_title=title,
        number=number,
        spread=spread,
        dash=charts.dash,
        series_count=charts.COLOURS,
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
    )
    found.filters["compact"] = compact
    found.filters["environment_line"] = environment_line
    return found


def compact(value: float | None, digits: int = 3) -> str:
    """A number in a few digits; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"


def environment_line(content: Mapping[str, Any]) -> str:
    """Commit and versions in a line."""
    shown = {key: value for key, value in dict(content).items() if value not in (None, "", False, {}, [])}
    commit = str(shown.pop("commit", "unknown"))[:12]
    dirty = " with uncommitted changes" if shown.pop("dirty", False) else ""
    return ", ".join([f"commit {commit}{dirty}", *(f"{key} {value}" for key, value in sorted(shown.items()))])
