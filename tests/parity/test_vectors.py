"""Losses and gradients of the composed methods against numbers that our code did not compute.

Two kinds of files hold such numbers, in one format: those of ``tests/golden/``, whose formulas know nothing of ``src``
(``python -m tests.golden.make`` writes them), and the vectors of the development folder, where it is there. What a tag
means here is said in ``src/catalogue/routes.py``; a new one is a formula in a module of ``tests/golden/``, and a route.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from src.catalogue.measure import EXACT, SINGLE, Figures
from src.catalogue.routes import ROUTES, route_name, settings
from src.catalogue.rows import names
from src.catalogue.vectors import KINDS, Case, cases_of_tables, cases_of_toy, cases_of_vectors
from src.config import ROOT
from tests.golden import make

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.json"))
DEVELOPMENT = ROOT.parent / "shared" / "vectors.json"

SINGLE_PRECISION = 1e-5
DOUBLE_PRECISION = {True: 1e-12, False: 1e-9}
"""By whether the file is ours: another one may be rounded."""

TWINS = {"dr_dpo_global": "dr_dpo", "gapo_instance": "gapo"}
"""Methods that differ from another only in a scope, which a single forward does not tell apart."""


@cache
def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@cache
def cases(path: Path) -> tuple[Case, ...]:
    """Every vector and row of a file, in order."""
    content, results, unchecked = read(path), {}, []  # type: ignore[var-annotated]
    found = (*cases_of_vectors(content), *cases_of_toy(content), *cases_of_tables(content, results, unchecked))
    assert results == {}, "tables that nothing here computes"
    return found


def tags() -> Iterator[Any]:
    """A case per file and tag; a file that is not here is one that is skipped."""
    for path in [*GOLDEN, DEVELOPMENT]:
        if not path.exists():
            why = "the vectors of the development folder are not here; those of tests/golden stand in"
            yield pytest.param(path, "every tag", marks=pytest.mark.skip(reason=why), id=path.name)
            continue
        for tag in dict.fromkeys(case.tag for case in cases(path)):
            yield pytest.param(path, tag, id=f"{path.stem}-{tag}")


def compare(found: Figures, told: Figures, tolerance: float, case: Case, kinds: Sequence[str]) -> None:
    """Every figure of these kinds, relative to the largest of its values."""
    for kind in kinds:
        for name, values in told[kind].items():
            largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
            near = pytest.approx(values, rel=tolerance, abs=tolerance * largest, nan_ok=True)
            assert found[kind][name] == near, f"{name} of {case.tag}, {case.name}"


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize(("path", "tag"), tags())
def test_loss_and_gradient_are_those_of_the_vectors(path: Path, tag: str, precision: str) -> None:
    mine = [case for case in cases(path) if case.tag == tag]
    assert mine
    for case in mine:
        if precision == "double":
            compare(case.measure(EXACT), case.said(), DOUBLE_PRECISION[path in GOLDEN], case, KINDS)
        else:  # a gap of two margins in single precision has fewer digits than the loss that it enters
            compare(case.measure(SINGLE), case.said(), SINGLE_PRECISION, case, KINDS[:2])


def test_every_method_stands_on_numbers_of_this_repository() -> None:
    """The development folder is not there for everyone: each conf/method is reached from tests/golden alone."""
    reached = {"sft", "alphapo_token"}
    assert {"sft", "alphapo_gappo_token_form"} <= read(ROOT / "tests" / "golden" / "tokens.json")["extra"].keys()
    for path in GOLDEN:
        content = read(path)
        entries = [(vector["tag"], vector["config"]) for vector in content.get("vectors", [])]
        toy = [dict(vector["config"]) for vector in content.get("gapo_toy", {}).get("vectors", [])]
        entries += [(config.pop("tag"), config) for config in toy]
        reached |= {settings(ROUTES[route_name(None, tag)], config)[0] for tag, config in entries}
    assert sorted({*names()} - reached - TWINS.keys()) == []


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a file that is no container, with its place."""
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{where}/{name}")
    else:
        yield where, value


@pytest.mark.parametrize("family", make.FAMILIES)
def test_golden_files_are_what_their_formulas_give(family: str) -> None:
    """But for last digits, which may differ between builds of numpy; ``python -m tests.golden.make`` writes them."""
    found, told = dict(leaves(read(ROOT / "tests" / "golden" / f"{family}.json"))), dict(leaves(make.content(family)))
    assert list(found) == list(told)
    for where, value in told.items():
        assert found[where] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-11, abs=1e-15)), where


def test_golden_formulas_know_nothing_of_ours() -> None:
    files = sorted((ROOT / "tests" / "golden").glob("*.py"))
    assert [path.stem for path in GOLDEN] == make.FAMILIES
    assert len(files) == len(make.FAMILIES) + len(make.SUPPORT)
    imports = re.compile(r"^\s*(from|import) (src|torch)\b", re.MULTILINE)
    assert [path.name for path in files if imports.search(path.read_text())] == []
