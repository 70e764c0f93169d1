"""`python -m src.evaluation.ranking checkpoint=RUN`: how well a run ranks chosen above rejected; writes a record."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from src.cli import entry_point
from src.config import problems_of
from src.data.generalization import PARTS
from src.errors import Problems, UserError
from src.schema import RankingConfig

if TYPE_CHECKING:
    from src.data.pairset import TokenizedPair
    from src.data.sources import Source
    from src.evaluation.records import Record
    from src.evaluation.rewards import Weights
    from src.objective.types import PairLogProbs
    from src.schema import TrainConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, RankingConfig):
        raise Problems(problems)
    from src.evaluation.records import write_record

    record = rank(cast(RankingConfig, config))
    path = write_record(Path(config.records_root), record)
    print(
        "\n".join([f"{record.run.directory} ({record.run.checkpoint}, {config.split})", *lines_of(record), str(path)])
    )
    return 0


def lines_of(record: Record) -> list[str]:
    """One line per metric: value, 95 % interval and count, or why there is none."""
    lines = []
    for name, metric in record.metrics.items():
        if metric["value"] is None:
            lines.append(f"  {name:32s} — ({metric.get('reason', 'no value')})")
            continue
        interval = "" if metric["low"] is None else f"  [{metric['low']:.4g}, {metric['high']:.4g}]"
        lines.append(f"  {name:32s} {metric['value']:.4g}{interval}  n={metric['n']}")
    return lines


def rank(config: RankingConfig) -> Record:
    """Log-probs of every pair of the split under the checkpoint, and the metrics made of them."""
    from src.environment import environment
    from src.evaluation.records import DataInfo, Record, describe_run
    from src.evaluation.statistics import ranking_metrics
    from src.generation.policy import trained_config

    directory = Path(config.checkpoint)
    run = describe_run(directory, config.which)
    trained = trained_config(directory)
    columns, content_hash = measured(config, trained, directory)
    metrics = ranking_metrics(**columns, min_score_gap=config.min_score_gap)
    settings = {"which": config.which, "min_score_gap": config.min_score_gap, "max_pairs": config.max_pairs}
    return Record(
        benchmark="ranking",
        run=run,
        data=DataInfo(config.split, content_hash, len(columns["chosen_sum"])),
        metrics=metrics,
        settings=settings,
        environment=environment(),
        command=" ".join(["python -m src.evaluation.ranking", *sys.argv[1:]]),
    )


def measured(config: RankingConfig, trained: TrainConfig, directory: Path) -> tuple[dict[str, Any], str]:
    """The columns that ``ranking_metrics`` takes, and the hash of the prepared pairs."""
    from src.data.sources import has_pairs
    from src.data.tokenizer import load_tokenizer
    from src.evaluation.rewards import Weights, initial_weights
    from src.training.assemble import (
        at_most,
        build_objective,
        build_source,
        build_template,
        prepare_data,
        prepare_test_pairs,
    )
    from src.training.checkpoint import completed
    from src.training.run import sft_base

    checkpoint = completed(directory / "checkpoints" / config.which)
    objective = build_objective(trained)
    if config.split == "train" and not objective.needs.rejected:
        raise UserError("split=train of an SFT run holds demonstrations, which have nothing to rank; use validation")
    # the checkpoint's own tokenizer: the one its token ids were made with
    template = build_template(trained, load_tokenizer(str(checkpoint / "model")))
    source = build_source(trained)
    if not has_pairs(source):
        raise UserError(
            f"{directory} was trained on dataset={trained.dataset.name}, which has demonstrations alone, so there is "
            "nothing to rank; rank a run on preference pairs"
        )
    data = prepare_data(trained, template, source, objective)
    refuse_other_data(directory, data.manifest)
    if config.split in PARTS:
        data = prepare_test_pairs(trained, template, test_pairs(config, trained, source))
    split, name = (data.train, "train") if config.split == "train" else (data.validation, "validation")
    pairs = [split[index] for index in range(at_most(len(split), config.max_pairs))]
    columns: dict[str, Any] = {
        "chosen_scores": [pair.chosen_score for pair in pairs],
        "rejected_scores": [pair.rejected_score for pair in pairs],
        "flipped": [pair.flipped for pair in pairs],
        "prompt_ids": [tuple(pair.prompt_ids) for pair in pairs],
    }
    tokens = objective.needs.per_token
    policy = log_probs(config, Weights(checkpoint / "model", trained.model), pairs, per_token=tokens)
    for side, values in (("chosen", policy.chosen), ("rejected", policy.rejected)):
        columns |= {f"{side}_sum": values.summed.double().numpy(), f"{side}_tokens": values.tokens.numpy()}
    initial = initial_weights(trained, checkpoint / "model", sft_base)
    reference = None
    if initial is not None:
        reference = log_probs(config, Weights(initial, trained.model), pairs, per_token=tokens)
    if reference is not None:
        columns |= {
            "reference_chosen_sum": reference.chosen.summed.double().numpy(),
            "reference_rejected_sum": reference.rejected.summed.double().numpy(),
        }
    if reference is not None or not objective.needs.reference:
        rewards = objective.rewards(policy, reference)
        columns |= {"chosen_reward": rewards.chosen.numpy(), "rejected_reward": rewards.rejected.numpy()}
    return columns, data.manifest["content"][name]


def test_pairs(config: RankingConfig, trained: TrainConfig, source: Source) -> Source:
    """The pairs of a generalization scenario, disjoint from those trained on; raises ``UserError`` where the run held
    nothing back."""
    from src.data.generalization import SeenPairs, TestPairs

    if not isinstance(source, SeenPairs):
        raise UserError(
            f"split={config.split} needs prompts and writers that the run was kept from, but {config.checkpoint} was "
            f"trained on all of dataset={trained.dataset.name}; train with generalization@dataset=held_out"
        )
    dataset = trained.dataset
    found = TestPairs(source, config.split, dataset.validation_fraction, dataset.split_seed)
    found.refuse_overlap()
    return found


def refuse_other_data(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ``UserError`` when the data now prepares to something else than what the run saw."""
    trained = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    if trained["hash"] != manifest["hash"]:
        differing = [key for key in manifest if manifest[key] != trained.get(key) and key != "hash"]
        raise UserError(
            f"{directory} was trained on prepared data {trained['hash'][:12]}, but the same configuration now gives "
            f"{manifest['hash'][:12]} (different: {', '.join(differing)}), so held-out pairs may have been trained on; "
            "restore the data, or train again"
        )


def log_probs(
    config: RankingConfig, weights: Weights, pairs: Sequence[TokenizedPair], *, per_token: bool
) -> PairLogProbs:
    """Log-probs of ``pairs`` under ``weights``, also token by token where asked for; the model is gone afterwards."""
    from src.evaluation.rewards import LogProbScorer

    return LogProbScorer(weights, config.device).pairs(pairs, config.micro_batch_size, per_token=per_token)


if __name__ == "__main__":
    entry_point("ranking", main)
