"""`python -m src.evaluation.alpaca_eval checkpoint=RUN`: AlpacaEval 2, of a model or of stored judgments."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import AlpacaEvalConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems

MODULE = "src.evaluation.alpaca_eval"


def main(config: DictConfig) -> int:
    if problems := problems_of(config, AlpacaEvalConfig):
        raise Problems(problems)
    checked = cast(AlpacaEvalConfig, config)
    if problems := contradictions(checked):
        raise Problems(problems)
    if checked.annotations is not None:
        from src.evaluation.alpaca.stored import score_stored

        return score_stored(checked)
    from src.evaluation.alpaca.benchmark import AlpacaEval
    from src.evaluation.stages import run_judged

    benchmark = AlpacaEval.toy(checked) if checked.benchmark == "toy" else AlpacaEval.official(checked)
    return run_judged(checked, benchmark, MODULE, benchmark.read_outputs)


def contradictions(config: AlpacaEvalConfig) -> list[str]:
    """Keys that would not be read."""
    if config.annotations is None:
        if config.missing_rows != "error":
            return [
                f"missing_rows={config.missing_rows} is of stored judgments; give annotations=FILE, or leave it out"
            ]
        if config.checkpoint is None and config.outputs is None and "base_url" not in config.generator:
            return [
                "there is nothing to measure; give checkpoint=RUN, a model's answers: outputs=FILE, or stored "
                "judgments: stage=score annotations=FILE"
            ]
        return []
    given = [f"{key}={value}" for key in ("checkpoint", "outputs", "max_items") if (value := getattr(config, key))]
    given += [f"{key}=true" for key in ("dry_run",) if getattr(config, key)]
    given += [f"benchmark={config.benchmark}"] if config.benchmark != "official" else []
    problems = [f"{key} would not be read: annotations are scored as they are; leave it out" for key in given]
    if config.stage != "score":
        problems.append(f"annotations={config.annotations} are judged already; write stage=score")
    return problems


if __name__ == "__main__":
    entry_point("alpaca_eval", main)
