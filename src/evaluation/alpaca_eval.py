"""`python -m src.evaluation.alpaca_eval checkpoint=RUN`: AlpacaEval 2, of a model or of stored judgments."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import AlpacaEvalConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems


def main(config: DictConfig) -> int:
    if problems := problems_of(config, AlpacaEvalConfig):
        raise Problems(problems)
    checked = cast(AlpacaEvalConfig, config)
    from src.evaluation.alpaca.stored import score_stored

    return score_stored(checked)


if __name__ == "__main__":
    entry_point("alpaca_eval", main)
