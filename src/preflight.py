"""`python -m src.preflight <overrides of src.train>`: every problem at once, or the plan of the run."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from src.cli import entry_point


def main(config: DictConfig) -> int:
    from src.training.checks import checked
    from src.training.plan import plan_of
    from src.training.plan_text import print_plan

    print_plan(plan_of(checked(config, strict=False)), sys.argv[1:])
    return 0


if __name__ == "__main__":
    entry_point("train", main)
