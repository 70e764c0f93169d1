"""Write the numbers that our losses are held against: ``python -m tests.golden.make`` (numpy alone, a second).

Every module of this folder with a ``vectors()`` becomes the file of its name, in the format of
``python -m src.methods check``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.golden.common import BATCHES

HERE = Path(__file__).resolve().parent
FAMILIES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "common", "make"))


def content(family: str) -> dict[str, Any]:
    """What the file of a family holds."""
    entries = importlib.import_module(f"tests.golden.{family}").vectors()
    return {"batches": {name: batch.lists() for name, batch in BATCHES.items()}, "vectors": entries}


def text(family: str) -> str:
    """The file of a family, one entry a line."""
    held = content(family)
    batches = ",\n".join(f'"{name}": {json.dumps(batch)}' for name, batch in held["batches"].items())
    entries = ",\n".join(json.dumps(entry) for entry in held["vectors"])
    return f'{{"batches": {{\n{batches}\n}},\n"vectors": [\n{entries}\n]}}\n'


if __name__ == "__main__":
    for family in FAMILIES:
        (HERE / f"{family}.json").write_text(text(family))
