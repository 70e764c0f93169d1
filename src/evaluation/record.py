"""What an evaluation record holds: one measured (run, benchmark, split, settings), and how it was made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from src.errors import UserError
from src.evaluation.record_schema import check
from src.evaluation.statistics import Metric


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which weights were measured.

    ``directory``: the run directory; ``noise``: "none" or what was done to the labels; ``step``: optimizer steps of
    the checkpoint; ``checkpoint``: "best", "last" or a step folder's name; ``constants``: every other setting that
    may change the result (the method's constants, learning rate, ...). Tables average over seeds only what has equal
    constants. ``manifest``: hash of the prepared data that the run was trained on, "" where it is not known.
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
    manifest: str = ""


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
    experiments/scale, where it is a part of a table. ``items``: where the values of single items are, below the
    records (``path``), the hash of their content and which metrics they are of; {} where there are none.
    ``file``: where a record that was read stands.
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
    items: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """File name stem: readable names and a hash of (config hash, checkpoint, benchmark, split, settings, judge,
        evaluation hash). Measuring again gives the same; another setting another one.
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

    @property
    def result(self) -> dict[str, Any]:
        """What is equal when a measurement gives the same again: all but dates, places and what it was made with."""
        content = asdict(replace(self, file=None))
        for name in ("created", "environment", "command", "notes", "details", "file"):
            del content[name]
        del content["run"]["directory"]
        judge = content["judge"]
        content["judge"] = None if judge is None else {**judge, "first": "", "last": ""}
        sources = {k: v.get("hash") if isinstance(v, Mapping) else v for k, v in self.sources.items()}
        return {**content, "sources": sources, "items": self.items.get("hash")}

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, ``id`` first."""
        content = asdict(replace(self, file=None))
        del content["file"]
        return {"id": self.id, **content}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a record. Raises ``UserError`` (without the file, which the reader adds) naming the field at fault."""
        check(content)
        judge = content.get("judge")
        record = cls(
            run=_build(RunInfo, content["run"]),
            data=_build(DataInfo, content["data"]),
            metrics={name: _metric(value) for name, value in content["metrics"].items()},
            judge=None if judge is None else _build(JudgeInfo, judge),
            notes=tuple(content.get("notes", ())),
            **{name: content[name] for name in PLAIN if name in content},
        )
        if record.id != content["id"]:
            raise UserError(f"field 'id' is {content['id']}, but what the record holds belongs to {record.id}")
        return record


PLAIN = (
    *("benchmark", "settings", "environment", "command", "created", "counts", "details", "sources"),
    *("evaluation_hash", "scale", "items"),
)
"""Fields of a record that JSON has as they are."""


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
        manifest=manifest_hash(directory),
    )


def manifest_hash(directory: Path) -> str:
    """The hash of a run's prepared data, by its manifest.json; "" without one."""
    try:
        content = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get("hash", "")) if isinstance(content, dict) else ""


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

    A part's option that only repeats a constant of its method (``beta: ${method.beta}``) is left out, and so are the
    seeds of the method and of the SFT base, which go with the run's own.
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
        draws = (section, leaf) in (("method", "seed"), ("model", "sft_seed"))
        if rest != "name" and leaf != "micro_batch_size" and not repeats and not draws:
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


def _build(kind: type[Info], content: Mapping[str, Any]) -> Info:
    """A flat dataclass from JSON that was checked; fields of later versions are passed over."""
    known = {item.name for item in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in known})


def _metric(value: Mapping[str, Any]) -> Metric:
    metric: Metric = {"value": value["value"], "low": value["low"], "high": value["high"], "n": value["n"]}
    if value.get("reason"):
        metric["reason"] = value["reason"]
    return metric
