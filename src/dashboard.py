"""`python -m src.dashboard`: W&B workspaces of our own panels, checked offline, published with an account."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from src.benchmark_schema import DashboardConfig
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems

FLAGS = {f"--{name}": f"action={name}" for name in ("publish", "check", "write", "records")}


def main(config: DictConfig) -> int:
    if problems := problems_of(config, DashboardConfig):
        raise Problems(problems)
    from src.reporting import dashboard

    checked = cast(DashboardConfig, config)
    folder, chosen = Path(checked.definitions), dashboard.boards(list(checked.boards))
    if checked.action == "records":
        return records(checked)
    if checked.action == "check":
        if wrong := dashboard.problems(folder, chosen):
            raise Problems(wrong)
        print(f"{len(chosen)} dashboards in {folder} are what src/reporting/panels.py says")
    elif checked.action == "write":
        print("\n".join(map(str, dashboard.write(folder, chosen))))
    else:
        print("\n".join(dashboard.publish(folder, chosen, checked.entity, checked.project)))
    return 0


def records(config: DashboardConfig) -> int:
    """Every record as a W&B run; prints how many are new."""
    from src.evaluation.records import read_records
    from src.reporting.wandb_records import mirror_records
    from src.schema import LoggingConfig

    logging = LoggingConfig(config.backend, config.project, config.entity, samples=config.samples)
    done = mirror_records(read_records([Path(config.records)]), logging, Path(config.offline_root))
    print(f"{done.new} records are new in W&B, {done.known} were there")
    if config.backend == "wandb_offline" and done.new:
        print(f"upload them with: wandb sync {Path(config.offline_root) / 'wandb' / 'offline-run-*'}")
    return 0


if __name__ == "__main__":
    sys.argv[1:] = [FLAGS.get(argument, argument) for argument in sys.argv[1:]]
    entry_point("dashboard", main)
