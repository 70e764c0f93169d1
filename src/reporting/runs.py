"""Run directories as training leaves them, read tolerantly: what cannot be read becomes a note, not a failure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from src.evaluation.records import Record, describe_noise, section_name

FILES = ("status.json", "config.yaml", "metrics.jsonl")
"""Any of these makes a folder a run directory."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one where PyYAML was built with it: a report may read hundreds of configurations."""

Curve = tuple[list[int], list[float]]
"""Steps (ascending, unique) and values; points that are null or not finite are left out."""


@dataclass(slots=True)
class Run:
    """One training run. ``curves`` is keyed by (split, metric); ``manifest``: of the prepared data; ``distributions``:
    histograms over the pairs of the last validation; ``notes`` say what could not be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, Any] = field(default_factory=dict)
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    pairs_per_second: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name, unique among the runs of one output root."""
        return self.path.name

    def section(self, name: str) -> str:
        """Name of the config section ``method``, ``model`` or ``dataset``."""
        return section_name(self.config, name)

    @property
    def noise(self) -> str:
        """What was done to the labels; "none" without noise."""
        return describe_noise(self.config.get("noise"))

    @property
    def seed(self) -> Any:
        """The run's seed; None when the config does not say."""
        return self.config.get("seed")

    @property
    def config_hash(self) -> str:
        """Hash of the config as training wrote it; empty when unknown."""
        return str(self.status.get("config_hash", ""))

    @property
    def state(self) -> str:
        """running, finished, stopped, failed, recorded (only its records are here), or unknown."""
        return str(self.status.get("state", "unknown"))

    @property
    def step(self) -> int:
        """Optimizer steps done: what status.json says, or the last metrics line, which is written more often."""
        known = self.status.get("step")
        return max([curve[0][-1] for curve in self.curves.values()] + [known if isinstance(known, int) else 0])

    @property
    def recorded(self) -> bool:
        """Whether the run directory is not here, and its records alone tell of it."""
        return self.state == "recorded" and not self.config_text

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps planned; None when unknown."""
        total = self.status.get("total_steps")
        return total if isinstance(total, int) and total > 0 else None

    def last(self, split: str, metric: str) -> float | None:
        """The last value of a curve; None without one."""
        curve = self.curves.get((split, metric))
        return curve[1][-1] if curve else None


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run directories among the given folders and directly or deeper inside them, each once, in order of path.

    Hidden folders hold what launchers note of jobs, no runs.
    """
    found: set[Path] = set()
    for path in paths:
        if _is_run(path):
            found.add(path)
        elif path.is_dir():
            files = [file for name in FILES for file in path.rglob(name) if "checkpoints" not in file.parts]
            found.update(file.parent for file in files if not _is_hidden(file.relative_to(path)))
    return sorted(found)


def recorded_runs(records: Iterable[Record], known: Iterable[Run]) -> list[Run]:
    """A run for every measured model whose run directory is not among those known: what its records say of it."""
    here = {run.config_hash for run in known}
    found: dict[str, Run] = {}
    for record in records:
        told = record.run
        if told.config_hash in here or told.config_hash in found:
            continue
        config = {"seed": told.seed, "noise": None if told.noise == "none" else {"name": told.noise}}
        config |= {name: {"name": getattr(told, name)} for name in ("method", "model", "dataset")}
        status = {"state": "recorded", "step": told.step, "config_hash": told.config_hash}
        found[told.config_hash] = Run(Path(told.directory or told.model), config, status=status)
    return list(found.values())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES)


def read_run(path: Path) -> Run:
    """Read one run directory; missing, half-written or malformed parts are noted and left out."""
    run = Run(path)
    run.config_text = _text(run, "config.yaml")
    try:
        loaded = yaml.load(run.config_text, Loader=LOADER) or {}
        run.config = dict(loaded) if isinstance(loaded, Mapping) else {}
    except yaml.YAMLError as error:
        run.notes.append(f"config.yaml is not valid YAML ({str(error).splitlines()[0]})")
    run.status = _json_file(run, "status.json")
    for name in ("environment", "manifest", "distributions"):
        if (path / f"{name}.json").exists():
            setattr(run, name, _json_file(run, f"{name}.json"))
    run.curves = _curves(_json_lines(run, "metrics.jsonl"))
    if (path / "timings.jsonl").exists():
        speeds = [_number(line.get("pairs_per_second")) for line in _json_lines(run, "timings.jsonl")]
        known = [speed for speed in speeds if speed is not None]
        run.pairs_per_second = median(known) if known else None
    return run


def _text(run: Run, name: str) -> str:
    try:
        return (run.path / name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        run.notes.append(f"{name} cannot be read: {error.strerror}")
        return ""


def _json_file(run: Run, name: str) -> dict[str, Any]:
    text = _text(run, name)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        run.notes.append(f"{name} is not a JSON object and was left out")
        return {}
    return content


def _json_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """The file's JSON objects; other lines (the last one of a killed run is often half written) are noted."""
    good, bad = [], []
    for number, text in enumerate(_text(run, name).split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            good.append(line)
        else:
            bad.append(number)
    if bad:
        where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        noun = "line is" if len(bad) == 1 else "lines are"
        run.notes.append(f"{name}: {len(bad)} {noun} half-written or malformed and left out (line {where})")
    return good


def _curves(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Curve]:
    """Curves by (split, metric). A step written twice (a resumed run) keeps its last value."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        split = str(line.get("split", "train"))
        for metric, value in line.items():
            number = _number(value)
            if number is not None and metric != "step":
                points.setdefault((split, metric), {})[step] = number
    return {key: (sorted(curve), [curve[step] for step in sorted(curve)]) for key, curve in points.items()}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
