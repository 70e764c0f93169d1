"""A model of a few thousand parameters with its tokenizer, for tests of generation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from src.data.pairs import Message, Prompt
from src.data.tokenizer import train_tokenizer
from src.generation.base import Decoding, Request, requests_of
from src.generation.policy import Policy, policy_of_model
from src.generation.transformers_backend import TransformersGenerator
from src.model.load import model_from_scratch
from src.schema import ModelConfig

TEXTS = [f"Sort {a}, {b} and {a + b} from low to high. The sum is {a * b}." for a in range(9) for b in range(9)]
PROMPTS: list[Prompt] = [
    (Message("user", "Hi"),),
    (Message("user", "Sort 3, 1 and 2 from low to high, and say why, in two sentences at most."),),
    (Message("system", "Be brief."), Message("user", "What is 2 + 2?")),
    (Message("user", "Name a colour"), Message("assistant", "red"), Message("user", "Another <|end|> one, 漢字")),
    (Message("user", ""),),
]


@cache
def tiny_model(context: int = 256) -> Path:
    """A model directory: two layers, 300 tokens, weights so wide that the next token is neither sure nor uniform."""
    directory = Path(mkdtemp(prefix="tiny-model-"))
    tokenizer = train_tokenizer(TEXTS, 300, directory / "cache")
    config = ModelConfig(
        name="tiny",
        attention="sdpa",
        architecture={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": context,
            "initializer_range": 0.4,
        },
    )
    model_from_scratch(config, len(tokenizer), seed=0).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    return directory / "model"


def tiny_policy(*stops: str) -> Policy:
    """The model with its own template; ``stops``: further tokens that end a response."""
    return policy_of_model(str(tiny_model()), None, list(stops), "float32")


def generator_of(policy: Policy, decoding: Decoding, batch_size: int = 8) -> TransformersGenerator:
    return TransformersGenerator(policy, decoding, batch_size=batch_size, device="cpu")


def all_requests(decoding: Decoding, prompts: list[Prompt] = PROMPTS) -> list[Request]:
    """Every response to every prompt."""
    return [request for place, prompt in enumerate(prompts) for request in requests_of(f"p{place}", prompt, decoding)]
