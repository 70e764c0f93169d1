"""RM-Bench's items: a prompt with three right and three wrong answers, from the owners' files or from the toy world.

A file is a JSON list or JSON lines of ``{id, prompt, chosen[3], rejected[3]}``, answers in the order concise, detailed
plain, detailed markdown; result files have ``score_chosen[3]`` and ``score_rejected[3]`` besides. Which domain a row is
of stands under its key ``domain`` (total_dataset.json) or in the file's name (chat_filtered.json).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.hub import from_hub
from src.data.pairs import Prompt, prompt_from_json
from src.data.sources.files import located
from src.data.toy.tasks import KINDS
from src.errors import UserError
from src.evaluation.stored import stem_of, stored_rows

STYLES = 3
HUB_ID = "THU-KEG/RM-Bench"


@dataclass(frozen=True)
class Layout:
    """What a complete benchmark has. ``parts``: part -> the domain that its items are pooled into; ``sizes``: items of
    each part, empty where any number will do."""

    name: str
    parts: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def domains(self) -> list[str]:
        """The domains, in the order to print."""
        return list(dict.fromkeys(self.parts.values()))


OFFICIAL = Layout(
    "official",
    {"chat": "chat", "math": "math", "code": "code", "safety-refuse": "safety", "safety-response": "safety"},
    {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157},
)
"""Sizes: the paper's 1327 items in all, of which 798 are not math."""

TOY = Layout("toy", {kind: kind for kind in KINDS})
TOY_ITEMS = 200


@dataclass(frozen=True)
class StyleItem:
    """One item. ``scores``: (chosen, rejected), [3] each, where the file holds them; NaN for a score that is null.

    ``content``: the row as it stood in the file; ``model``: whose scores they are.
    """

    part: str
    id: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    content: Mapping[str, Any]
    scores: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    model: str = ""

    @property
    def has_answers(self) -> bool:
        """Whether there are three answers of each kind."""
        return len(self.chosen) == len(self.rejected) == STYLES

    @property
    def has_scores(self) -> bool:
        """Whether there are three scores of each kind."""
        return self.scores is not None and all(len(side) == STYLES for side in self.scores)

    @property
    def identity(self) -> tuple[str, str, Prompt]:
        """What no two items share."""
        return self.part, self.id, self.prompt


def layout_of(benchmark: str) -> Layout:
    """The owners' four domains, or the toy world's kinds of tasks."""
    return TOY if benchmark == "toy" else OFFICIAL


def read_items(files: Iterable[str], layout: Layout, key: str) -> list[StyleItem]:
    """The rows of ``files`` in their order; raises ``UserError`` with file and place for what is no such row, or of no
    domain that ``layout`` knows."""
    found = []
    for name in files:
        of_file = part_in_name(stem_of(name), layout)
        for place, line, row in stored_rows(name, key):
            with located(Path(place), line):
                found.append(item_of(row, of_file, layout, model_in_name(stem_of(name)), f"line-{line}"))
    return found


def item_of(row: Mapping[str, Any], of_file: str | None, layout: Layout, model: str, unnamed: str) -> StyleItem:
    """One row; raises ``UserError`` (without file and line, which the reader adds)."""
    part = row.get("domain", of_file)
    if part is None:
        raise UserError(
            f"there is no telling the item's domain: the row has no key 'domain', and the file's name begins with none "
            f"of {', '.join(layout.parts)}; name the file as its owners do (chat_filtered.json), or add the key"
        )
    if part not in layout.parts:
        hint = "; the toy world's items need benchmark=toy" if part in TOY.parts else ""
        raise UserError(f"domain '{part}' is not known; it must be one of: {', '.join(layout.parts)}{hint}")
    if of_file is not None and part != of_file:
        raise UserError(f"the row says domain '{part}', but the file's name says '{of_file}'; correct one of the two")
    prompt = row.get("prompt")
    scores = None
    if "score_chosen" in row or "score_rejected" in row:
        scores = (numbers_in(row, "score_chosen"), numbers_in(row, "score_rejected"))
    return StyleItem(
        part=str(part),
        id=str(row.get("id", unnamed if prompt is None else "")),
        prompt=() if prompt is None else prompt_from_json(prompt),
        chosen=texts_in(row, "chosen"),
        rejected=texts_in(row, "rejected"),
        content=row,
        scores=scores,
        model=str(row.get("model") or model),
    )


def texts_in(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Answers of a row, ``()`` where it has none; raises ``UserError`` for what is no list of texts."""
    value = row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"'{name}' must be a list of texts, one per style, not {value!r:.60}")
    return tuple(value)


def numbers_in(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Scores of a row, NaN for null; raises ``UserError`` for what is no list of numbers."""
    value = row.get(name, [])
    numbers = isinstance(value, list) and all(
        score is None or (isinstance(score, int | float) and not isinstance(score, bool)) for score in value
    )
    if not numbers:
        raise UserError(f"'{name}' must be a list of numbers (or null), one per style, not {value!r:.60}")
    return tuple(math.nan if score is None else float(score) for score in value)


def part_in_name(stem: str, layout: Layout) -> str | None:
    """The part whose name the file's begins with (``safety-refuse_filtered_MODEL_…``)."""
    longest_first = sorted(layout.parts, key=len, reverse=True)
    match = re.match(f"({'|'.join(map(re.escape, longest_first))})(?![A-Za-z])", stem)
    return match[1] if match else None


def model_in_name(stem: str) -> str:
    """Whose scores a result file of the owners' scripts holds: ``chat_filtered_MODEL_ref_free_20250101_120000``."""
    name = re.sub(r"^([a-z-]+_filtered|total_dataset)(_|$)", "", stem)
    return re.sub(r"_?\d{8}_\d{6}$", "", name) or "stored scores"


@dataclass(frozen=True)
class Kept:
    """The items that count, and what became of the rest (rules: docs/evaluation/rm_bench.md)."""

    items: list[StyleItem]
    duplicates: int = 0
    conflicting: int = 0
    malformed: tuple[str, ...] = ()


def kept_items(items: Sequence[StyleItem], *, scored: bool) -> Kept:
    """Each item once, the first time it comes; none without three answers (``scored``: scores) of each kind."""
    first: dict[tuple[str, str, Prompt], StyleItem] = {}
    duplicates, conflicting, malformed = 0, 0, []
    for item in items:
        if not (item.has_scores if scored else item.has_answers):
            malformed.append(f"{item.part}:{item.id}")
        elif (earlier := first.setdefault(item.identity, item)) is not item:
            duplicates += 1
            same = repr(earlier.scores) == repr(item.scores) if scored else answers(earlier) == answers(item)
            conflicting += not same
    return Kept(list(first.values()), duplicates, conflicting, tuple(malformed))


def answers(item: StyleItem) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both kinds of answers."""
    return item.chosen, item.rejected


def first_of_each(items: Sequence[StyleItem], limit: int | None) -> list[StyleItem]:
    """The first ``limit`` items of every part, in order; ``None`` takes all."""
    taken: dict[str, int] = {}
    found = []
    for item in items:
        taken[item.part] = taken.get(item.part, 0) + 1
        if limit is None or taken[item.part] <= limit:
            found.append(item)
    return found


def toy_items(count: int = TOY_ITEMS) -> list[StyleItem]:
    """Items of the toy world; the kinds of tasks are their domains."""
    from src.data.toy.benchmarks import style_items

    found = []
    for item in style_items(count):
        row = {
            "id": item.id,
            "domain": item.kind,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt],
            "chosen": list(item.chosen),
            "rejected": list(item.rejected),
        }
        found.append(StyleItem(item.kind, item.id, item.prompt, item.chosen, item.rejected, row))
    return found


def hub_files() -> list[str]:
    """The owners' data from the hub; raises ``UserError`` within seconds where it cannot be had."""

    def fetch(cached_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        patterns = ["*total_dataset.json", "*_filtered.json"]
        found = snapshot_download(HUB_ID, repo_type="dataset", allow_patterns=patterns, local_files_only=cached_only)
        return Path(found)

    remedy = "give its files: data=[chat_filtered.json,code_filtered.json,…] (plain or .gz)"
    folder = from_hub(fetch, f"dataset '{HUB_ID}'", remedy)
    whole = sorted(folder.rglob("total_dataset.json"))
    files = whole[:1] or sorted(folder.rglob("*_filtered.json"))
    if not files:
        raise UserError(f"dataset '{HUB_ID}' on the hub holds no total_dataset.json any more; {remedy}")
    return [str(file) for file in files]


def items_hash(items: Iterable[StyleItem]) -> str:
    """Hex SHA-256 of parts, ids, prompts and answers in their order."""
    digest = hashlib.sha256()
    for item in items:
        prompt = [[turn.role, turn.content] for turn in item.prompt]
        digest.update(json.dumps([item.part, item.id, prompt, item.chosen, item.rejected]).encode() + b"\n")
    return digest.hexdigest()
