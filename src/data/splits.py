"""Which split a prompt belongs to, and the seeded hash behind every order-independent draw."""

from __future__ import annotations

import hashlib

from src.data.pairs import Demonstration, PreferencePair, Prompt, prompt_hash
from src.errors import UserError

TRAIN = "train"
VALIDATION = "validation"


def digest(seed: int, key: str) -> bytes:
    """SHA-256 of ``seed ‖ key`` (32 bytes)."""
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()


def uniform(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key alone, not on order, process or library version."""
    return (int.from_bytes(digest(seed, key)[:8], "big") >> 11) / 2.0**53


def split_of(prompt: Prompt, validation_fraction: float, seed: int) -> str:
    """``"train"`` or ``"validation"``, by hash of the prompt: one prompt is never on both sides.

    A larger fraction's validation split contains a smaller one's.
    Raises ``UserError`` unless ``0 <= validation_fraction < 1``.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"dataset.validation_fraction={validation_fraction} must be from 0 to below 1 (0.05 keeps a twentieth)"
        )
    return VALIDATION if uniform(seed, "split:" + prompt_hash(prompt)) < validation_fraction else TRAIN


def split_of_record(record: PreferencePair | Demonstration, validation_fraction: float, seed: int) -> str:
    """The split of a pair or demonstration: by its prompt, or by the opening of its conversation."""
    opening = record.opening if isinstance(record, Demonstration) else None
    return split_of(opening or record.prompt, validation_fraction, seed)
