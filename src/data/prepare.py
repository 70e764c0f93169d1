"""From a source to token ids on disk, once: split, noise, template, truncation, and a manifest of it all.

The folder ``<cache_root>/prepared/<key>`` holds ``train.arrow``, ``validation.arrow`` and ``manifest.json``, and where
the manifest cannot name them all, ``dropped.jsonl`` and ``flipped.jsonl`` with their ids. Its key is made of everything
the content depends on, so it is reused whenever it is there. Until it is, ``.<key>.shards`` beside it keeps what is
finished of it: a preparation that was killed goes on from there.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from src.data.cache import build_once, json_hash
from src.data.noise import Noise, NoNoise, settled
from src.data.pairset import PairSet, TokenizedPair
from src.data.preparation.measure import Measures
from src.data.preparation.options import PrepareOptions, truncate
from src.data.preparation.shards import Shards
from src.data.preparation.work import Work, noised_pairs
from src.data.preparation.workers import PreparationStopped
from src.data.sources.base import Source
from src.data.splits import TRAIN, VALIDATION
from src.data.templates import ChatTemplate
from src.errors import UserError

__all__ = ["PairSet", "PrepareOptions", "PreparedData", "TokenizedPair", "prepare", "truncate"]

VERSION = 1
"""Part of key and hash; raise it when the same input would give other token ids."""
LAYOUT = 2
"""Part of the key alone; raise it when the same token ids are written or described otherwise."""
KINDS = ("pairs", "demonstrations", "demonstrations_alone", "held_out")


@dataclass
class PreparedData:
    """Both splits and the manifest that describes them."""

    train: PairSet
    validation: PairSet
    manifest: dict[str, Any]


def prepare(
    source: Source,
    noise: Noise,
    template: ChatTemplate,
    options: PrepareOptions,
    cache_root: str | Path,
    kind: str = "pairs",
    workers: int | None = None,
) -> PreparedData:
    """Read, split, filter, perturb and tokenise ``source``, or take the result from the cache.

    ``kind="pairs"``: train and validation pairs; filter and noise touch train alone. ``kind="demonstrations"``:
    train holds the source's demonstrations whose prompt is not in validation (no rejected side, so neither has a part
    in it), validation the same pairs as for ``pairs``. ``kind="demonstrations_alone"``, of a source without pairs: both
    splits hold demonstrations. ``kind="held_out"``: all pairs are in validation, train is empty.

    ``workers``: processes that tokenise (each takes some 150 MB, more with long texts or a large vocabulary); 1 starts
    none, ``None`` one a core once there is enough to do. The result is the same, to the byte.

    Raises ``UserError`` for bad records, duplicate ids, unscored pairs where a filter needs scores, or a split that
    ends up empty.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
    noise = noise if kind == "pairs" else NoNoise()
    identity = {
        "version": VERSION,
        "kind": kind,
        "source": {"class": type(source).__name__, "fingerprint": source.fingerprint()},
        "template": {
            "name": template.name or "tokenizer",
            "hash": template.hash,
            "response_span": template.text.response_span,
            "stop_token": template.text.stop,
        },
        "noise": noise.describe(),
        "options": asdict(options if kind == "pairs" else replace(options, min_score_gap=0.0)),
    }
    key = json_hash(identity | {"layout": LAYOUT})[:16]
    folder = Path(cache_root) / "prepared" / key
    finished = folder.with_name(f".{key}.shards")

    def build(aside: Path) -> None:
        settled_noise, findings = settled(noise, noised_pairs(source, options))
        work = Work(template, settled_noise, options, kind)
        with _space_needed(folder), Shards(source, work, finished, workers) as shards:
            with Measures(aside, options, kind) as measures, _progress(shards) as show:
                for table in shards.tables():
                    measures.add(table)
                    show(table)
            manifest = identity | measures.finished(findings)
            manifest["hash"] = json_hash(manifest)
            manifest |= measures.further()
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    build_once(folder, build)
    if finished.exists():
        shutil.rmtree(finished, ignore_errors=True)
    return _opened(folder)


def _opened(folder: Path) -> PreparedData:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        train, validation = (PairSet(folder / f"{split}.arrow", manifest["hash"]) for split in (TRAIN, VALIDATION))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"the prepared data in {folder} is damaged ({error}); delete that folder") from error
    return PreparedData(train, validation, manifest)


@contextmanager
def _space_needed(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PreparationStopped(
            f"{folder.parent} has no space left for prepared data; make some, or set cache_root to another disk (what "
            "is finished is kept)"
        ) from error


@contextmanager
def _progress(shards: Shards) -> Iterator[Callable[[pa.Table], None]]:
    """What to call with each finished shard: on a terminal it moves a bar with the number of pairs."""
    if not sys.stderr.isatty():
        yield lambda table: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("tokenising"),
        BarColumn(pulse_style="bar.complete"),
        TextColumn("{task.completed:.0f} pairs, {task.fields[rate]:.0f} a second{task.fields[found]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate=0.0, found="")

        def show(table: pa.Table) -> None:
            state = progress.tasks[task]
            found = f", {shards.found} shards were there" if shards.found else ""
            pairs = state.completed + len(table)
            progress.update(task, completed=pairs, rate=pairs / max(state.elapsed or 0.0, 1e-3), found=found)

        yield show
