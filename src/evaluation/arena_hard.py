"""`python -m src.evaluation.arena_hard checkpoint=RUN`: Arena-Hard v0.1 of a model, or of stored judgments."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import ArenaHardConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError


def main(config: DictConfig) -> int:
    if problems := problems_of(config, ArenaHardConfig):
        raise Problems(problems)
    checked = cast(ArenaHardConfig, config)
    if checked.duplicates != "last" and checked.judgments is None:
        raise UserError("duplicates=all is of stored judgments; give judgments=FILE, or leave it out")
    if checked.judgments is not None or checked.battles is not None:
        return score_stored(checked)
    from src.evaluation.arena.benchmark import arena_hard
    from src.evaluation.stages import run_judged

    benchmark = arena_hard(checked)
    return run_judged(checked, benchmark, "src.evaluation.arena_hard", benchmark.read_outputs)


def score_stored(config: ArenaHardConfig) -> int:
    from src.evaluation.arena.stored import stored_scores
    from src.evaluation.finish import show

    show(stored_scores(config), "arena_hard", config.output)
    return 0


if __name__ == "__main__":
    entry_point("arena_hard", main)
