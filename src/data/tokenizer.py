"""Tokenizers: trained on the data for models without a vocabulary of their own, or loaded with a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from src.data.cache import build_once, json_hash, keep_text
from src.data.hub import from_hub
from src.data.pairs import Demonstration, PreferencePair
from src.data.splits import TRAIN, split_of_record
from src.data.templates import template_text
from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIALS = (PAD, BOS, END, *ROLE_TOKENS)
BYTES = 256
VERSION = 1
"""Part of the cache key; raise it when the same texts would give another tokenizer."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, cache_dir: str | Path, origin: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``vocab_size`` tokens trained on ``texts``, or the cached one.

    Tokens 0-5 are pad, bos, end, system, user, assistant; digits are single tokens. The chat template is
    ``roles``; nothing is added to a text that is tokenised. The same texts give the same file, whatever
    the number of threads. ``texts`` are held in memory. A small corpus runs out of merges early, so an embedding
    must be sized by ``len(tokenizer)``.

    ``origin``: a hash of all that the texts follow from. The tokenizer that was made of them is then found by it, and
    they are not read again.

    Raises ``UserError`` for a vocabulary too small to hold every byte, or no text.
    """
    smallest = len(SPECIALS) + BYTES
    if vocab_size < smallest:
        raise UserError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens alone are {smallest}")
    version = {"size": vocab_size, "version": [VERSION, tokenizers.__version__]}
    folders = Path(cache_dir) / "tokenizers"
    note = None if origin is None else folders / f"{json_hash(version | {'origin': origin})[:16]}.name"
    name = note.read_text(encoding="ascii") if note is not None and note.exists() else ""
    if not name or not (folders / name).is_dir():
        corpus = list(texts)
        if not any(corpus):
            raise UserError("there is no text to train a tokenizer on; check dataset.source")
        name = json_hash(version | {"texts": _texts_hash(corpus)})[:16]

        def build(aside: Path) -> None:
            _wrap(_train(corpus, vocab_size)).save_pretrained(aside)

        build_once(folders / name, build)
        if note is not None:
            keep_text(note, name)
    loaded = load_tokenizer(str(folders / name))
    loaded.name_or_path = f"trained-{name}"
    return cast("PreTrainedTokenizerFast", loaded)


def training_texts(
    records: Iterable[PreferencePair | Demonstration], validation_fraction: float, split_seed: int
) -> Iterator[str]:
    """Prompts and responses of the train split, each prompt once per run of records that share it."""
    last = None
    for record in records:
        if split_of_record(record, validation_fraction, split_seed) != TRAIN:
            continue
        if record.prompt != last:
            yield from (message.content for message in record.prompt)
            last = record.prompt
        yield from (record.response,) if isinstance(record, Demonstration) else (record.chosen, record.rejected)


def load_tokenizer(
    path_or_hub_id: str, revision: str | None = None, local_only: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder, or of a hub id (from the hub library's cache when there is no network).

    Raises ``UserError`` within seconds when it is nowhere, saying what to put in ``model.path``.
    """
    from transformers import AutoTokenizer

    remedy = "set model.path to a local folder with the model and its tokenizer"
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"the folder {folder} holds no usable tokenizer ({lines[0]}); {remedy}") from error
    if path_or_hub_id.startswith((".", "/", "~")) or path_or_hub_id.count("/") > 1:
        raise UserError(f"model.path={path_or_hub_id}: no such folder (looked for {folder.absolute()}); {remedy}")

    def load(cached_only: bool) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(path_or_hub_id, revision=revision or "main", local_files_only=cached_only)

    return from_hub(load, f"tokenizer of '{path_or_hub_id}'", remedy, local_only=local_only)


def _texts_hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _train(corpus: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # a lone surrogate is no text; the pair that holds it is dropped later
    clean = (text.encode("utf-8", "replace").decode("utf-8") for text in corpus)
    tokenizer.train_from_iterator(clean, trainer, length=len(corpus))
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        extra_special_tokens=list(ROLE_TOKENS),
        chat_template=template_text("roles"),
        clean_up_tokenization_spaces=False,
    )
