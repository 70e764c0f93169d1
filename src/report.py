"""`python -m src.report`: runs, records and tables as HTML pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems
from src.schema import ReportConfig


def main(config: DictConfig) -> int:
    if problems := problems_of(config, ReportConfig):
        raise Problems(problems)
    from src.reporting.html import build_report

    checked = cast(ReportConfig, config)
    tables = [Path(checked.tables)]
    sweep = [str(one) for one in ([checked.swept] if isinstance(checked.swept, str) else checked.swept or ())]
    page = build_report(
        [Path(checked.runs)],
        [Path(checked.records)],
        Path(checked.output),
        tables=tables,
        sweep=sweep,
        sweep_metrics=list(checked.sweep_metrics),
    )
    if sweep:
        print(page.parent / "sweeps" / f"{'+'.join(sweep)}.md")
    print(page)
    return 0


def translated(arguments: list[str]) -> list[str]:
    """``sweep=`` as the key that it stands for: to Hydra a key called like the group conf/sweep is a choice of it."""
    return [f"swept={argument[6:]}" if argument.startswith("sweep=") else argument for argument in arguments]


if __name__ == "__main__":
    sys.argv[1:] = translated(sys.argv[1:])
    entry_point("report", main)
