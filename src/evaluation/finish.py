"""How an evaluation ends: numbers on the terminal or as JSON, and a record."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.evaluation.benchmark import Scores
from src.evaluation.records import DataInfo, JudgeInfo, Record, write_record
from src.evaluation.statistics import Metric

if TYPE_CHECKING:
    from src.benchmark_schema import BenchmarkConfig
    from src.evaluation.subject import Subject


@dataclass(frozen=True)
class ModelScores:
    """A model's scores on a benchmark; ``judge``: the name of who judged, ``None`` where nobody did."""

    model: str
    judge: str | None
    scores: Scores


def say(text: str) -> None:
    """One line on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def show(models: Sequence[ModelScores], benchmark: str, output: str) -> None:
    """Print scores on standard output: ``output`` text for people, json for programs (one object per model)."""
    for one in models:
        if output == "json":
            print(json.dumps(json_of(one, benchmark), ensure_ascii=False, allow_nan=False), flush=True)
        else:
            print("\n".join(lines_of(one, benchmark)), flush=True)


def json_of(one: ModelScores, benchmark: str) -> dict[str, Any]:
    """``{"benchmark", "model", "judge", metric: value, metric_low, metric_high, "counts", "notes", "details"}``.

    A metric without a value is null, with its reason under ``metric_reason``; bounds and details only where there are
    any.
    """
    found: dict[str, Any] = {"benchmark": benchmark, "model": one.model, "judge": one.judge}
    for name, metric in one.scores.metrics.items():
        found[name] = finite(metric["value"])
        if found[name] is None:
            found[f"{name}_reason"] = metric.get("reason") or "not a finite number"
        for bound, value in (("low", metric["low"]), ("high", metric["high"])):
            if value is not None:
                found[f"{name}_{bound}"] = finite(value)
    found |= {"counts": dict(one.scores.counts), "notes": list(one.scores.notes)}
    return found | ({"details": without_nan(dict(one.scores.details))} if one.scores.details else {})


def lines_of(one: ModelScores, benchmark: str) -> list[str]:
    """Title, one line per metric (value, interval, count, or why there is none), counts and notes."""
    judged = f", judged by {one.judge}" if one.judge else ""
    lines = [f"{benchmark}: {one.model}{judged}"]
    lines += [metric_line(name, metric) for name, metric in one.scores.metrics.items()]
    if one.scores.counts:
        lines.append("  " + ", ".join(f"{name}: {count}" for name, count in one.scores.counts.items()))
    return lines + [f"  note: {note}" for note in one.scores.notes]


def metric_line(name: str, metric: Metric) -> str:
    """One metric in a line."""
    value = finite(metric["value"])
    if value is None:
        return f"  {name:32s} — ({metric.get('reason', 'no value')})"
    interval = "" if metric["low"] is None else f"  [{metric['low']:.5g}, {metric['high']:.5g}]"
    return f"  {name:32s} {value:.5g}{interval}  n={metric['n']}"


def finite(value: float | None) -> float | None:
    """``value``, or ``None`` for what is no finite number (JSON has none)."""
    return value if value is not None and math.isfinite(value) else None


def without_nan(value: Any) -> Any:
    """Plain data whose numbers are all finite: null in the place of others, since JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def clean(metric: Metric) -> Metric:
    """A metric as a record takes it: without numbers that are not finite."""
    value, low, high = finite(metric["value"]), finite(metric["low"]), finite(metric["high"])
    cleaned: Metric = {"value": value, "low": low, "high": high, "n": metric["n"]}
    reason = metric.get("reason") or ("not a finite number" if value is None else "")
    return {**cleaned, "reason": reason} if reason else cleaned


def finish(
    config: BenchmarkConfig,
    benchmark: str,
    subject: Subject,
    scores: Scores,
    data: DataInfo,
    settings: Mapping[str, Any],
    *,
    judge: JudgeInfo | None = None,
    sources: Mapping[str, Any] | None = None,
    command: str = "",
) -> Path:
    """Write the record of ``scores`` below ``config.records_root``, show them, and return the record's path.

    ``sources``: name -> ``{"path", "hash"}`` of generations, judgments and reference files. ``command``: by default
    that of the benchmark's entry point with the arguments of this process.
    """
    from src.config import evaluation_hash
    from src.environment import environment

    record = Record(
        benchmark=benchmark,
        run=subject.run,
        data=data,
        metrics={name: clean(metric) for name, metric in scores.metrics.items()},
        settings=dict(settings),
        environment=environment(),
        command=command or shlex.join(["python", "-m", f"src.evaluation.{benchmark}", *sys.argv[1:]]),
        judge=judge,
        counts=dict(scores.counts),
        notes=scores.notes,
        details=without_nan(dict(scores.details)),
        sources=dict(sources or {}),
        evaluation_hash=evaluation_hash(benchmark, config),
        scale=config.scale or "",
    )
    path = write_record(Path(config.records_root), record, scores.items)
    name = None if judge is None else judge.model or judge.name
    show([ModelScores(subject.name, name, scores)], benchmark, config.output)
    if config.output == "text":
        print(path, flush=True)
    return path
