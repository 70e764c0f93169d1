"""`python -m src.evaluation.ranking checkpoint=RUN`: how well a run ranks chosen above rejected; writes a record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from src.cli import entry_point
from src.config import problems_of
from src.data.generalization import PARTS
from src.errors import Problems, UserError
from src.schema import RankingConfig

if TYPE_CHECKING:
    from src.data.pairset import PairSet
    from src.evaluation.items import Items
    from src.evaluation.ranks.measure import RankingJob
    from src.evaluation.records import Record
    from src.schema import TrainConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, RankingConfig):
        raise Problems(problems)
    from src.evaluation.benchmark import Scores
    from src.evaluation.finish import ModelScores, show
    from src.evaluation.ranks.data import refuse_contradictions
    from src.evaluation.ranks.stored import stored_scores
    from src.evaluation.records import write_record

    checked = cast(RankingConfig, config)
    refuse_contradictions(checked)
    if checked.stage == "score" and checked.dry_run:
        print(f"stage=score would read {checked.samples}; it costs nothing", file=sys.stderr)
    elif checked.stage == "score":
        show(stored_scores(checked.samples, checked.min_score_gap), "ranking", checked.output)
    elif checked.dry_run:
        print("\n".join(prepared(checked)[0].plan(checked)), file=sys.stderr)
    else:
        record, items = rank(checked)
        path = write_record(Path(checked.records_root), record, items)
        if checked.output == "json":
            scores = Scores(record.metrics, record.counts, record.notes)
            show([ModelScores(Path(record.run.directory).resolve().name, None, scores)], "ranking", "json")
        else:
            title = f"{record.run.directory} ({record.run.checkpoint}, {checked.split})"
            print("\n".join([title, *lines_of(record), str(path)]))
    return 0


def lines_of(record: Record) -> list[str]:
    """One line per metric: value, 95 % interval and count, or why there is none; then the notes."""
    lines = []
    for name, metric in record.metrics.items():
        if metric["value"] is None:
            lines.append(f"  {name:32s} — ({metric.get('reason', 'no value')})")
            continue
        interval = "" if metric["low"] is None else f"  [{metric['low']:.4g}, {metric['high']:.4g}]"
        lines.append(f"  {name:32s} {metric['value']:.4g}{interval}  n={metric['n']}")
    return lines + [f"  note: {note}" for note in record.notes]


def rank(config: RankingConfig) -> tuple[Record, Items]:
    """Log-probs of every pair of the split under the checkpoint, the metrics made of them, and each pair's values."""
    from src.config import evaluation_hash
    from src.environment import environment
    from src.evaluation.ranks.measure import measured, noted
    from src.evaluation.records import DataInfo, Record, describe_run

    job, content_hash, notes = prepared(config)
    print("\n".join(job.plan(config)), file=sys.stderr, flush=True)
    scores, sources = measured(config, job)
    scores = noted(scores, notes)
    settings = {"which": config.which, "min_score_gap": config.min_score_gap, "max_pairs": config.max_pairs}
    record = Record(
        benchmark="ranking",
        run=describe_run(Path(cast(str, config.checkpoint)), config.which),
        data=DataInfo(config.split, content_hash, len(job.policy.pairs)),
        metrics=scores.metrics,
        settings=settings | ({"allow_unfinished": True} if notes else {}),
        environment=environment(),
        command=" ".join(["python -m src.evaluation.ranking", *sys.argv[1:]]),
        counts=scores.counts,
        notes=scores.notes,
        sources=sources,
        evaluation_hash=evaluation_hash("ranking", config),
        scale=config.scale or "",
    )
    return record, scores.items


def prepared(config: RankingConfig) -> tuple[RankingJob, str, list[str]]:
    """What is to be measured, the hash of its prepared pairs, and notes on the run."""
    from src.evaluation.ranks.data import refuse_other_data, test_pairs, unfinished
    from src.evaluation.records import describe_run

    directory = Path(cast(str, config.checkpoint))
    describe_run(directory, config.which)

    from src.evaluation.subject import refuse_other_template
    from src.generation.policy import policy_of_run, trained_config
    from src.training.assemble import build_objective, build_source, prepare_data, prepare_test_pairs
    from src.training.checkpoint import completed

    trained = trained_config(directory)
    checkpoint = completed(directory / "checkpoints" / config.which)
    notes = unfinished(directory, config.allow_unfinished)
    objective = build_objective(trained)
    if config.split == "train" and not objective.needs.rejected:
        raise UserError("split=train of an SFT run holds demonstrations, which have nothing to rank; use validation")
    policy = policy_of_run(directory, config.which)  # its tokenizer is the one that its token ids were made with
    source = build_source(trained)
    refuse_demonstrations(directory, trained, source)
    refuse_other_template(directory, policy)
    data = prepare_data(trained, policy.template, source, objective)
    refuse_other_data(directory, data.manifest)
    if config.split in PARTS:
        data = prepare_test_pairs(trained, policy.template, test_pairs(config, trained, source))
    split, name = (data.train, "train") if config.split == "train" else (data.validation, "validation")
    made_from = {"split": config.split, "content": data.manifest["content"][name], "template": policy.template.hash}
    job = job_of(config, trained, checkpoint / "model", split, made_from)
    return job, data.manifest["content"][name], notes


def refuse_demonstrations(directory: Path, trained: TrainConfig, source: Any) -> None:
    """Raise ``UserError`` for a run on data without pairs."""
    from src.data.sources import has_pairs

    if not has_pairs(source):
        raise UserError(
            f"{directory} was trained on dataset={trained.dataset.name}, which has demonstrations alone, so there is "
            "nothing to rank; rank a run on preference pairs"
        )


def job_of(
    config: RankingConfig, trained: TrainConfig, weights: Path, split: PairSet, made_from: dict[str, str]
) -> RankingJob:
    """The pairs of ``split`` under the run's weights and under those that it started from."""
    from src.evaluation.ranks.keeping import PairJob
    from src.evaluation.ranks.measure import RankingJob
    from src.evaluation.rewards import Weights, initial_weights
    from src.training.assemble import at_most, build_objective
    from src.training.run import sft_base

    objective = build_objective(trained)
    pairs = [split[index] for index in range(at_most(len(split), config.max_pairs))]
    initial = initial_weights(trained, weights, sft_base)
    jobs = [
        None
        if path is None
        else PairJob(
            name,
            Weights(path, trained.model),
            made_from,
            pairs,
            objective.needs.per_token,
            config.device,
            config.micro_batch_size,
        )
        for name, path in (
            (f"{Path(cast(str, config.checkpoint)).resolve().name}__{config.which}", weights),
            (f"reference__{trained.dataset.name}", initial),
        )
    ]
    policy, reference = jobs
    assert policy is not None
    return RankingJob(Path(cast(str, config.checkpoint)).resolve().name, policy, reference, objective)


if __name__ == "__main__":
    entry_point("ranking", main)
