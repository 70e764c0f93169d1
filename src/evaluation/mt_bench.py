"""`python -m src.evaluation.mt_bench checkpoint=RUN`: MT-Bench of a model, or of stored judgments."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import MTBenchConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError


def main(config: DictConfig) -> int:
    if problems := problems_of(config, MTBenchConfig):
        raise Problems(problems)
    checked = cast(MTBenchConfig, config)
    if checked.judgments is None:
        raise UserError("judgments has no value; give FastChat's *_single.jsonl: stage=score judgments=FILE")
    return score_stored(checked)


def score_stored(config: MTBenchConfig) -> int:
    from src.evaluation.finish import show
    from src.evaluation.mtbench.stored import stored_scores

    show(stored_scores(config), "mt_bench", config.output)
    return 0


if __name__ == "__main__":
    entry_point("mt_bench", main)
