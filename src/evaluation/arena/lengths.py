"""How long a model's answers are: the leaderboard's avg_tokens, beside scores that length may have bought."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ENCODING = "cl100k_base"
ADDRESS = f"https://openaipublic.blob.core.windows.net/encodings/{ENCODING}.tiktoken"
Counter = Callable[[str], int]


def answer_lengths(answers: Sequence[str], tokenizer: str | None) -> dict[str, Any]:
    """Averages over ``answers``: characters, and tokens with the name of what counted them (``None`` for nothing).

    The owners count with tiktoken's cl100k_base, whose table is fetched from the network: it is taken where it is on
    this machine already (``TIKTOKEN_CACHE_DIR``), else the tokenizer in the directory ``tokenizer``.
    """
    counted_by, count = counter_of(tokenizer)
    number = max(len(answers), 1)
    return {
        "average_characters": sum(map(len, answers)) / number,
        "average_tokens": None if count is None else sum(map(count, answers)) / number,
        "tokens_counted_by": counted_by,
    }


def counter_of(tokenizer: str | None) -> tuple[str | None, Counter | None]:
    """Who can count tokens here, and how."""
    if (encoding := tiktoken_encoding()) is not None:
        return f"tiktoken {ENCODING}", lambda text: len(encoding.encode(text, disallowed_special=()))
    if tokenizer is None:
        return None, None
    from src.data.tokenizer import load_tokenizer

    own = load_tokenizer(tokenizer)
    return f"tokenizer of {tokenizer}", lambda text: len(own.encode(text, add_special_tokens=False))


def tiktoken_encoding() -> Any:
    """The owners' encoding where package and table are here; ``None`` otherwise."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    table = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / hashlib.sha1(ADDRESS.encode()).hexdigest()
    if not table.is_file():
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    return tiktoken.get_encoding(ENCODING)
