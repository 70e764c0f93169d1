"""From scored responses to the two files that training reads, each with a manifest that names what it was made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.data.pairs import PreferencePair
from src.data.sources import ScoredResponsesFile, Skipped
from src.data.sources.chain import manifest_of, sealed
from src.data.sources.files import content_hash
from src.errors import UserError
from src.generation.shards import line_of, write_durably

RESPONSES, PAIRS = "responses.jsonl", "pairs.jsonl"
Records = Callable[[], Iterator[dict[str, Any]]]


def write_training_files(
    directory: Path, records: Records, annotation: Mapping[str, Any], min_gap: float
) -> dict[str, Any]:
    """Write ``responses.jsonl`` (what ``dataset=scored_responses`` reads: every response with a score) and
    ``pairs.jsonl`` (what ``dataset=local`` reads: best against worst); returns the manifest of the pairs.

    Ties, identical texts and prompts with fewer than two scored responses make no pair and are counted.
    Raises ``UserError`` when no pair is left.
    """
    responses, pairs = directory / RESPONSES, directory / PAIRS
    write_durably(responses, b"".join(map(line_of, with_scores(records()))))
    source = ScoredResponsesFile(str(responses), pairing="best_worst", min_gap=min_gap)
    made, skipped = best_against_worst(source)
    identity: dict[str, Any] = {"annotation": annotation["hash"]}
    counts = dict(annotation["counts"])
    _write_manifest(responses, "responses", identity, counts, annotation)
    if not made:
        for stale in (manifest_of(pairs), pairs):
            stale.unlink(missing_ok=True)
        reasons = ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
        raise UserError(f"no pair can be made of {directory}: {reasons}; generate more, or other, responses")
    write_durably(pairs, b"".join(line_of(pair.to_json()) for pair in made))
    counts |= {"pairs": len(made), "skipped": dict(sorted(skipped.items()))}
    identity |= {"pairing": "best_worst", "min_gap": float(min_gap)}
    return _write_manifest(pairs, "pairs", identity, counts, annotation)


def with_scores(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records without the responses that have no score."""
    for record in records:
        yield record | {"responses": [entry for entry in record["responses"] if entry["score"] is not None]}


def best_against_worst(source: ScoredResponsesFile) -> tuple[list[PreferencePair], Counter[str]]:
    """The pairs of ``source``, and how many prompts gave none, by reason."""
    made: list[PreferencePair] = []
    skipped: Counter[str] = Counter()
    for record in source.records():
        if isinstance(record, Skipped):
            skipped[record.reason] += 1
        elif record.chosen == record.rejected:
            skipped["identical responses"] += 1
        else:
            made.append(record)
    return made, skipped


def _write_manifest(
    file: Path, stage: str, identity: Mapping[str, Any], counts: Mapping[str, Any], annotation: Mapping[str, Any]
) -> dict[str, Any]:
    manifest = sealed(stage, identity, counts, content_hash([file]), annotation["chain"])
    write_durably(manifest_of(file), (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest
