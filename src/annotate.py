"""`python -m src.annotate generations=DIR scorer=NAME`: scores for responses, and best/worst pairs made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, ListConfig

from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError
from src.schema import AnnotateConfig

if TYPE_CHECKING:
    from src.annotation.base import Scorer
    from src.annotation.inputs import Corpus


def main(config: DictConfig) -> int:
    if problems := problems_of(config, AnnotateConfig):
        raise Problems(problems)
    from src.annotation.annotate import AnnotateOptions, annotate, lines_of
    from src.annotation.base import Scorer
    from src.annotation.inputs import read_corpus
    from src.annotation.pairs import PAIRS
    from src.build import build

    checked = cast(AnnotateConfig, config)
    scorer = build(checked.scorer, "scorer")
    if not isinstance(scorer, Scorer):
        raise UserError(f"scorer._target_={checked.scorer['_target_']} gives no scores; choose one of conf/scorer")
    corpus = read_corpus(paths_of(checked.generations))
    directory = directory_of(checked, corpus, scorer)
    options = AnnotateOptions(
        shard_size=checked.shard_size,
        max_unscored=checked.max_unscored,
        min_gap=checked.min_gap,
        kept=Path(checked.cache_root) / "answers",
    )
    manifest = annotate(corpus, scorer, directory, options)
    print(f"{lines_of(manifest)}\n{directory / PAIRS}")
    return 0


def paths_of(generations: object) -> list[str]:
    """One path, or a list of them; raises ``UserError`` for anything else."""
    paths = list(generations) if isinstance(generations, ListConfig) else [generations]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"generations={generations} names nothing to annotate; give a path, or several: [A,B]")
    if len(set(paths)) < len(paths):
        raise UserError(f"generations={generations} names a path twice, so each response would stand beside itself")
    return cast(list[str], paths)


def directory_of(config: AnnotateConfig, corpus: Corpus, scorer: Scorer) -> Path:
    """``output``, or a name made of the scorer, the first input and a hash of what the scores depend on."""
    from src.data.cache import json_hash

    if config.output is not None:
        return Path(config.output)
    description = scorer.describe()
    identity = json_hash([[entry["hash"] for entry in corpus.inputs], description])[:10]
    first = re.sub(r"[^A-Za-z0-9_+-]+", "_", Path(corpus.inputs[0]["path"]).name.split(".")[0])
    return Path(config.output_root) / f"{description['scorer']}__{first[:80]}__{identity}"


if __name__ == "__main__":
    entry_point("annotate", main)
