"""The reference's log-probs of every pair, computed once by all ranks, in parts that survive a kill."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from src.data.mismatch import RULE
from src.data.pairset import TokenizedPair
from src.data.prepare import PreparedData
from src.data.reference import ReferenceStore, reference_key
from src.engine.local import LocalEngine
from src.errors import UserError
from src.model.adapter import adapters_off
from src.objective.types import PairLogProbs
from src.schema import TrainConfig
from src.training.assemble import Mismatched, PreparedLoader, in_order
from src.training.rundir import say

REFERENCE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference, nats per token, between reference and untrained policy."""

PART = 64
"""Forwards whose log-probs are written together: what a killed pass has to repeat at most."""


def with_references(
    loader: PreparedLoader, engine: LocalEngine, data: PreparedData, config: TrainConfig, weights: str
) -> PreparedLoader:
    """The loader with the reference's log-probs of both splits. ``weights``: the hash of the untrained policy's.

    The reference is the policy before any step: for an adapter its base, so that runs with and without one share it.
    No second model is ever in memory.
    """

    def store(split: str, pairs: Sequence[TokenizedPair], what: str) -> ReferenceStore:
        key = reference_key(data.manifest["hash"], split, weights, config.model.dtype)
        path = Path(config.cache_root) / "reference" / f"{key}.safetensors"
        return reference_store(path, engine, loader, pairs, what)

    def mismatched(split: str, found: Mismatched | None) -> Mismatched | None:
        if found is None:
            return None
        return replace(found, reference=store(f"{split} {RULE}", found.pairs, f"mismatched {split} pairs"))

    loader = replace(
        loader,
        train_reference=store("train", data.train, "train pairs"),
        validation_reference=store("validation", data.validation, "validation pairs"),
        train_mismatched=mismatched("train", loader.train_mismatched),
        validation_mismatched=mismatched("validation", loader.validation_mismatched),
    )
    check_reference(engine, loader, REFERENCE_TOLERANCE[config.model.dtype])
    return loader


def reference_store(
    path: Path, engine: LocalEngine, loader: PreparedLoader, pairs: Sequence[TokenizedPair], what: str
) -> ReferenceStore:
    """The store at ``path``, computed and written when it is not there yet.

    Every part of the pass is a file beside it until all are there, so that a killed pass goes on where it was.
    """
    ranks = engine.ranks
    if ranks.from_main(path.exists):
        return ranks.from_main(partial(ReferenceStore.load, path))
    say(f"reference log-probs: computing those of {len(pairs)} {what} once")
    folder = path.with_suffix(".parts")
    forwards = in_order(len(pairs), loader.validation_batch)
    parts = []
    for start in range(0, len(forwards), PART):
        chunk = forwards[start : start + PART]
        part = folder / f"{chunk[0].start}-{chunk[-1].stop}.safetensors"
        if not ranks.from_main(part.exists):
            found = ReferenceStore(PairLogProbs.concatenate([forward(engine, loader, pairs, each) for each in chunk]))
            if len(chunk) == len(forwards):
                parts.append(found)
                break
            ranks.from_main(partial(found.save, part))
        parts.append(ranks.from_main(partial(ReferenceStore.load, part)))
    store = ReferenceStore(PairLogProbs.concatenate([part.log_probs for part in parts]))
    ranks.from_main(partial(keep, store, path, folder))
    return store


def keep(store: ReferenceStore, path: Path, folder: Path) -> None:
    """Write the whole store; its parts are not needed any more."""
    store.save(path)
    shutil.rmtree(folder, ignore_errors=True)


def forward(
    engine: LocalEngine, loader: PreparedLoader, pairs: Sequence[TokenizedPair], indices: Sequence[int]
) -> PairLogProbs:
    """The reference's log-probs of the pairs at ``indices``, on the CPU."""
    with torch.no_grad(), adapters_off(engine.model):
        return engine.log_probs(loader.batch(pairs, indices, None)).to(torch.device("cpu"))


def check_reference(engine: LocalEngine, loader: PreparedLoader, tolerance: float) -> None:
    """Before any step the policy is the reference; raises ``UserError`` when the stored log-probs say otherwise."""
    first = loader.window(0)[0]
    gaps = []
    for batch in [first] if first.mismatched is None else [first, first.mismatched]:
        assert batch.reference is not None
        with torch.no_grad(), adapters_off(engine.model):
            policy = engine.log_probs(batch)
        for mine, stored in ((policy.chosen, batch.reference.chosen), (policy.rejected, batch.reference.rejected)):
            gap = (mine.summed - stored.summed).abs()
            # a mismatched response may be cut to a few improbable tokens, whose rounding only a whole batch averages
            gaps.append((gap / stored.tokens.clamp(min=1)).max() if batch is first else gap.sum() / stored.tokens.sum())
    worst = float(torch.stack(gaps).max())
    if not worst <= tolerance:
        raise UserError(
            f"the stored reference log-probs differ from the untrained policy by {worst:.2g} nats per token "
            f"(at most {tolerance:g} is rounding), so they belong to other weights or tokens; "
            "remove the folder 'reference' of cache_root, so that they are computed again"
        )
