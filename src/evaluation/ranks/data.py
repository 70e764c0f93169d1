"""Which pairs of a run may be ranked, and which runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.generalization import SeenPairs, TestPairs
from src.errors import Problems, UserError
from src.evaluation.subject import refuse_unfinished

if TYPE_CHECKING:
    from src.data.sources import Source
    from src.schema import RankingConfig, TrainConfig


def refuse_contradictions(config: RankingConfig) -> None:
    """Raise ``Problems`` for keys that are missing or would not be read."""
    problems = []
    if config.stage == "score":
        given = {
            "checkpoint": config.checkpoint,
            "which": None if config.which == "best" else config.which,
            "split": None if config.split == "validation" else config.split,
            "max_pairs": config.max_pairs,
            "allow_unfinished": config.allow_unfinished or None,
        }
        problems += [
            f"{key}={value} would not be read with stage=score, which reads stored pairs alone; leave it out"
            for key, value in given.items()
            if value is not None
        ]
        if config.samples is None:
            problems.append("stage=score scores stored pairs, and samples has no value; give samples=FILE")
    else:
        if config.checkpoint is None:
            problems.append(
                "checkpoint has no value; set it on the command line: checkpoint=..., or score stored pairs: "
                "stage=score samples=FILE"
            )
        if config.samples is not None:
            problems.append(f"samples={config.samples} would not be read; add stage=score, or leave it out")
    if problems:
        raise Problems(problems)


def unfinished(directory: Path, allowed: bool) -> list[str]:
    """What a record must say of a run that did not finish ([] of one that did); raises ``UserError`` for one unless it
    is ``allowed``."""
    try:
        refuse_unfinished(directory)
    except UserError as error:
        if not allowed:
            raise UserError(f"{error}, or rank it as it is: allow_unfinished=true") from error
        return ["the run did not finish: its numbers are those of a run cut short"]
    return []


def test_pairs(config: RankingConfig, trained: TrainConfig, source: Source) -> Source:
    """The pairs of a generalization scenario, disjoint from those trained on; raises ``UserError`` where the run held
    nothing back."""
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
