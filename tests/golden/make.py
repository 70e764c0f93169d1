"""Write the numbers that our losses are held against: ``python -m tests.golden.make`` (numpy alone, a second).

Every module of this folder with ``vectors()``, ``toy()`` or ``extra()`` becomes the file of its name, in the format of
``python -m src.methods check``: vectors on log-probs, on the toy policy, and tables.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.golden.common import BATCHES

HERE = Path(__file__).resolve().parent
SUPPORT = ("__init__", "common", "make")
FAMILIES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in SUPPORT)


def content(family: str) -> dict[str, Any]:
    """What the file of a family holds."""
    module = importlib.import_module(f"tests.golden.{family}")
    held: dict[str, Any] = {}
    if hasattr(module, "toy"):
        return {"gapo_toy": module.toy()}
    held["batches"] = {name: batch.lists() for name, batch in BATCHES.items()}
    if hasattr(module, "vectors"):
        held["vectors"] = module.vectors()
    if hasattr(module, "extra"):
        held["extra"] = module.extra()
    return held


def text(value: Any, depth: int = 2) -> str:
    """``value`` as JSON with a line for every entry of a list, and for every name down to ``depth``."""
    if isinstance(value, dict) and depth:
        lines = [f"{json.dumps(name)}: {text(item, depth - 1)}" for name, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    for family in FAMILIES:
        (HERE / f"{family}.json").write_text(text(content(family)) + "\n")
