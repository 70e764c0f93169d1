"""Checkpoints that are whole or absent: written aside, synced, renamed, then marked COMPLETED."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from src.data.cache import sync, sync_tree
from src.engine.base import Engine
from src.errors import UserError
from src.objective.objective import ObjectiveState

MARK = "COMPLETED"


@dataclass(frozen=True)
class Progress:
    """Everything of a run that is not weights, optimizer or random generators.

    ``step``: optimizer steps done. ``validated_step``: the last one after which validation ran (-1: none yet).
    ``best_value`` is that of the configured validation metric. ``metrics_length``: bytes of metrics.jsonl.
    """

    step: int = 0
    validated_step: int = -1
    best_step: int | None = None
    best_value: float | None = None
    metrics_length: int = 0
    objective_state: ObjectiveState = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; resuming under another identity is refused."""

    config_hash: str
    manifest_hash: str


@dataclass(frozen=True)
class Pending:
    """A checkpoint whose shards are being written, in the background where there is a future."""

    aside: Path
    final: Path
    state: Mapping[str, Any]
    best: bool
    writing: Future[Any] | None


class Checkpoints:
    """The ``checkpoints`` folder of one run: step directories, and the links ``last`` and ``best``."""

    def __init__(self, directory: Path, identity: Identity, tokenizer: PreTrainedTokenizerBase) -> None:
        self.directory, self.identity, self.tokenizer = directory, identity, tokenizer
        self.pending: Pending | None = None

    def save(self, engine: Engine, progress: Progress, *, best: bool) -> Path:
        """Write the checkpoint of ``progress.step``, point ``last`` (and ``best``) to it, remove what neither names."""
        self.settle(engine, wait=True)
        final, ranks = self.directory / f"step-{progress.step:08d}", engine.ranks
        aside = self.directory / f".writing-{progress.step:08d}"
        if ranks.from_main(lambda: (final / MARK).exists()):
            state = self.state(engine, progress)
            ranks.from_main(lambda: self.replace_state(final, state))
            ranks.from_main(lambda: self.name(final, best))
            return final
        ranks.from_main(lambda: self.prepare(aside, final))
        engine.save_model(aside / "model")
        writing = engine.save_shards(aside)
        self.pending = Pending(aside, final, self.state(engine, progress), best, writing)
        self.settle(engine, wait=writing is None)
        return final

    def settle(self, engine: Engine, *, wait: bool) -> None:
        """Give the checkpoint that is being written its name, once all ranks have written it; until then it is none."""
        pending = self.pending
        if pending is None:
            return
        if pending.writing is not None:
            if wait:
                pending.writing.result()
            if engine.ranks.anywhere(not pending.writing.done()):
                return
            pending.writing.result()
        engine.ranks.from_main(lambda: self.publish(pending.aside, pending.final, pending.state))
        engine.ranks.from_main(lambda: self.name(pending.final, pending.best))
        self.pending = None

    def prepare(self, aside: Path, final: Path) -> None:
        """An empty folder to write to."""
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        (aside / "model").mkdir(parents=True)

    def state(self, engine: Engine, progress: Progress) -> dict[str, Any]:
        """What trainer.pt holds; collective."""
        return {"progress": asdict(progress), "identity": asdict(self.identity), "engine": engine.training_state()}

    def publish(self, aside: Path, final: Path, state: Mapping[str, Any]) -> None:
        """Complete what the ranks wrote aside, and give it its name."""
        self.tokenizer.save_pretrained(aside / "model")
        torch.save(state, aside / "trainer.pt")
        sync_tree(aside)
        os.replace(aside, final)
        (final / MARK).touch()
        sync(self.directory)

    def name(self, final: Path, best: bool) -> None:
        """Point the links to it. ``best`` first: a run killed between the two resumes before this step and comes to
        the same best again."""
        if best:
            self.point("best", final)
        self.point("last", final)
        self.prune()

    def replace_state(self, final: Path, state: Mapping[str, Any]) -> None:
        """Exchange trainer.pt of a checkpoint that exists (same weights, more progress, such as a validation)."""
        path, aside = final / "trainer.pt", final / ".trainer.pt"
        torch.save(state, aside)
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)

    def point(self, name: str, target: Path) -> None:
        """Make the link ``name`` point to ``target``, in one indivisible move."""
        aside = self.directory / f".{name}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target.name)
        os.replace(aside, self.directory / name)
        sync(self.directory)

    def prune(self) -> None:
        """Remove step directories that no link names, and what a killed writer left."""
        kept = {os.readlink(self.directory / name) for name in ("last", "best") if (self.directory / name).is_symlink()}
        for path in (*self.directory.glob("step-*"), *self.directory.glob(".writing-*")):
            if path.name not in kept:
                shutil.rmtree(path)

    def resume(self, engine: Engine) -> Progress | None:
        """Load ``last`` into the engine; ``None`` when there is none; ``UserError`` when it cannot be trusted."""
        checkpoint = engine.ranks.from_main(self.newest)
        if checkpoint is None:
            return None
        saved = read_state(checkpoint)
        self.refuse_other_identity(checkpoint, saved["identity"])
        engine.load(checkpoint, saved["engine"])
        return Progress(**saved["progress"])

    def newest(self) -> Path | None:
        """The checkpoint to go on from; where there is none, what a killed writer left is removed."""
        last = self.directory / "last"
        if last.exists():
            return completed(last)
        if whole := sorted(mark.parent for mark in self.directory.glob(f"step-*/{MARK}")):
            return whole[-1]
        shutil.rmtree(self.directory, ignore_errors=True)
        return None

    def refuse_other_identity(self, checkpoint: Path, saved: Mapping[str, str]) -> None:
        """Raise ``UserError`` when the checkpoint was made by another configuration or from other data."""
        mine = asdict(self.identity)
        if saved["config_hash"] != mine["config_hash"]:
            raise UserError(
                f"{checkpoint} was written by configuration {saved['config_hash']}, this one is {mine['config_hash']}: "
                "resuming would mix two experiments; use another run_dir, or the configuration in config.yaml beside it"
            )
        if saved["manifest_hash"] != mine["manifest_hash"]:
            raise UserError(
                f"{checkpoint} was trained on prepared data {saved['manifest_hash'][:12]}, now it is "
                f"{mine['manifest_hash'][:12]}: the data changed; restore it, or remove the run directory"
            )


def completed(path: Path) -> Path:
    """The directory of a whole checkpoint; raises ``UserError`` for one that is absent or half-written."""
    resolved = path.resolve()
    if not resolved.is_dir():
        raise UserError(f"{path} is no checkpoint: there is no such directory; give a run directory that trained")
    if not (resolved / MARK).exists():
        raise UserError(
            f"{path} is a half-written checkpoint (it has no {MARK} file), so its weights cannot be trusted; "
            f"remove {resolved} and run the command again: it continues from the last whole one or from the start"
        )
    return resolved


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer.pt of a whole checkpoint, read without executing anything in it."""
    state: dict[str, Any] = torch.load(checkpoint / "trainer.pt", map_location="cpu", weights_only=True)
    return state
