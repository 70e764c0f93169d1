"""Files of the benchmarks' owners that are not in this repository: fetched once and checked by their hash."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from src.errors import UserError

FETCH_SECONDS = 20.0


def fetched(source: tuple[str, str], folder: Path, key: str) -> Path:
    """The file at an address, kept in ``folder`` under its hash; raises ``UserError`` where it cannot be had."""
    import httpx

    from src.generation.shards import write_durably

    address, wanted = source
    path = folder / f"{wanted[:16]}.jsonl"
    if path.exists():
        return path
    remedy = f"give a copy of it in {key}=FILE"
    print(f"fetching {address}", file=sys.stderr, flush=True)
    try:
        answer = httpx.get(address, timeout=FETCH_SECONDS, follow_redirects=True).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{address} cannot be fetched ({why}); {remedy}") from error
    if hashlib.sha256(answer.content).hexdigest() != wanted:
        raise UserError(f"{address} is not the file it was (another hash than {wanted[:16]}); {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(path, answer.content)
    return path
