"""What reward models and rankers share: a sequence classifier read whole, and one number of each of its outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from src.data.hub import from_hub
from src.data.tokenizer import load_tokenizer
from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 1 << 22


@dataclass(frozen=True)
class Classifier:
    """A model on its device, its tokenizer, and how many tokens it takes (``None``: it does not say)."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    longest: int | None
    pad_id: int

    def outputs(self, sequences: Sequence[list[int]]) -> list[float]:
        """One number for each sequence of token ids, padded on the right to the longest of them."""
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        with torch.inference_mode():
            output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return one_number(output, len(sequences), self.model)


def one_number(output: Any, rows: int, model: Any) -> list[float]:
    """``output.score`` where there is one (ArmoRM: its gated sum), else the only logit; [rows].

    Raises ``UserError`` for several logits, of which nobody says which one means better.
    """
    score = getattr(output, "score", None)
    values = output.logits if score is None else score
    if values.numel() != rows:
        labels = list((getattr(model.config, "id2label", None) or {}).values())
        raise UserError(
            f"scorer.path={model.config.name_or_path} has {values.numel() // rows} outputs "
            f"({', '.join(map(str, labels[:6]))}), and nothing says which of them, or what of them, is the score; "
            "give a model with a single output (num_labels=1), or one whose output has an attribute 'score'"
        )
    return cast(list[float], values.reshape(rows).float().cpu().tolist())


def open_classifier(path: str, revision: str | None, dtype: str, device: str, trust_remote_code: bool) -> Classifier:
    """The classifier at a directory or hub id, ready to score; raises ``UserError`` when it cannot be one."""
    from transformers.utils import logging

    cast(Any, logging).disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("scorer.device=cuda, but torch sees no CUDA device here; use scorer.device=cpu or auto")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    tokenizer = load_named(path, revision)
    model = _weights(path, revision, dtype, trust_remote_code)
    if hasattr(model, "header"):
        from src.annotation.gated import HEADER

        model.header = list(tokenizer(HEADER, add_special_tokens=False)["input_ids"])
    model.to(place)
    model.eval()
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    # classifiers of transformers find the last token of a row by this entry
    model.config.pad_token_id = pad
    return Classifier(model, tokenizer, place, getattr(model.config, "max_position_embeddings", None), int(pad))


def load_named(path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a scorer; the message of a failure names the scorer's key."""
    try:
        return load_tokenizer(path, revision)
    except UserError as error:
        raise UserError(str(error).replace("model.path", "scorer.path")) from error


def _weights(path: str, revision: str | None, dtype: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForSequenceClassification, PretrainedConfig

    from src.annotation.gated import ARCHITECTURE, GatedRewardModel

    folder = Path(path).expanduser()
    name = str(folder) if folder.is_dir() else path

    def load(cached_only: bool) -> Any:
        where = {"revision": revision or "main", "local_files_only": cached_only}
        values, _ = PretrainedConfig.get_config_dict(name, **where)
        gated = ARCHITECTURE in (values.get("architectures") or ()) and not trust_remote_code
        factory: Any = GatedRewardModel if gated else AutoModelForSequenceClassification
        options = {} if gated else {"trust_remote_code": trust_remote_code}
        return factory.from_pretrained(name, dtype=DTYPES[dtype], output_loading_info=True, **where, **options)

    remedy = "set scorer.path to a local folder with a sequence classifier and its tokenizer"
    if folder.is_dir():
        try:
            model, report = load(True)
        except Exception as error:  # whatever a damaged file makes of the reader
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise UserError(
                f"scorer.path={path} is no sequence classifier that can be loaded: {reason}; {remedy}"
            ) from error
    else:
        model, report = from_hub(load, f"model '{path}'", remedy)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"scorer.path={path} lacks {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}: these weights "
            "would be random, and so would the scores; give a trained reward model, not a language model"
        )
    return model


def identity_of(path: str, revision: str | None) -> dict[str, Any]:
    """Which weights a path means: a folder by the content of its files, a hub id by its name and revision."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {"hub_id": path, "revision": revision}
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt", ".py"):
            digest.update(file.relative_to(folder).as_posix().encode())
            with file.open("rb") as content:
                while block := content.read(CHUNK):
                    digest.update(block)
    return {"content": digest.hexdigest()}
