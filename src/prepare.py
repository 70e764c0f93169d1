"""`python -m src.prepare <overrides of src.train>`: data, and with reference=true the reference, before a training."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import entry_point


def main(config: DictConfig) -> int:
    from src.engine.join import together
    from src.training.checks import checked
    from src.training.preparing import prepare, separated

    training, reference = separated(config)
    return together(lambda: prepare(checked(training, strict=True), reference=reference))


if __name__ == "__main__":
    entry_point("prepare", main)
