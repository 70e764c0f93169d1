"""Generations, scorers and models so small that annotating takes no time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.annotation.annotate import AnnotateOptions
from src.annotation.base import Batch, Candidates, Response, Score, ScoreBatch, Shard, every_item
from src.data.pairs import Message
from src.generation.shards import ShardedJsonl
from tests.unit.data_tools import byte_tokenizer

QUESTIONS = ("What is red?", "Name a small thing, please.", "Why?", "How warm is it, and how cold was it before?")


def candidates(*texts: str, number: int = 0) -> Candidates:
    """A prompt with these responses, written by w0, w1, …"""
    prompt = (Message("user", QUESTIONS[number % len(QUESTIONS)] + f" ({number})"),)
    return Candidates(f"q{number}", prompt, tuple(Response(text, f"w{place}") for place, text in enumerate(texts)))


def shard_of(prompts: int, responses: int = 3) -> list[Candidates]:
    """Prompts whose responses differ in text and length."""
    return [
        candidates(
            *(f"answer {number}{place} " + "and so on " * ((number + 2 * place) % 5) for place in range(responses)),
            number=number,
        )
        for number in range(prompts)
    ]


def write_generations(directory: Path, shard: Sequence[Candidates], **identity: Any) -> Path:
    """A finished directory as src.generate writes it: one record a response."""
    store = ShardedJsonl(directory, 4)
    with store.claimed(identity):
        for part in store.pending(list(shard)):
            records = [
                {
                    "prompt_id": item.id,
                    "prompt": [{"role": message.role, "content": message.content} for message in item.prompt],
                    "response": response.text,
                    "writer": response.writer,
                    "sample": place,
                    "seed": 7,
                    "temperature": 0.8,
                }
                for item in part.items
                for place, response in enumerate(item.responses)
            ]
            store.write(part.index, records)
        store.finish("generate", identity, {"prompts": len(shard)})
    return directory


@dataclass(frozen=True)
class Lengths:
    """Scores a response by a function of its text; ``seen`` is called with each batch that is scored."""

    value: Callable[[str], float | None] = len
    seen: Callable[[Batch], None] = lambda batch: None
    size: int = 4

    def describe(self) -> dict[str, Any]:
        return {"scorer": "lengths"}

    def batches(self, shard: Shard) -> list[Batch]:
        items = every_item(shard)
        return [tuple(items[start : start + self.size]) for start in range(0, len(items), self.size)]

    def open(self, folder: Path) -> ScoreBatch:
        def score(shard: Shard, batch: Batch) -> list[Score]:
            self.seen(batch)
            values = [self.value(shard[prompt].responses[place].text) for prompt, place in batch]
            return [Score(value, "" if value is not None else "no length") for value in values]

        return score


def options(folder: Path, **changes: Any) -> AnnotateOptions:
    fields: dict[str, Any] = {"shard_size": 4, "max_unscored": 0.1, "min_gap": 0.0, "kept": folder / "answers"}
    return AnnotateOptions(**(fields | changes))


def save_classifier(
    folder: Path, labels: int = 1, kind: str = "llama", seed: int = 0, template: str = "chatml", **changes: Any
) -> str:
    """A random sequence classifier with a byte-level tokenizer; ``kind``: llama, deberta-v2, causal or gated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = byte_tokenizer(template)
    tokenizer.pad_token = tokenizer.eos_token
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": labels,
    }
    config = AutoConfig.for_model("llama" if kind in ("causal", "gated") else kind, **(values | changes))
    torch.manual_seed(seed)
    if kind == "gated":
        save_gated(folder, config)
        tokenizer.save_pretrained(folder)
        return str(folder)
    factory: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    factory.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_gated(folder: Path, config: Any) -> None:
    """Weights under the names of ArmoRM's checkpoint, none of them at a value that would hide what it does."""
    import torch
    from safetensors.torch import load_file, save_file

    from src.annotation.gated import ARCHITECTURE, GatedRewardModel

    model = GatedRewardModel(config)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("reward_transform_matrix", "gating.logit_scale"):
        weights[name] = weights[name] + 0.5 * torch.rand(weights[name].shape)
    for name in weights:
        if name.startswith("gating.layers"):
            weights[name] = torch.randn(weights[name].shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": [ARCHITECTURE]}))
