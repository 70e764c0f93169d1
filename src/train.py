"""`python -m src.train`: train one configuration, resume it, or skip it when it is finished."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import entry_point


def main(config: DictConfig) -> int:
    # late: torch and transformers take seconds to import, and --help and --cfg need neither
    from src.engine.join import together
    from src.training.checks import checked
    from src.training.run import train

    return together(lambda: train(checked(config, strict=True)))


if __name__ == "__main__":
    entry_point("train", main)
