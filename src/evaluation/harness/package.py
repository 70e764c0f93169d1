"""lm-eval as a guest: whether it is there, what it may print, and where its data sets are cached."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError


def require_lm_eval() -> str:
    """The version of lm-eval; raises ``UserError`` where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-eval is not installed here, and it runs these tasks; install it with `make setup-evaluation`"
        )
    return importlib.metadata.version("lm_eval")


def task_folder() -> Path:
    """Where lm-eval keeps its tasks' YAML files."""
    import lm_eval

    return Path(str(lm_eval.__file__)).parent / "tasks"


@contextlib.contextmanager
def guest(cache_root: str) -> Iterator[None]:
    """Inside, what lm-eval prints goes to standard error, and prepared data sets go below ``cache_root``."""
    import datasets.config

    config = datasets.config
    before = config.HF_DATASETS_CACHE
    folder = Path(cache_root).absolute() / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    config.HF_DATASETS_CACHE = folder
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.HF_DATASETS_CACHE = before
