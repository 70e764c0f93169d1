"""What a plan must know of configurations. Composing one takes a quarter of a second, so the answers are kept."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import CONF, ROOT, composed, evaluation_hash
from src.errors import UserError

if TYPE_CHECKING:
    from src.schema import TrainConfig

PLANS = "plans"
"""Folder of the answers, below cache_root."""

COMPOSING = ("config.py", "schema.py", "benchmark_schema.py", "parts.py", "training/run.py", "experiments/facts.py")
"""Files of src/ that a composed configuration and its hash follow from, besides conf/."""


@dataclass(frozen=True)
class Base:
    """The SFT run that a run starts from: its directory, and what its own command must say."""

    run: str
    init: str
    seed: int


@dataclass(frozen=True)
class Facts:
    """Of a training configuration: its run directory, its SFT base if it has one, and where it starts without one.

    ``model``: a hub id or a folder where it starts from a model as it is; ``arguments``: what an evaluation must be
    told of that model, which is no run of ours.
    """

    run: str
    base: Base | None
    model: str | None
    arguments: tuple[str, ...]


class Composer:
    """Composes configurations; what came of it is kept below ``cache_root`` as long as conf/ stays as it is."""

    def __init__(self, cache_root: str) -> None:
        self.path = Path(cache_root) / PLANS / f"{fingerprint()}.json"
        self._kept: dict[str, Any] = kept(self.path)
        self._new: dict[str, Any] = {}
        self._configs: dict[tuple[str, ...], TrainConfig] = {}

    def config(self, arguments: tuple[str, ...]) -> TrainConfig:
        """The configuration of ``python -m src.train`` with ``arguments``; raises ``UserError``."""
        from src.config import compose_train

        if arguments not in self._configs:
            refuse_unknown_recipe(arguments)
            self._configs[arguments] = compose_train(list(arguments))
        return self._configs[arguments]

    def facts(self, arguments: tuple[str, ...]) -> Facts:
        """The facts of that configuration; raises ``UserError``."""
        key = json.dumps(["train", *arguments])
        if key not in self._kept:
            self._kept[key] = self._new[key] = asdict(facts_of(self.config(arguments)))
        found = dict(self._kept[key])
        base = None if found["base"] is None else Base(**found["base"])
        return Facts(found["run"], base, found["model"], tuple(found["arguments"]))

    def evaluation_hash(self, benchmark: str, arguments: tuple[str, ...]) -> str:
        """By which the record of an evaluation is found again; raises ``UserError``."""
        key = json.dumps([benchmark, *arguments])
        if key not in self._kept:
            found = evaluation_hash(benchmark, composed(benchmark, list(arguments)))
            self._kept[key] = self._new[key] = found
        return str(self._kept[key])

    def keep(self) -> None:
        """Write what is new beside what another process may have written meanwhile; a place that cannot be written
        costs time alone."""
        if not self._new:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            aside.write_text(json.dumps(kept(self.path) | self._new), encoding="utf-8")
            aside.replace(self.path)
        self._new = {}


def kept(path: Path) -> dict[str, Any]:
    """What was kept; nothing where the file is absent or damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


@cache
def fingerprint() -> str:
    """Of everything that a composed configuration and its hash follow from."""
    files = {path: f"conf/{path.relative_to(CONF)}" for path in CONF.rglob("*.yaml")}
    files |= {ROOT / "src" / name: f"src/{name}" for name in COMPOSING}
    digest = hashlib.sha256()
    for path, name in sorted(files.items()):
        digest.update(f"{name}\0".encode())
        with suppress(OSError):  # removed since the listing
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def facts_of(config: TrainConfig) -> Facts:
    """What a plan must know of ``config``."""
    from src.training.run import planned_directory, sft_base

    base = sft_base(config)
    start = None if base is None else Base(str(planned_directory(base)), base.model.init, base.seed)
    if config.model.init != "pretrained":
        return Facts(str(planned_directory(config)), start, None, ())
    stops = ",".join(f"'{token}'" for token in config.model.stop_tokens)
    template = () if config.model.template is None else (f"template={config.model.template}",)
    arguments = (*template, f"stop_tokens=[{stops}]", f"dtype={config.model.dtype}")
    return Facts(str(planned_directory(config)), start, str(config.model.path), arguments)


def refuse_unknown_recipe(arguments: tuple[str, ...]) -> None:
    """Raise ``UserError`` for a recipe asked for by name that is not there: Hydra would leave it out without a word."""
    for argument in arguments:
        recipe = argument.removeprefix("recipe=")
        if recipe not in (argument, "null") and not (CONF / "recipe" / f"{recipe}.yaml").exists():
            raise UserError(f"recipe={recipe} does not exist; add conf/recipe/{recipe}.yaml, or name another")
