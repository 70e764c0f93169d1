"""What is annotated: responses that `python -m src.generate` wrote, or a file of responses to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.annotation.base import Candidates, Response
from src.data.pairs import Prompt, optional_text, prompt_from_json, require, score_field, text_field
from src.data.sources.chain import MANIFEST, check_sealed
from src.data.sources.files import content_hash, existing, located, read_json_lines
from src.errors import UserError
from src.generation.shards import read_manifest, read_records

ORIGIN = ("sample", "seed", "temperature", "finish_reason", "tokens")
"""Fields of a generated response that are kept beside its score."""


@dataclass(frozen=True)
class Corpus:
    """Prompts in order of their first response; ``inputs``: what they were read from, for the manifest; ``chain``: the
    links of the stages before."""

    candidates: list[Candidates]
    inputs: list[dict[str, Any]]
    chain: list[dict[str, Any]]


def read_corpus(paths: Sequence[str]) -> Corpus:
    """Everything in directories of generations and files of responses, by prompt.

    Raises ``UserError`` for a directory that is unfinished or not what its manifest says, a bad record, one id with two
    prompts, or data in which no prompt has two responses.
    """
    prompts: dict[str, Prompt] = {}
    responses: dict[str, list[Response]] = {}
    inputs, chain = [], []
    for path in paths:
        place = existing(path, "generations")
        if place.is_dir():
            manifest = read_manifest(place)
            check_sealed(manifest, place / MANIFEST)
            inputs.append({"path": str(place), "hash": manifest["hash"]})
            chain += manifest["chain"]
            found = generated(place)
        else:
            content = content_hash([place])
            inputs.append({"path": str(place), "hash": content})
            chain.append({"stage": "file", "identity": "", "content": content})
            found = from_file(place)
        for identity, prompt, items in found:
            if prompts.setdefault(identity, prompt) != prompt:
                raise UserError(
                    f"{place}: the prompt id '{identity}' names two different prompts; ids must be unique, so annotate "
                    "these generations apart, or correct the ids"
                )
            responses.setdefault(identity, []).extend(items)
    candidates = [Candidates(identity, prompt, tuple(responses[identity])) for identity, prompt in prompts.items()]
    if all(len(item.responses) < 2 for item in candidates):
        raise UserError(
            f"{', '.join(paths)}: none of {len(candidates)} prompts has two responses, so there is nothing to compare; "
            "generate several a prompt, or give several directories: generations=[A,B]"
        )
    return Corpus(candidates, inputs, chain)


def generated(directory: Path) -> Iterator[tuple[str, Prompt, list[Response]]]:
    """(prompt id, prompt, responses) of each record of a directory of generations."""
    for number, record in enumerate(read_records(directory), 1):
        with located(directory, number):
            origin = {name: record[name] for name in ORIGIN if name in record}
            response = Response(text_field(record, "response"), optional_text(record, "writer"), origin)
            prompt = prompt_from_json(require(record, "prompt"))
            identity = str(require(record, "prompt_id"))
        yield identity, prompt, [response]


def from_file(path: Path) -> Iterator[tuple[str, Prompt, list[Response]]]:
    """The same of ``{prompt_id, prompt, responses: [{writer | model, text[, score]}]}``, a prompt a line."""
    seen: set[str] = set()
    for line, record in read_json_lines(path):
        with located(path, line):
            identity = str(require(record, "prompt_id"))
            if identity in seen:
                raise UserError(f"the prompt id '{identity}' occurs twice; put all responses to a prompt on one line")
            seen.add(identity)
            prompt = prompt_from_json(require(record, "prompt"))
            items = list(responses_of(require(record, "responses")))
        yield identity, prompt, items


def responses_of(entries: Any) -> Iterable[Response]:
    """The responses of one record; raises ``UserError`` naming the one at fault."""
    if not isinstance(entries, list):
        raise UserError(f"field 'responses' must be a list of objects with text, not {entries!r:.60}")
    for place, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise UserError(f"response {place}: must be an object with text, not {entry!r:.60}")
        try:
            writer = optional_text(entry, "writer") or optional_text(entry, "model")
            yield Response(text_field(entry, "text"), writer, score=score_field(entry, "score"))
        except UserError as error:
            raise UserError(f"response {place}: {error}") from error
