"""`python -m src.train`: train one configuration, resume it, or skip it when it is finished."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import entry_point
from src.config import finished


def main(config: DictConfig) -> int:
    checked = finished(config)
    from src.training.run import train  # late: torch and transformers take seconds to import

    return train(checked)


if __name__ == "__main__":
    entry_point("train", main)
