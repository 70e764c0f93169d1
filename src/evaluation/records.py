"""Evaluation records: one JSON file per measured (run, benchmark, split, settings). No record, no table cell."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from src.errors import UserError
from src.evaluation.statistics import Metric


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which weights were measured.

    ``directory``: the run directory; ``noise``: "none" or what was done to the labels; ``step``: optimizer steps of
    the checkpoint; ``checkpoint``: "best", "last" or a step folder's name; ``constants``: every other setting that
    may change the result (the method's constants, learning rate, ...). Tables average over seeds only what has equal
    constants.
    """

    directory: str
    config_hash: str
    method: str
    model: str
    dataset: str
    noise: str
    seed: int
    step: int
    checkpoint: str
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataInfo:
    """What it was measured on.

    ``content_hash``: that of the prepared pairs of the split; ``pairs``: how many entered, before any filter of the
    settings.
    """

    split: str
    content_hash: str
    pairs: int


@dataclass(frozen=True, slots=True)
class JudgeInfo:
    """Who judged. ``prompts``: hash of everything it was asked but the answers; ``first`` and ``last``: dates of its
    first and last answer (ISO 8601; empty where stored judgments have none); ``settings``: what else its answers
    depend on (address, temperature, …)."""

    name: str
    model: str
    prompts: str
    first: str = ""
    last: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str, str]:
        """What must be equal for two numbers to be comparable."""
        return self.name, self.model, self.prompts


Info = TypeVar("Info", RunInfo, DataInfo, JudgeInfo)


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement. ``created``, ``environment`` and ``command`` say how; they are no part of its identity.

    ``judge``: of benchmarks that have one. ``counts``: how many rows fell under which rule (ties, unparsable, …);
    ``notes``: what a reader of the numbers must know; ``details``: further plain data (cells of a matrix);
    ``sources``: generations, judgments and reference files it was made from, name -> ``{"path", "hash"}``.
    ``evaluation_hash``: of the evaluation's configuration, whichever checkpoint it was given; ``scale``: of
    experiments/scale, where it is a part of a table.
    """

    benchmark: str
    run: RunInfo
    data: DataInfo
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    judge: JudgeInfo | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    evaluation_hash: str = ""
    scale: str = ""

    @property
    def id(self) -> str:
        """File name stem: readable names and a hash of (config hash, checkpoint, benchmark, split, settings, judge).

        Measuring again therefore overwrites; another setting makes another file.
        """
        identity = [self.run.config_hash, self.run.checkpoint, self.benchmark, self.data.split, dict(self.settings)]
        if self.judge is not None:
            identity.append(list(self.judge.identity))
        if self.evaluation_hash:
            identity.append(self.evaluation_hash)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        run = self.run
        names = (self.benchmark, run.method, run.model, run.dataset, f"s{run.seed}", digest)
        return "__".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", name) for name in names)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, ``id`` first."""
        return {"id": self.id, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a record. Raises ``UserError`` (without the file, which the reader adds) naming the field at fault."""
        top = _mapping(content, "the record")
        run = _build(RunInfo, _mapping(top.get("run"), "'run'"), "run.")
        data = _build(DataInfo, _mapping(top.get("data"), "'data'"), "data.")
        metrics = {str(k): _metric(v, str(k)) for k, v in _mapping(top.get("metrics"), "'metrics'").items()}
        for name in ("benchmark", "created"):
            if not isinstance(top.get(name), str):
                raise UserError(f"field '{name}' must be a string, not {top.get(name)!r:.40}")
        return cls(
            benchmark=top["benchmark"],
            run=run,
            data=data,
            metrics=metrics,
            settings=_mapping(top.get("settings", {}), "'settings'"),
            environment=_mapping(top.get("environment", {}), "'environment'"),
            command=str(top.get("command", "")),
            created=top["created"],
            **_judged_fields(top),
        )


def _judged_fields(top: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that records of earlier versions have not."""
    judge = top.get("judge")
    counts = _mapping(top.get("counts", {}), "'counts'")
    if any(isinstance(count, bool) or not isinstance(count, int) for count in counts.values()):
        raise UserError(f"field 'counts' must hold whole numbers, not {counts!r:.60}")
    return {
        "judge": None if judge is None else _build(JudgeInfo, _mapping(judge, "'judge'"), "judge."),
        "counts": counts,
        "notes": tuple(str(note) for note in top.get("notes") or ()),
        "details": _mapping(top.get("details", {}), "'details'"),
        "sources": _mapping(top.get("sources", {}), "'sources'"),
        "evaluation_hash": str(top.get("evaluation_hash", "")),
        "scale": str(top.get("scale", "")),
    }


def write_record(directory: Path, record: Record) -> Path:
    """Write ``<directory>/<id>.json`` whole or not at all, replacing an earlier measurement; return its path.

    Raises ``UserError`` when the directory cannot be written.
    """
    text = json.dumps(record.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    path = directory / f"{record.id}.json"
    aside = directory / f".{record.id}.{os.getpid()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if directory.is_dir():
            aside.unlink(missing_ok=True)
        raise UserError(
            f"the record cannot be written to {path}: {error.strerror}; give a folder that can be written"
        ) from error
    return path


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Records of the given files and folders (``*.json`` directly inside), each file once, in order of path.

    Raises ``UserError`` for a path that does not exist or a file that is no record.
    """
    files: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"no record at {path}: the path does not exist; records are made by `{RANKING}`")
        files.update(path.glob("*.json") if path.is_dir() else [path])
    return [_read(file) for file in sorted(files)]


RANKING = "python -m src.evaluation.ranking checkpoint=RUN"


def _read(file: Path) -> Record:
    try:
        return Record.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError) as error:  # ValueError: invalid JSON or UTF-8
        raise UserError(f"{file} is not a readable record: {error}; delete it, or measure again by `{RANKING}`") from (
            error
        )


def describe_run(directory: Path, checkpoint: str = "best") -> RunInfo:
    """What a run directory says of itself, from config.yaml, status.json and the checkpoint's name.

    ``checkpoint`` is "best", "last" or a folder name under checkpoints/. Raises ``UserError`` when the directory
    is no run or has no such checkpoint.
    """
    try:
        config = _mapping(yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")), "config.yaml")
        status = _mapping(json.loads((directory / "status.json").read_text(encoding="utf-8")), "status.json")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{directory} is not a run directory: {error}; give the folder that `python -m src.train` printed"
        ) from error
    folder = directory / "checkpoints" / checkpoint
    if not folder.exists():
        raise UserError(f"{directory} has no checkpoint '{checkpoint}' ({folder} does not exist); train it first")
    step = re.fullmatch(r"step-(\d+)", folder.resolve().name)
    return RunInfo(
        directory=str(directory),
        config_hash=str(status.get("config_hash", "")),
        method=section_name(config, "method"),
        model=section_name(config, "model"),
        dataset=section_name(config, "dataset"),
        noise=describe_noise(config.get("noise")),
        seed=int(config.get("seed", 0)),
        step=int(step[1]) if step else int(status.get("step", 0)),
        checkpoint=checkpoint,
        constants=run_constants(config),
    )


def section_name(config: Mapping[str, Any], section: str) -> str:
    """The ``name`` of a config section; "unknown" when it has none."""
    node = config.get(section)
    return str(node.get("name", "unknown")) if isinstance(node, Mapping) else "unknown"


def describe_noise(node: Any) -> str:
    """The noise section in a word: its name (or class) and its options; "none" without noise."""
    if not isinstance(node, Mapping):
        return "none"
    name = str(node.get("name") or str(node.get("_target_", "none")).rsplit(".", 1)[-1])
    if name.lower() in ("none", "nonoise"):
        return "none"
    options = [f"{key}={value}" for key, value in node.items() if key not in ("name", "_target_", "seed")]
    return f"{name}({', '.join(options)})" if options else name


def run_constants(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that may change the result, flat and dotted; the method's and training's without the section.

    A part's option that only repeats a constant of its method (``beta: ${method.beta}``) is left out.
    """
    method = config.get("method")
    own = method if isinstance(method, Mapping) else {}
    flat: dict[str, Any] = {}
    for section, node in config.items():
        if section not in NOT_CONSTANTS:
            flat |= _flatten(node, str(section))
    constants: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, rest = key.partition(".")
        leaf = key.rsplit(".", 1)[-1]
        repeats = section == "method" and "." in rest and leaf in own and own[leaf] == value
        if rest != "name" and leaf != "micro_batch_size" and not repeats:
            constants[rest if section in ("method", "training") else key] = value
    return constants


NOT_CONSTANTS = (
    *("seed", "noise", "output_root", "cache_root", "prepare_workers", "run_dir"),
    *("engine", "logging", "debug", "hydra"),
)
"""Top-level keys that tell seeds, labels or places apart, not settings; noise has a field of its own."""


def _flatten(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {name: leaf for key, value in node.items() for name, leaf in _flatten(value, f"{prefix}.{key}").items()}


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be an object, not {value!r:.40}")
    return dict(value)


def _build(kind: type[Info], content: Mapping[str, Any], prefix: str) -> Info:
    """A flat dataclass from JSON; checks presence and the types int, str and dict; ignores fields of later versions."""
    arguments: dict[str, Any] = {}
    types = {"int": int, "str": str, "dict[str, Any]": dict}
    for item in fields(kind):
        if item.name not in content:
            if item.default is not MISSING or item.default_factory is not MISSING:
                continue
            raise UserError(f"field '{prefix}{item.name}' is missing")
        value = content[item.name]
        if not isinstance(value, types[str(item.type)]) or isinstance(value, bool):
            raise UserError(f"field '{prefix}{item.name}' must be of type {item.type}, not {value!r:.40}")
        arguments[item.name] = value
    return kind(**arguments)


def _metric(value: Any, name: str) -> Metric:
    content = _mapping(value, f"metric '{name}'")
    for key in ("value", "low", "high"):
        number = content.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise UserError(f"field '{key}' of metric '{name}' must be a number or null, not {number!r:.40}")
    count = content.get("n", 0)
    metric: Metric = {
        "value": content.get("value"),
        "low": content.get("low"),
        "high": content.get("high"),
        "n": count if isinstance(count, int) else 0,
    }
    if content.get("reason"):
        metric["reason"] = str(content["reason"])
    return metric
