"""`python -m src.methods check FILE`: every test vector of a file through its composed objective.

A vector holds the log-probs of a batch, a configuration, and the loss and gradient that an independent computation
found. float64 must agree to 1e-9, absolute plus relative. float32 must agree to 1e-5 of the largest value of its kind
in the vector: a loss or gradient near 0 is the difference of larger numbers, and its last digits are lost with theirs.
Where that fails, float32 is held against what float64 finds for inputs rounded to float32: log-probs are hundreds of
nats of which small differences count, and digits lost by rounding them are not lost by a method's arithmetic.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.catalogue.bigram import toy_expected, toy_measured
from src.catalogue.measure import EXACT, ROUNDED, SINGLE, Arithmetic, Figures, expected, measured
from src.catalogue.tables import EXACT_ONLY, KNOWN, rows_of
from src.errors import UserError
from src.objective.objective import ObjectiveState

TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
KINDS = ("loss", "gradient", "others")
DIFFERENCES = {"anchor_gap": "margin"}
"""Figures that are differences of two others of about this size, in float32 relative to which they are exact."""
SECTIONS = ("format", "dtype", "conventions", "batches", "vectors", "gapo_toy", "extra")


@dataclass
class Result:
    """What was found of one tag: how many vectors, the worst error by precision and kind, and what went wrong."""

    count: int = 0
    worst: dict[tuple[str, str], float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, dtype: str, kind: str, error: float) -> None:
        self.worst[dtype, kind] = max(self.worst.get((dtype, kind), 0.0), error)


@dataclass(frozen=True)
class Case:
    """One vector or row of a table: its tag, its name in messages, what the file says, and how to find the same."""

    tag: str
    name: str
    said: Callable[[], Figures]
    measure: Callable[[Arithmetic], Figures]
    dtypes: tuple[str, ...]


def check_file(path: Path, tags: Sequence[str], dtypes: Sequence[str]) -> int:
    """Check the vectors of ``path`` (those of ``tags``, or all), print a line per tag, and return the exit code."""
    content = read(path)
    results: dict[str, Result] = defaultdict(Result)
    unchecked: list[str] = []
    cases = [*cases_of_vectors(content), *cases_of_toy(content), *cases_of_tables(content, results, unchecked)]
    known = list(dict.fromkeys([*(case.tag for case in cases), *results]))
    refuse_absent(tags, known)
    for case in cases:
        if not tags or case.tag in tags:
            run(case, results[case.tag], dtypes)
    shown = {tag: results[tag] for tag in known if not tags or tag in tags}
    print("\n".join([*report(shown, dtypes), *(f"not checked: {text}" for text in unchecked if not tags)]))
    unread = [key for key, value in content.items() if key not in SECTIONS and isinstance(value, (dict, list))]
    for key in unread:
        print(f"FAIL: nothing here reads the file's section {key}")
    return int(bool(unread) or any(result.problems for result in shown.values()))


def read(path: Path) -> dict[str, Any]:
    """The content of a file of vectors; raises ``UserError`` when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is no JSON ({error})"
        raise UserError(f"{path} cannot be read: {why}; give a file of test vectors") from error
    if not (isinstance(content, dict) and any(key in content for key in ("vectors", "gapo_toy", "extra"))):
        raise UserError(f"{path} holds no test vectors; it must have the key vectors, gapo_toy or extra")
    if problem := misshapen(content):
        raise UserError(f"{path} is no file of test vectors: {problem}")
    return content


def misshapen(content: Mapping[str, Any]) -> str | None:
    """What of a file has the wrong form, if anything."""
    toy, extra, batches = (content.get(key, {}) for key in ("gapo_toy", "extra", "batches"))
    if not all(isinstance(section, dict) for section in (toy, extra, batches)):
        return "batches, gapo_toy and extra must be objects"
    for name, entries in {"vectors": content.get("vectors", []), "gapo_toy": toy.get("vectors", []), **extra}.items():
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            return f"{name} must be a list of objects"
        if name in ("vectors", "gapo_toy") and not all(isinstance(entry.get("config"), dict) for entry in entries):
            return f"an entry of {name} has no config"
    for name, batch in batches.items():
        if (
            not isinstance(batch, dict)
            or len({len(column) if isinstance(column, list) else -1 for column in batch.values()}) != 1
        ):
            return f"the columns of batch {name} must be lists of one length"
    return None


def refuse_absent(tags: Sequence[str], known: Sequence[str]) -> None:
    """Raise ``UserError`` for a tag asked for that the file does not have."""
    for tag in tags:
        if tag not in known:
            close = difflib.get_close_matches(tag, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has: {', '.join(known)}"
            raise UserError(f"--tag {tag}: the file has no such tag; {hint}")


# --- cases ------------------------------------------------------------------------------------------------------------


def cases_of_vectors(content: Mapping[str, Any]) -> Iterator[Case]:
    """The vectors on log-probs; each starts from our own state after the one before where the file says so."""
    batches, threads = content.get("batches", {}), Threads()
    for position, vector in enumerate(content.get("vectors", []), 1):
        tag = str(vector.get("tag", f"(vector {position} has no tag)"))
        name = f"vector {vector.get('vector', position)} (batch {vector.get('batch')})"
        yield Case(tag, name, said(vector), threads.measuring(vector, batches), tuple(TOLERANCES))


def said(vector: Mapping[str, Any]) -> Callable[[], Figures]:
    return lambda: expected(vector)


class Threads:
    """State that goes from a vector of a tag to the next, by tag and arithmetic."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, Arithmetic], tuple[Any, ObjectiveState]] = {}

    def measuring(self, vector: Mapping[str, Any], batches: Mapping[str, Any]) -> Callable[[Arithmetic], Figures]:
        """How to find a vector's figures."""

        def measure(arithmetic: Arithmetic) -> Figures:
            if vector["batch"] not in batches:
                raise UserError(f"the file has no batch {vector['batch']}")
            key = (str(vector["tag"]), arithmetic)
            left, ours = self.last.get(key, (None, None))
            continues = left is not None and left == vector.get("state_in")
            found, after = measured(vector, batches[vector["batch"]], arithmetic, ours if continues else None)
            self.last[key] = (vector.get("state_out"), after)
            return found

        return measure


def cases_of_toy(content: Mapping[str, Any]) -> Iterator[Case]:
    """The vectors on the toy policy."""
    toy = content.get("gapo_toy", {})
    for position, vector in enumerate(toy.get("vectors", []), 1):
        tag = str(vector["config"].get("tag", f"(vector {position} of the toy has no tag)"))

        def measure(arithmetic: Arithmetic, vector: Mapping[str, Any] = vector) -> Figures:
            return toy_measured(toy, vector, arithmetic)

        def told(vector: Mapping[str, Any] = vector) -> Figures:
            return toy_expected(vector)

        yield Case(tag, f"vector {position} of the toy", told, measure, tuple(TOLERANCES))


def cases_of_tables(content: Mapping[str, Any], results: dict[str, Result], unchecked: list[str]) -> Iterator[Case]:
    """Rows of the tables; those of a batch that the file lacks are noted as ``unchecked``."""
    for name, entries in content.get("extra", {}).items():
        tag = f"extra.{name}"
        if name not in KNOWN:
            results[tag].problems.append("nothing here computes this table")
            continue
        for of, figured in rows_of(name, entries, content.get("batches", {})):
            if figured is None:
                unchecked.append(f"{tag}, {of}: the file does not hold that batch")
                continue
            told, measure = figured
            dtypes = ("float64",) if name in EXACT_ONLY else tuple(TOLERANCES)
            yield Case(tag, of, lambda told=told: told, measure, dtypes)  # type: ignore[misc]


# --- errors -----------------------------------------------------------------------------------------------------------


def run(case: Case, result: Result, dtypes: Sequence[str]) -> None:
    """Measure one case in every precision and note its errors; what cannot be measured is a problem of its tag."""
    result.count += 1
    try:
        told, exact = case.said(), case.measure(EXACT)
        for dtype in dtypes:
            if dtype == "float64":
                note(case, result, dtype, errors_in_double(told, exact))
            elif dtype in case.dtypes:
                note(case, result, dtype, errors_in_single(case, told, exact))
    except UserError as error:
        result.problems.append(f"{case.name}: {error}")
    except KeyError as error:
        result.problems.append(f"{case.name}: the file gives no {error}")


def note(case: Case, result: Result, dtype: str, errors: Mapping[tuple[str, str], float]) -> None:
    for (kind, name), error in errors.items():
        result.add(dtype, kind, error)
        if not error <= TOLERANCES[dtype]:
            result.problems.append(
                f"{case.name}: {name} is off by {error:.1e} in {dtype} (at most {TOLERANCES[dtype]:.0e})"
            )


def errors_in_double(told: Figures, found: Figures) -> dict[tuple[str, str], float]:
    """Worst |found − told| / (1 + |told|) of each figure."""
    errors = {}
    for kind, name, expected_values in each(told):
        values = found[kind].get(name, [])
        errors[kind, name] = worst(values, expected_values, [1 + abs(value) for value in expected_values])
    return errors


def errors_in_single(case: Case, told: Figures, exact: Figures) -> dict[tuple[str, str], float]:
    """Worst |found − told| of each figure, relative to the largest of its values."""
    found = case.measure(SINGLE)
    errors = {
        (kind, name): worst(found[kind].get(name, []), values, scales(told[kind], name))
        for kind, name, values in each(told)
    }
    if any(not error <= TOLERANCES["float32"] for error in errors.values()):
        rounded = case.measure(ROUNDED)
        for kind, name, values in each(told):
            moved = zip(values, exact[kind].get(name, []), rounded[kind].get(name, []), strict=False)
            yardstick = [value + (after - before) for value, before, after in moved]
            error = worst(found[kind].get(name, []), yardstick, scales(told[kind], name))
            errors[kind, name] = min(errors[kind, name], error)
    return errors


def scales(told: Mapping[str, list[float]], name: str) -> list[float]:
    """The largest finite value of a figure (or of those whose difference it is), once for each of its values."""
    sizes = [abs(value) for value in [*told[name], *told.get(DIFFERENCES.get(name, ""), [])] if math.isfinite(value)]
    smallest_normal = float.fromhex("0x1p-126")
    return [max([*sizes, smallest_normal])] * len(told[name])


def each(figures: Figures) -> Iterator[tuple[str, str, list[float]]]:
    for kind, named in figures.items():
        for name, values in named.items():
            yield kind, name, values


def worst(values: Sequence[float], expected_values: Sequence[float], scales: Sequence[float]) -> float:
    """Largest scaled difference; infinite where numbers are missing or one is not finite and the other differs."""
    if len(values) != len(expected_values):
        return math.inf
    errors = [0.0]
    for value, other, scale in zip(values, expected_values, scales, strict=True):
        if value == other or (math.isnan(value) and math.isnan(other)):
            continue
        error = abs(value - other) / scale
        errors.append(error if math.isfinite(error) else math.inf)
    return max(errors)


# --- what is printed --------------------------------------------------------------------------------------------------


def report(results: Mapping[str, Result], dtypes: Sequence[str]) -> list[str]:
    """A line per tag: vectors, worst errors, ok or FAIL, with what went wrong below it; then the sum."""
    head = ["tag", "vectors", *(f"{dtype} {kind}" for dtype in dtypes for kind in KINDS), ""]
    lines = [head]
    for tag, result in results.items():
        figures = [shown(result.worst.get((dtype, kind))) for dtype in dtypes for kind in KINDS]
        lines.append([tag, str(result.count), *figures, "FAIL" if result.problems else "ok"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    printed = []
    for line in lines:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        printed.append("  ".join([first, *rest]).rstrip())
        if problems := results[line[0]].problems if line[0] in results else []:
            printed += [f"    {problem}" for problem in dict.fromkeys(problems)]
    failed = sum(bool(result.problems) for result in results.values())
    vectors = sum(result.count for result in results.values())
    printed.append(f"{vectors} vectors of {len(results)} tags: " + (f"{failed} FAIL" if failed else "all ok"))
    printed.append("others: state after the step, anchor gaps, weights and other numbers of tables")
    return printed


def shown(error: float | None) -> str:
    return "–" if error is None else f"{error:.1e}"
