"""Which weights respond, under which template: a checkpoint of a run, or a model as it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from src.data.hub import from_hub
from src.data.templates import ChatTemplate
from src.data.tokenizer import load_tokenizer
from src.errors import UserError
from src.model.adapter import saved_settings
from src.schema import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.txt")
"""What is fetched of a hub repository."""

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
"""The files of a model directory that its responses depend on, besides the tokenizer's, which the template hashes."""


@dataclass(frozen=True)
class Policy:
    """Weights and how text reaches them.

    ``directory``: a local directory of weights and tokenizer. ``stop_ids``: any of them ends a response. ``run``: the
    run directory and checkpoint it is of, for the manifest.
    """

    name: str
    directory: Path
    model: ModelConfig
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    run: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Hashes of weights and template, and what ends a response."""
        tokens = self.template.tokenizer.convert_ids_to_tokens(list(self.stop_ids))
        return {
            "weights": directory_hash(self.directory),
            "template": self.template.hash,
            "stop_tokens": tokens,
            "dtype": self.model.dtype,
        }

    def text_of(self, ids: list[int]) -> str:
        """The text of a response's ids, without the stop token that ends it and without other special tokens."""
        body = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return str(self.template.tokenizer.decode(body, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def is_run(checkpoint: str) -> bool:
    """Whether ``checkpoint`` is a run directory."""
    return (Path(checkpoint) / "config.yaml").is_file() and (Path(checkpoint) / "checkpoints").is_dir()


def trained_config(directory: Path) -> TrainConfig:
    """config.yaml of a run directory, typed."""
    loaded = OmegaConf.load(directory / "config.yaml")
    return cast(TrainConfig, OmegaConf.merge(OmegaConf.structured(TrainConfig), loaded))


def policy_of_run(directory: Path, which: str) -> Policy:
    """The checkpoint ``best`` or ``last`` of a run, with the run's own template and stop tokens."""
    checkpoint = (directory / "checkpoints" / which).resolve()
    if not (checkpoint / "COMPLETED").exists():
        raise UserError(
            f"checkpoint={directory} has no whole checkpoint '{which}' ({checkpoint} is absent or half-written); let "
            "the run train to its first checkpoint"
        )
    config = trained_config(directory)
    tokenizer = load_tokenizer(str(checkpoint / "model"))
    stops = list(config.model.stop_tokens)
    template = ChatTemplate(
        tokenizer,
        template=config.model.template,
        response_span=config.dataset.response_span,
        stop_token=stops,
    )
    run = {"directory": str(directory), "checkpoint": which, "step": checkpoint.name}
    ids = stop_ids(tokenizer, template, stops)
    return Policy(directory.resolve().name, checkpoint / "model", config.model, template, ids, run)


def policy_of_model(checkpoint: str, template_name: str | None, stops: list[str], dtype: str) -> Policy:
    """A model directory or hub id, with a template of ours or its own."""
    directory = local_directory(checkpoint)
    tokenizer = load_tokenizer(str(directory))
    template = ChatTemplate(tokenizer, template=template_name, stop_token=stops)
    model = ModelConfig(
        name=checkpoint, init="pretrained", path=str(directory), template=template_name, dtype=dtype, attention="sdpa"
    )
    ids = stop_ids(tokenizer, template, stops)
    return Policy(checkpoint.rstrip("/").rpartition("/")[2], directory, model, template, ids)


def stop_ids(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, tokens: list[str]) -> tuple[int, ...]:
    """The ids that end a response: the template's stop token, those named, and the tokenizer's eos.

    Raises ``UserError`` for a name that is no token.
    """
    found = [template.stop_id]
    for token in tokens:
        identity = tokenizer.convert_tokens_to_ids(token)
        known = isinstance(identity, int) and (identity != tokenizer.unk_token_id or token == tokenizer.unk_token)
        if not known:
            raise UserError(
                f"stop token '{token}' is no single token of the tokenizer {tokenizer.name_or_path}, so it would end "
                "nothing; give tokens it has"
            )
        found.append(cast(int, identity))
    if isinstance(tokenizer.eos_token_id, int):
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(found))


def local_directory(checkpoint: str) -> Path:
    """Where the files of a model directory or hub id are; raises ``UserError`` when they are nowhere."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(
                f"checkpoint={checkpoint} is neither a run directory (config.yaml, checkpoints/) nor a model "
                "(config.json); give one of the two"
            )
        return folder
    if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1:
        raise UserError(
            f"checkpoint={checkpoint}: no such directory (looked for {folder.absolute()}); give a run directory, a "
            "model directory or a hub id"
        )

    def fetch(cached_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(checkpoint, allow_patterns=list(FILES), local_files_only=cached_only))

    return from_hub(fetch, f"model '{checkpoint}'", "give checkpoint= a run directory or a local model directory")


def directory_hash(directory: Path) -> str:
    """Hex SHA-256 of the weights and configuration in a directory; an adapter's with those of its base."""
    parts: list[Any] = []
    for path in sorted({path for pattern in WEIGHTS for path in directory.glob(pattern)}):
        with path.open("rb") as file:
            parts.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    settings = saved_settings(directory)
    base = None if settings is None else settings.base_model_name_or_path
    if base is not None:
        # the base counts by what is in it: where it lies stands in adapter_config.json, which is hashed already
        parts.append(["base", directory_hash(local_directory(str(base)))])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
