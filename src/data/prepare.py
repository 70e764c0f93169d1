"""From a source to token ids on disk, once: split, noise, template, truncation, and a manifest of it all.

The folder ``<cache_root>/prepared/<key>`` holds ``train.arrow``, ``validation.arrow`` and ``manifest.json``; its
key is made of everything the content depends on, so it is reused whenever it is there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from src.data.cache import build_once
from src.data.filter import ScoreFilter
from src.data.noise import Noise, NoNoise, settled
from src.data.pairs import Demonstration, PreferencePair
from src.data.pairset import SIDES, PairSet, PairWriter, TokenizedPair
from src.data.sources.base import Skipped, Source, read_records
from src.data.splits import TRAIN, VALIDATION, split_of
from src.data.templates import ChatTemplate, TemplateRefusal
from src.errors import UserError

__all__ = ["PairSet", "PrepareOptions", "PreparedData", "TokenizedPair", "prepare", "truncate"]

VERSION = 1
"""Part of the key; raise it when the same input would give other token ids."""
KINDS = ("pairs", "demonstrations")
TRUNCATIONS = ("simpo", "drop")
BATCH = 512
EXAMPLES = 20
QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}

Item = tuple[str, PreferencePair | Demonstration]
"""A split and a record of it."""


@dataclass(frozen=True)
class PrepareOptions:
    """Lengths in tokens. Raises ``UserError`` for settings that cannot work.

    ``truncation``: ``simpo`` (a prompt keeps its end, then responses are cut, as in the SimPO family's code)
    or ``drop`` (what is too long is left out and counted). ``min_score_gap``: smallest difference of the two scores
    of a training pair, in their unit; smaller ones are left out and counted. 0 keeps all, scored or not.
    """

    max_length: int
    max_prompt_length: int
    truncation: str = "simpo"
    validation_fraction: float = 0.05
    split_seed: int = 0
    min_score_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise UserError(f"dataset.truncation={self.truncation} is unknown; use one of {', '.join(TRUNCATIONS)}")
        if not 2 <= self.max_prompt_length < self.max_length:
            raise UserError(
                f"dataset.max_prompt_length={self.max_prompt_length} must be at least 2 and smaller than "
                f"dataset.max_length={self.max_length}: the rest is what a response may take"
            )
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"dataset.validation_fraction={self.validation_fraction} must be between 0 and 1: "
                "training needs held-out prompts to evaluate on (0.05 keeps a twentieth)"
            )


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
) -> PreparedData:
    """Read, split, filter, perturb and tokenise ``source``, or take the result from the cache.

    ``kind="pairs"``: train and validation pairs; filter and noise touch train alone. ``kind="demonstrations"``:
    train holds the source's demonstrations whose prompt is not in validation (no rejected side, so neither has a part
    in it), validation the same pairs as for ``pairs``.

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
    key = _json_hash(identity)[:16]
    folder = Path(cache_root) / "prepared" / key

    def build(aside: Path) -> None:
        builder = _Builder(source, noise, template, options, kind)
        manifest = identity | builder.build(aside)
        manifest["hash"] = _json_hash(manifest)
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    build_once(folder, build)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        train, validation = (PairSet(folder / f"{split}.arrow", manifest["hash"]) for split in (TRAIN, VALIDATION))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"the prepared data in {folder} is damaged ({error}); delete that folder") from error
    return PreparedData(train, validation, manifest)


def truncate(
    prompt: list[int], responses: list[list[int]], options: PrepareOptions, bos_id: int | None = None
) -> tuple[list[int], list[list[int]]] | str:
    """Fit a prompt and its responses into ``options``, or the reason why they are dropped.

    ``simpo`` is the truncation of the SimPO repository (methods section 1): all sides are judged by the longest
    response; if it does not fit, the prompt keeps its last ``max_prompt_length`` tokens, and if it still does not,
    responses are cut to ``max_length - max_prompt_length``. Other than there, a prompt that is cut keeps its bos.
    """
    longest = max(map(len, responses))
    if options.truncation == "drop":
        if len(prompt) > options.max_prompt_length:
            return "prompt too long"
        return "response too long" if len(prompt) + longest > options.max_length else (prompt, responses)
    if len(prompt) + longest > options.max_length and len(prompt) > options.max_prompt_length:
        head = prompt[:1] if prompt[0] == bos_id else []
        prompt = head + prompt[len(prompt) - options.max_prompt_length + len(head) :]
    if len(prompt) + longest > options.max_length:
        responses = [response[: options.max_length - options.max_prompt_length] for response in responses]
    return prompt, responses


@dataclass
class _Tally:
    """What goes into the manifest about one split."""

    digest: str = ""
    lengths: dict[str, array[int]] = field(default_factory=lambda: {side: array("i") for side in SIDES})

    def add(self, row: dict[str, Any]) -> None:
        for side in SIDES:
            self.lengths[side].append(len(row[f"{side}_ids"]))

    def quantiles(self) -> dict[str, dict[str, float]]:
        return {
            side: dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))
            for side, values in self.lengths.items()
            if any(values)
        }

    def tokens(self) -> dict[str, int]:
        """Sums per side, and in all (a prompt counts once per response: each is a sequence of its own)."""
        sums = {side: sum(values) for side, values in self.lengths.items()}
        sides = 2 if sums["rejected"] else 1
        return sums | {"total": sides * sums["prompt"] + sums["chosen"] + sums["rejected"]}


class _Builder:
    """One pass (two for demonstrations) from source to the two files."""

    def __init__(
        self, source: Source, noise: Noise, template: ChatTemplate, options: PrepareOptions, kind: str
    ) -> None:
        self.source, self.noise, self.template, self.options, self.kind = source, noise, template, options, kind
        self.bos_id = template.tokenizer.bos_token_id
        self.filter = ScoreFilter(options.min_score_gap)
        self.dropped: dict[str, dict[str, Any]] = {}
        self.truncated = {"prompts": 0, "responses": 0}
        self.flipped: list[str] = []
        self.refusal = ""
        self.tallies = {TRAIN: _Tally(), VALIDATION: _Tally()}

    def build(self, folder: Path) -> dict[str, Any]:
        """Write both files; returns the manifest's measured part. Raises ``UserError`` for an empty split."""
        self.noise, findings = settled(self.noise, self._noised_pairs())
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(PairWriter(folder / f"{split}.arrow")) for split in (TRAIN, VALIDATION)
            }
            for batch in _batches(self._watched(self._items())):
                for split, row in self._rows(batch):
                    writers[split].add(row)
                    self.tallies[split].add(row)
        self._refuse_empty({split: writer.count for split, writer in writers.items()})
        return {
            "counts": {split: writer.count for split, writer in writers.items()},
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
            "flipped": {
                "count": len(self.flipped),
                "hash": _json_hash(self.flipped),
                "ids": self.flipped,
            }
            | findings,
            "lengths": {split: tally.quantiles() for split, tally in self.tallies.items()},
            "tokens": {split: tally.tokens() for split, tally in self.tallies.items()},
            "content": {split: writer.digest.hexdigest() for split, writer in writers.items()},
        }

    def _items(self) -> Iterator[Item]:
        """(split, record) of everything to tokenise, noise applied; raises ``UserError`` for a repeated id."""
        seen: set[str] = set()
        for record in read_records(self.source):
            if isinstance(record, Skipped):
                self._drop(record.id, record.reason)
                continue
            self._note(record.id, seen)
            split = self._split(record)
            if split == VALIDATION:
                yield split, record
            elif self.kind == "pairs":
                noisy = self.noise.apply(record)
                if self.filter.keeps(noisy):
                    yield split, noisy
                else:
                    self._drop(record.id, self.filter.reason)
        if self.kind == "demonstrations":
            seen = set()
            for demonstration in self.source.demonstrations():
                self._note(demonstration.id, seen)
                if self._split(demonstration) == TRAIN:
                    yield TRAIN, demonstration

    def _noised_pairs(self) -> Iterator[PreferencePair]:
        """The training pairs that noise may change."""
        kept = ScoreFilter(self.options.min_score_gap)
        for pair in self.source.pairs():
            if self._split(pair) == TRAIN and kept.keeps(pair):
                yield pair

    def _split(self, record: PreferencePair | Demonstration) -> str:
        return split_of(record.prompt, self.options.validation_fraction, self.options.split_seed)

    @staticmethod
    def _note(identity: str, seen: set[str]) -> None:
        if identity in seen:
            raise UserError(f"the id '{identity}' occurs twice in the data; ids must be unique (noise is drawn by id)")
        seen.add(identity)

    def _watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """``items``, with a count on a terminal."""
        if not sys.stderr.isatty():
            yield from items
            return
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("tokenising"), TextColumn("{task.completed:.0f} records"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield from progress.track(items, total=None)

    def _rows(self, batch: tuple[Item, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of a batch that are kept, in order."""
        kept = []
        for split, record in batch:
            texts = _texts(record)
            reason = _flaw(record, texts)
            if reason:
                self._drop(record.id, reason)
            else:
                kept.append((split, record, texts))
        encoded = self.template.encode_batch([(record.prompt, texts) for _, record, texts in kept])
        for (split, record, _), result in zip(kept, encoded, strict=True):
            row = self._row(record, result)
            if isinstance(row, str):
                self._drop(record.id, row)
                continue
            if row["flipped"]:
                self.flipped.append(record.id)
            yield split, row

    def _row(
        self, record: PreferencePair | Demonstration, encoded: tuple[list[int], list[list[int]]] | TemplateRefusal
    ) -> dict[str, Any] | str:
        """The row to write, or why there is none."""
        if isinstance(encoded, TemplateRefusal):
            self.refusal = self.refusal or str(encoded)
            return "refused by the chat template"
        prompt, responses = encoded
        if len(responses) == 2 and responses[0] == responses[1]:
            return "identical responses"
        fitted = truncate(prompt, responses, self.options, self.bos_id)
        if isinstance(fitted, str):
            return fitted
        short_prompt, short = fitted
        if len(short) == 2 and short[0] == short[1]:
            return "identical after truncation"
        self.truncated["prompts"] += len(short_prompt) < len(prompt)
        self.truncated["responses"] += sum(
            len(after) < len(before) for after, before in zip(short, responses, strict=True)
        )
        pair = record if isinstance(record, PreferencePair) else None
        return {
            "id": record.id,
            "prompt_ids": short_prompt,
            "chosen_ids": short[0],
            "rejected_ids": short[1] if pair else [],
            "chosen_score": pair.chosen_score if pair else None,
            "rejected_score": pair.rejected_score if pair else None,
            "flipped": pair.flipped if pair else False,
        }

    def _drop(self, identity: str, reason: str) -> None:
        entry = self.dropped.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(identity)

    def _refuse_empty(self, counts: dict[str, int]) -> None:
        if all(counts.values()):
            return
        self.filter.refuse_if_nothing_was_kept()
        reasons = ", ".join(f"{entry['count']} × {reason}" for reason, entry in sorted(self.dropped.items()))
        why = f"; dropped: {reasons or 'nothing'}" + (f" ({self.refusal})" if self.refusal else "")
        if not any(counts.values()):
            raise UserError(
                f"no record of the data can be used{why}; check dataset.source and the length limits "
                f"(max_length={self.options.max_length}, max_prompt_length={self.options.max_prompt_length})"
            )
        empty = next(split for split, count in counts.items() if not count)
        raise UserError(
            f"the {empty} split is empty with dataset.validation_fraction={self.options.validation_fraction} "
            f"({counts[TRAIN]} train, {counts[VALIDATION]} validation{why}); "
            "change dataset.validation_fraction or dataset.split_seed, or give more data"
        )


def _batches(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    """``items`` in tuples of ``BATCH``, the last one shorter."""
    source = iter(items)
    return iter(lambda: tuple(islice(source, BATCH)), ())


def _texts(record: PreferencePair | Demonstration) -> list[str]:
    return [record.chosen, record.rejected] if isinstance(record, PreferencePair) else [record.response]


def _flaw(record: PreferencePair | Demonstration, texts: list[str]) -> str | None:
    """Why a record is dropped before it is tokenised."""
    if not all(text.strip() for text in texts):
        return "empty response"
    if len(texts) == 2 and texts[0] == texts[1]:
        return "identical responses"
    try:
        for text in (*texts, *(message.content for message in record.prompt)):
            text.encode("utf-8")
    except UnicodeEncodeError:
        return "not valid Unicode"
    return None


def _json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
