"""What the page of one run shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.reporting.pages.comparison import comparison_of, flat
from src.reporting.pages.curves import distribution_charts, run_charts
from src.reporting.pages.fragments import Fragment
from src.reporting.pages.samples import samples_of
from src.reporting.pages.views import RunView
from src.reporting.runs import Run

SIBLINGS = 30


def run_content(view: RunView, views: Sequence[RunView], papers: Sequence[Fragment]) -> dict[str, Any]:
    """The values of run.html.j2."""
    samples = [samples_of(record) for record in view.records]
    return {
        "view": view,
        "facts": facts(view),
        "siblings": siblings(view, views),
        "papers": [paper for paper in papers if view.run.config_hash in paper.hashes],
        "sections": run_charts(view.run),
        "distributions": distribution_charts(view.run, view.records),
        "records": [{"record": r, "samples": found} for r, found in zip(view.records, samples, strict=True)],
        "has_samples": any(found.shown or found.notes for found in samples),
        "comparison": comparison_of(view.run),
        "configuration": flat(view.run.config),
        "data": prepared(view.run.manifest),
    }


def facts(view: RunView) -> list[tuple[str, str]]:
    """The run in short."""
    run = view.run
    found = [(name.capitalize(), run.section(name)) for name in ("method", "model", "dataset")]
    found += [("Labels", view.noise), ("Seed", "unknown" if run.seed is None else str(run.seed))]
    found.append(("Steps", f"{run.step} of {run.total_steps}" if run.total_steps else str(run.step)))
    last = run.last("validation", "rewards/accuracies")
    if last is not None and view.best_accuracy is not None:
        best = f"{100 * view.best_accuracy:.1f} %"
        where = f" (at step {run.status['best_step']})" if run.status.get("best_step") is not None else ""
        found.append(("Validation accuracy", f"{100 * last:.1f} % at the end, best {best}{where}"))
    if run.pairs_per_second is not None:
        found.append(("Speed", f"{run.pairs_per_second:.3g} pairs a second"))
    found += [("Config hash", run.config_hash or "unknown"), ("Directory", str(run.path))]
    return found


def siblings(view: RunView, views: Sequence[RunView]) -> list[RunView]:
    """Other runs of the same method, model and data: other seeds and settings."""

    def names(run: Run) -> list[str]:
        return [run.section(name) for name in ("method", "model", "dataset")]

    own = names(view.run)
    return [other for other in views if other is not view and names(other.run) == own][:SIBLINGS]


def prepared(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What became of the data, from its manifest: counts, what was dropped and why, flips, lengths, hashes."""
    found: list[tuple[str, str]] = []
    for split, count in mapping(manifest, "counts").items():
        found.append((f"{split.capitalize()} pairs", str(count)))
    if "dropped" in manifest:
        dropped = mapping(manifest, "dropped")
        found.append(("Dropped", ", ".join(f"{why}: {count}" for why, count in dropped.items()) or "none"))
    if truncated := mapping(manifest, "truncated"):
        found.append(("Truncated", ", ".join(f"{what}: {count}" for what, count in truncated.items())))
    if noise := mapping(manifest, "noise"):
        found.append(("Noise", ", ".join(f"{key}={value}" for key, value in noise.items())))
    if flipped := mapping(manifest, "flipped"):
        found.append(("Flipped pairs", str(flipped.get("count", "unknown"))))
    for split, sides in mapping(manifest, "lengths").items():
        medians = [
            f"{side} {one['median']:g} (95 %: {one['q95']:g})"
            for side, one in (sides.items() if isinstance(sides, Mapping) else ())
            if isinstance(one, Mapping) and {"median", "q95"} <= set(one)
        ]
        if medians:
            found.append((f"Median tokens, {split}", ", ".join(medians)))
    if template := mapping(manifest, "template"):
        span = template.get("response_span", "unknown span")
        found.append(("Template", f"{template.get('name')}, {span}, {str(template.get('hash'))[:12]}"))
    for name in ("content", "source"):
        for key, value in mapping(manifest, name).items():
            found.append((f"{name.capitalize()}, {key}", str(value)[:64]))
    if manifest.get("hash"):
        found.append(("Manifest", str(manifest["hash"])))
    return found


def mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping of a manifest; {} for what is none."""
    value = content.get(key)
    return {str(name): item for name, item in value.items()} if isinstance(value, Mapping) else {}
