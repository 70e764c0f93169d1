"""Small data sets and tokenizers that the tests of src/data share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.pairs import Message, PreferencePair
from src.data.sources import PairSource, Skipped
from src.data.templates import NAMED, template_text

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "warm", "cold", "old", "new", "first", "last"]


def pair(number: int, **changes: Any) -> PreferencePair:
    """A pair with responses of its own; pairs 0 and 1, 5 and 6, 10 and 11, … share their prompts."""
    topic, question = WORDS[number % len(WORDS)], number - (number % 5 == 1)
    fields: dict[str, Any] = {
        "id": f"p{number}",
        "prompt": (Message("user", f"Say {WORDS[question % len(WORDS)]} {question}"),),
        "chosen": f"{topic} it is, number {number}.",
        "rejected": f"I would rather not say {topic} {number}, sorry.",
        "chosen_score": 4.0 + number / 1000,
        "rejected_score": 2.0 - number / 1000,
        "chosen_writer": "good",
        "rejected_writer": "bad",
    }
    return PreferencePair(**(fields | changes))


@dataclass(frozen=True)
class Records(PairSource):
    """A source of given records."""

    items: tuple[PreferencePair | Skipped, ...]

    def records(self) -> Iterator[PreferencePair | Skipped]:
        return iter(self.items)

    def content(self) -> str:
        return str(self.items)

    def options(self) -> dict[str, Any]:
        return {}


def write_lines(path: Path, records: list[Any]) -> str:
    """Write JSON lines, gzipped if the name ends in .gz."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def byte_tokenizer(name: str) -> Any:
    """A byte-level tokenizer without merges that holds the special tokens of the named template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = NAMED[name]
    specials = dict.fromkeys(token for token in (known.bos, known.eos, known.stop, *known.markers) if token)
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=known.bos or None,
        eos_token=known.eos,
        chat_template=template_text(name),
        clean_up_tokenization_spaces=False,
    )
