"""`python -m src.evaluation.rm_bench checkpoint=RUN`: RM-Bench of a run's reward, or of stored scores."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import RMBenchConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems


def main(config: DictConfig) -> int:
    if problems := problems_of(config, RMBenchConfig):
        raise Problems(problems)
    checked = cast(RMBenchConfig, config)
    from src.evaluation.rmbench.options import refuse_contradictions

    refuse_contradictions(checked)
    return score_stored(checked)


def score_stored(config: RMBenchConfig) -> int:
    from src.evaluation.finish import show
    from src.evaluation.rmbench.stored import stored_scores

    show(stored_scores(config), "rm_bench", config.output)
    return 0


if __name__ == "__main__":
    entry_point("rm_bench", main)
