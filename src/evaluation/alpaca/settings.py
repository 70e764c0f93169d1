"""How the configuration says that judgments are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.evaluation.alpaca.scores import Rules, read_regularization

if TYPE_CHECKING:
    from src.benchmark_schema import AlpacaEvalConfig


def rules_of(config: AlpacaEvalConfig) -> Rules:
    """The rules; raises ``UserError`` for a C that is none."""
    return Rules(read_regularization(plain(config.regularization)), config.missing_rows == "as_published")


def plain(value: Any) -> Any:
    """A value of the configuration as plain data."""
    from omegaconf import Container, OmegaConf

    return OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
