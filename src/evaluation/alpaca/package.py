"""The alpaca-eval package, used without its side effects: what it would fetch, write, print or set is kept from it.

Imported as it comes it reads a ``.env`` file into the environment, fetches two CSV files from the hub whenever a
length-controlled win rate is computed, switches a global option of scikit-learn, and writes weights, annotations and
leaderboards beside its own sources. Nothing of that happens through the functions below.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from src.errors import UserError

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""The package's configuration of AlpacaEval 2: prompt, judge's settings, parser of log-probs."""

LC = "length_controlled_v1"


@lru_cache(maxsize=1)
def alpaca_eval() -> ModuleType:
    """The package with its metrics and annotators; raises ``UserError`` where it is not installed."""
    environment = dict(os.environ)
    try:
        with quiet():
            package = importlib.import_module("alpaca_eval")
            for name in ("metrics.glm_winrate", "annotators", "utils"):
                importlib.import_module(f"alpaca_eval.{name}")
    except ImportError as error:
        raise UserError(
            f"AlpacaEval is scored by the package alpaca-eval, which cannot be imported ({error}); install what "
            "evaluations need with `make setup-evaluation`"
        ) from error
    finally:
        os.environ.clear()  # without what a .env file would have added
        os.environ.update(environment)
    return package


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the package's warnings, progress bars and log lines, all of which we count and say ourselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@dataclass(frozen=True)
class Fit:
    """A fitted regression, and the data and weights of its rows."""

    model: Any
    data: Any
    weights: Any


@dataclass
class Fits:
    """The fitted regressions of one ``local_files`` block, in order."""

    fits: list[Fit] = field(default_factory=list)


@contextlib.contextmanager
def local_files(texts: Mapping[str, str]) -> Iterator[Fits]:
    """The package's length-controlled win rate reads ``texts`` (file name -> content) where it would ask the hub.

    Yields the list into which each fitted regression goes. Everything is put back at the end.
    """
    import sklearn

    alpaca_eval()
    glm: Any = importlib.import_module("alpaca_eval.metrics.glm_winrate")
    found = Fits()
    download, fit = glm.hf_hub_download, glm.fit_LogisticRegressionCV

    def from_text(*, filename: str, **_: Any) -> io.StringIO:
        return io.StringIO(texts[filename])

    def kept(data: Any, *arguments: Any, **options: Any) -> Any:
        found.fits.append(Fit(fit(data, *arguments, **options), data, options.get("sample_weight")))
        return found.fits[-1].model

    glm.hf_hub_download, glm.fit_LogisticRegressionCV = from_text, kept
    try:
        with sklearn.config_context(), quiet():
            yield found
    finally:
        glm.hf_hub_download, glm.fit_LogisticRegressionCV = download, fit


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("alpaca-eval", "scikit-learn", "numpy", "pandas")}
