"""The choices of conf/generator: light settings, each of which opens its backend when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from src.errors import UserError

if TYPE_CHECKING:
    from src.generation.base import Decoding, Generator
    from src.generation.policy import Policy

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Transformers:
    """Batches of ``batch_size`` sequences on ``device``; neither changes the text, but for rounding."""

    batch_size: int = 32
    device: str = "auto"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("batch_size", self.batch_size, 1)
        if self.device not in DEVICES:
            raise UserError(f"device={self.device} is unknown; use one of {', '.join(DEVICES)}")

    def open(self, policy: Policy, decoding: Decoding) -> Generator:
        """The backend over ``policy``'s weights."""
        from src.generation.transformers_backend import TransformersGenerator

        return TransformersGenerator(policy, decoding, batch_size=self.batch_size, device=self.device)


@dataclass(frozen=True)
class Vllm:
    """vLLM, installed apart. ``memory``: the share of the GPU that it may take; ``gpus``: how many hold one model."""

    memory: float = 0.9
    gpus: int = 1
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("gpus", self.gpus, 1)
        if not 0 < self.memory <= 1:
            raise UserError(f"memory={self.memory} must be a share of the GPU, above 0 and at most 1")

    def open(self, policy: Policy, decoding: Decoding) -> Generator:
        """The backend over ``policy``'s weights; raises ``UserError`` where vLLM is not installed."""
        from src.generation.vllm_backend import VllmGenerator

        return VllmGenerator(policy, decoding, memory=self.memory, gpus=self.gpus)


@dataclass(frozen=True)
class OpenAI:
    """A model behind an OpenAI-compatible endpoint, which has its own template.

    ``extra``: further settings of every request, as the endpoint names them. ``tries``: attempts at one request while
    the endpoint is busy, down or answers rubbish; ``timeout``: seconds that one attempt may take.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    tries: int = 6
    timeout: float = 300.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    needs_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_at_least("concurrency", self.concurrency, 1)
        require_at_least("tries", self.tries, 1)
        if not self.timeout > 0:
            raise UserError(f"timeout={self.timeout} cannot work; give seconds above 0")

    def open(self, decoding: Decoding) -> Generator:
        """The backend."""
        from src.generation.client import ChatClient, ChatEndpoint, Retries
        from src.generation.endpoint_backend import EndpointGenerator

        endpoint = ChatEndpoint(self.base_url, self.model, self.key_variable)
        client = ChatClient(endpoint, Retries(attempts=self.tries, timeout=self.timeout))
        return EndpointGenerator(client, decoding, concurrency=self.concurrency, extra=self.extra)


def require_at_least(name: str, value: int, least: int) -> None:
    """Raise ``UserError`` for a number that is too small."""
    if value < least:
        raise UserError(f"{name}={value} cannot work; give at least {least}")
