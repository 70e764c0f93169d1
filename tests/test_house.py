"""The house rules that a machine can check (CONTRIBUTING.md): layout, import direction, size, comments."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "conf").rglob("*.yaml") if path.parent.name != "local")

ROOMS = {
    "objective": (),
    "data": ("objective",),
    "model": ("data", "objective"),
    "engine": ("model", "data", "objective"),
    "planner": ("model", "data", "objective"),
    "training": ("planner", "engine", "model", "data", "objective"),
    "evaluation": ("generation", "engine", "model", "data", "objective"),
    "catalogue": ("training", "evaluation", "engine", "model", "data", "objective"),
    "generation": ("model", "data", "objective"),
    "annotation": ("generation", "model", "data", "objective"),
    "analysis": ("evaluation", "engine", "model", "data", "objective"),
    "cluster": ("training", "engine", "model", "data", "objective"),
    "experiments": ("cluster", "evaluation", "training", "engine", "model", "data", "objective"),
    "reporting": ("experiments", "evaluation"),
}
"""Which other rooms a room of src/ may import. Files of src/ itself serve every room but objective, which takes errors
alone; entry points may import everything but each other."""

HEAVY = ("torch", "transformers", "datasets", "accelerate", "matplotlib", "wandb", "pandas", "alpaca_eval", "lm_eval")
"""Packages that take seconds to import."""

LIGHT = (
    "src.config",
    "src.build",
    "src.data.pairs",
    "src.data.splits",
    "src.data.noise",
    "src.data.sources",
    "src.data.toy",
)
"""Modules that must import without any of them, besides the entry points."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_entry_point(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


ENTRY_POINTS = [module_of(path) for path in SOURCES if is_entry_point(path)]
SHARED = {module_of(path) for path in (ROOT / "src").glob("*.py")} - {"src", "src.cli", *ENTRY_POINTS}


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it (`from src.data import pairs` gives both)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("src."))


def test_the_walks_find_files() -> None:
    assert len(SOURCES) > 30
    assert len(TESTS) > 8
    assert len(CONFIGS) > 40
    assert len(ENTRY_POINTS) >= 1


def test_rooms_are_known() -> None:
    rooms = {path.parent.name for path in (ROOT / "src").glob("*/__init__.py")}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_run_one_way(room: str) -> None:
    shared = {"src.errors"} if room == "objective" else SHARED
    allowed = {f"src.{name}" for name in (room, *ROOMS[room])} | shared
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in sorted((ROOT / "src" / room).rglob("*.py"))
        if not is_entry_point(path)
        for name in imported(path)
        if ".".join(name.split(".")[:2]) not in allowed
    ]
    assert wrong == []


def test_nothing_imports_an_entry_point() -> None:
    wrong = [f"{module_of(path)} imports {name}" for path in SOURCES for name in imported(path) if name in ENTRY_POINTS]
    assert wrong == []


def test_entry_points_and_text_modules_import_nothing_heavy() -> None:
    modules = (*LIGHT, *ENTRY_POINTS)
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 400
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 >= 60
    ]
    assert long == []


def keys_of(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Every mapping key of a YAML document, with its place in the file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield from keys_of(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from keys_of(item)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_key_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = []
    for key in keys_of(yaml.compose(path.read_text())):
        number = key.start_mark.line
        above = lines[number - 1].lstrip() if number else ""
        if not re.search(r"\s#\s*\S", lines[number]) and not (above.startswith("#") and "@package" not in above):
            bare.append(f"{number + 1}: {key.value}")
    assert bare == []


def test_nothing_is_left_for_later() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*SOURCES, *CONFIGS, *TESTS]
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unfinished.search(line)
    ]
    assert left == []
