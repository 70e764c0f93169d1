"""`python -m src.evaluation.lm_harness checkpoint=RUN tasks=[gsm8k]`: lm-eval's tasks on a run; writes a record.

`stage=score samples=FILE` scores per-sample logs of lm-eval again, without model and data, and writes no record.
"""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import LmHarnessConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems


def main(config: DictConfig) -> int:
    if problems := problems_of(config, LmHarnessConfig):
        raise Problems(problems)
    from src.evaluation.harness.package import guest, require_lm_eval

    require_lm_eval()
    checked = cast(LmHarnessConfig, config)
    if checked.stage == "score":
        from src.evaluation.finish import show
        from src.evaluation.harness.stored import score_stored

        with guest(checked.cache_root):
            scored = score_stored(checked)
        show(scored, "lm_harness", checked.output)
    else:
        from src.evaluation.harness.measure import measure

        measure(checked)
    return 0


if __name__ == "__main__":
    entry_point("lm_harness", main)
