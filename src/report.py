"""`python -m src.report`: runs, records and tables as HTML pages."""

from __future__ import annotations

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
    print(build_report([Path(checked.runs)], [Path(checked.records)], Path(checked.output), tables=tables))
    return 0


if __name__ == "__main__":
    entry_point("report", main)
