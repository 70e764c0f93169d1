"""Manifests that name what they were made from: generate -> annotate -> pairs, each with the hash of the one before.

A manifest's ``hash`` is that of its ``stage``, ``identity`` (settings and hashes of inputs), ``counts``, ``content``
(hash of the records) and ``chain`` (a link of every stage so far, its own last). A file that was made has its manifest
beside it, as ``<file>.manifest.json``, and is compared with it whenever it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.data.cache import json_hash
from src.data.sources.files import content_hash
from src.errors import UserError

HASHED = ("stage", "identity", "counts", "content", "chain")
MANIFEST = "manifest.json"
REMEDY = "restore the files, or make them again"


def sealed(
    stage: str,
    identity: Mapping[str, Any],
    counts: Mapping[str, Any],
    content: str,
    before: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A manifest with its link and hash; ``before``: the links of the stages before."""
    link = {"stage": stage, "identity": json_hash(identity), "content": content}
    manifest: dict[str, Any] = {
        "stage": stage,
        "identity": dict(identity),
        "counts": dict(counts),
        "content": content,
        "chain": [*map(dict, before), link],
    }
    return manifest | {"hash": json_hash(manifest)}


def check_sealed(manifest: Mapping[str, Any], where: str | Path) -> None:
    """Raise ``UserError`` unless a manifest is whole: its hash, and a last link that is its own."""
    if missing := [name for name in (*HASHED, "hash") if name not in manifest]:
        raise UserError(f"{where} is no manifest of ours (it has no '{missing[0]}'); {REMEDY}")
    link = {
        "stage": manifest["stage"],
        "identity": json_hash(manifest["identity"]),
        "content": manifest["content"],
    }
    whole = json_hash({name: manifest[name] for name in HASHED}) == manifest["hash"]
    if not whole or not manifest["chain"] or manifest["chain"][-1] != link:
        raise UserError(f"{where} was changed after it was written (its hash is another); {REMEDY}")


def manifest_of(file: Path) -> Path:
    """Where the manifest of a made file is, or would be."""
    return file.with_name(f"{file.name}.manifest.json")


def check_made(file: Path) -> None:
    """Compare a data file with its manifest, and that with the manifests of the stages before, as far as they are here.

    A file without a manifest was not made by us, and passes. Raises ``UserError`` for a broken chain.
    """
    path = manifest_of(file)
    if not path.exists():
        return
    manifest = _read(path)
    check_sealed(manifest, path)
    if content_hash([file]) != manifest["content"]:
        raise UserError(f"{file} is not the file that {path.name} describes; {REMEDY}")
    earlier = file.parent / MANIFEST
    if earlier.exists():
        _check_link(manifest["identity"].get("annotation"), manifest["chain"][:-1], earlier, path)


def check_inputs(manifest: Mapping[str, Any], where: Path) -> None:
    """Compare the inputs that a manifest names, a path and a hash each, with what is there now; what is gone passes."""
    for entry in manifest.get("inputs", []):
        place = Path(str(entry["path"]))
        if place.is_dir() and (place / MANIFEST).exists():
            _check_link(entry["hash"], None, place / MANIFEST, where)
        elif place.is_file() and content_hash([place]) != entry["hash"]:
            raise UserError(f"{where} was made from another {place} than is there now; {REMEDY}")


def _check_link(wanted: Any, links: Sequence[Any] | None, earlier: Path, later: Path) -> None:
    manifest = _read(earlier)
    check_sealed(manifest, earlier)
    if manifest["hash"] != wanted or (links is not None and list(links) != manifest["chain"]):
        raise UserError(
            f"{later} was made from another {earlier} ({str(wanted)[:12]}) than is there now "
            f"({manifest['hash'][:12]}): the chain is broken; {REMEDY}"
        )
    check_inputs(manifest, earlier)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; {REMEDY}")
    return value
