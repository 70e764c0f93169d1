"""`python -m src.evaluation.mt_bench checkpoint=RUN`: MT-Bench of a model, or of stored answers or judgments."""

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
    return measure(checked) if checked.judgments is None else score_stored(checked)


def score_stored(config: MTBenchConfig) -> int:
    """Judgments that are stored already."""
    from src.evaluation.finish import show
    from src.evaluation.mtbench.stored import stored_scores

    show(stored_scores(config), "mt_bench", config.output)
    return 0


def measure(config: MTBenchConfig) -> int:
    """A model's answers, which are judged here."""
    from src.build import build
    from src.evaluation.mtbench.benchmark import mt_bench
    from src.evaluation.stages import run_judged

    if config.checkpoint is None and config.outputs is None and build(config.generator, "generator").needs_weights:
        raise UserError(
            "there is nothing to measure; give checkpoint=RUN, outputs=FILE (stored answers), generator=openai (a "
            "model elsewhere), or stage=score judgments=FILE (stored judgments)"
        )
    if config.duplicates != "last":
        raise UserError(
            f"duplicates={config.duplicates} would not be read without judgments=FILE: here every answer is judged "
            "once; leave it out"
        )
    benchmark = mt_bench(config)
    return run_judged(config, benchmark, "src.evaluation.mt_bench", benchmark.read_outputs)


if __name__ == "__main__":
    entry_point("mt_bench", main)
