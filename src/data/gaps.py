"""`python -m src.data.gaps dataset=NAME`: how far the scores of pairs lie apart, and where each weighting puts the
gradient; with `checkpoint=RUN` also where a trained model's own loss puts it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError
from src.schema import DatasetConfig, GapsConfig, TrainConfig

if TYPE_CHECKING:
    from src.data.pairset import PairSet

BAR = 24
"""Characters of the longest bar."""


def main(config: DictConfig) -> int:
    if problems := problems_of(config, GapsConfig):
        raise Problems(problems)
    report = measured(cast(GapsConfig, config))
    print(json.dumps(report, indent=1) if config.output == "json" else "\n".join(lines_of(report)))
    if config.figure is not None:
        from src.reporting.gap_figure import draw_gaps
        from src.reporting.plots import save

        paths = save(draw_gaps(report), Path(config.figure))
        if config.output != "json":
            print("\n".join(map(str, paths)))
    return 0


def measured(config: GapsConfig) -> dict[str, Any]:
    """The report on the prepared pairs, with what they are; raises ``UserError`` for pairs without scores."""
    from src.data.filter import refuse_unscored
    from src.data.gap_mass import gap_report

    described, pairs, trained = of_data(config) if config.checkpoint is None else of_run(config)
    refuse_unscored(pairs.unscored(), len(pairs), "the histogram of score gaps")
    settings = {"hard_filter": config.hard_filter, "batch": config.batch, "seed": config.seed}
    report = gap_report(
        *pairs.scores(),
        bin_width=config.bin_width,
        min_score_gap=config.hard_filter,
        batch=config.batch,
        seed=config.seed,
        trained=trained,
    )
    return {"data": described, "settings": settings} | report


def of_data(config: GapsConfig) -> tuple[dict[str, Any], PairSet, None]:
    """The pairs that the configuration prepares, and what is said of them."""
    from src.data.prepare import prepare
    from src.training.assemble import build_noise, build_source, build_template, build_tokenizer, prepare_options

    # the sections that these read are of the same types in both
    as_trained = cast(TrainConfig, config)
    source = build_source(as_trained)
    template = build_template(as_trained, build_tokenizer(as_trained, source))
    data = prepare(source, build_noise(as_trained), template, prepare_options(as_trained), Path(config.cache_root))
    pairs = data.train if config.split == "train" else data.validation
    return described(config.dataset, config.split, data.manifest), pairs, None


def of_run(config: GapsConfig) -> tuple[dict[str, Any], PairSet, Any]:
    """The pairs of a run, what is said of them, and the weight that its loss gives each at the checkpoint, [n]."""
    from src.evaluation.records import describe_run
    from src.training.reopened import gradient_weights

    refuse_choices_of_data(HydraConfig.get().overrides.task)
    directory = Path(str(config.checkpoint))
    run = describe_run(directory, config.which)
    found = gradient_weights(directory, config.which, config.split)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    said = described(found.trained.dataset, config.split, manifest)
    return said | {"run": str(directory), "method": run.method, "step": run.step}, found.pairs, found.weights.numpy()


def described(dataset: DatasetConfig, split: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the pairs are."""
    return {
        "dataset": dataset.name,
        "split": split,
        "noise": manifest["noise"],
        "min_score_gap": dataset.min_score_gap,
        "content": manifest["content"][split],
    }


def refuse_choices_of_data(overrides: Sequence[str]) -> None:
    """Raise ``UserError`` for overrides that a run would not read, since it brings its own data."""
    parts = ("dataset", "noise", "model", "filter", "cache_root")
    unread = [one for one in overrides if re.split(r"[.@=]", one.lstrip("+~"))[0] in parts]
    if unread:
        raise UserError(
            f"{', '.join(unread)} would not be read beside checkpoint=RUN, which brings its own data; leave out "
            "the one or the other"
        )


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The report as a table: a row per bin, a column per weighting, shares in percent."""
    data, gap = report["data"], report["gap"]
    names = list(report["counting"])
    titles = [name.replace("_", " ") for name in names]
    edges = [f"{one['from']:.4g} – {one['to']:.4g}" for one in report["bins"]]
    head = max(len("flipped pairs' share"), *map(len, edges))
    most = max(one["pairs"] for one in report["bins"])

    def row(label: str, pairs: Any, values: Mapping[str, float | None], bar: int = 0) -> str:
        cells = (f"{percent(values[name]):>{len(title)}}" for name, title in zip(names, titles, strict=True))
        return f"{label:{head}}  {pairs:>8}  {'  '.join(cells)}  {'█' * bar}".rstrip()

    shown = [
        f"{data['dataset']}, {data['split']} split: {report['pairs']} pairs, {report['flipped']} flipped by noise; "
        f"{report['ties']} ties; the chosen response scores less in {report['chosen_scores_less']}",
        f"score gap: mean {gap['mean']:.4g}, median {gap['median']:.4g}, largest {gap['max']:.4g}",
        "",
        "gradient mass in percent by weight of a pair (the hard filter keeps gaps from "
        f"{report['settings']['hard_filter']:g}, normalized is linear over batches of {report['settings']['batch']})",
        *([] if "run" not in data else [f"trained: {data['method']} after step {data['step']}, {data['run']}"]),
        "",
        f"{'score gap':{head}}  {'pairs':>8}  {'  '.join(titles)}",
    ]
    for label, one in zip(edges, report["bins"], strict=True):
        shown.append(row(label, one["pairs"], one["mass"], round(BAR * one["pairs"] / most)))
    shown.append(row("pairs that count", "", report["counting"]))
    if report["flipped"]:
        shown.append(row("flipped pairs' share", "", report["on_flipped"]))
    return shown


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    entry_point("gaps", main)
