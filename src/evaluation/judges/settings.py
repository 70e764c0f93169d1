"""The choices of conf/judge: light settings, each of which opens its judge when there is something to judge."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from src.errors import UserError

if TYPE_CHECKING:
    from src.evaluation.judges.base import Judge

OURS = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class OpenAI:
    """A model behind an OpenAI-compatible endpoint.

    * The key comes from the environment variable ``key_variable`` alone. An endpoint elsewhere than on this machine
      is refused without one.
    * ``concurrency``: requests under way at a time. ``tries``: attempts at one request while the endpoint is busy,
      down or answers rubbish; ``timeout``: seconds that one attempt may take.
    * ``extra``: further settings of every request, as the endpoint names them; they take the place of the benchmark's.
    * ``input_price`` and ``output_price``: USD per million tokens, ``None`` where unknown; ``seconds_per_answer``:
      about how long one answer takes. All three are for estimates alone.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    tries: int = 6
    timeout: float = 120.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    input_price: float | None = None
    output_price: float | None = None
    seconds_per_answer: float = 10.0
    name: ClassVar[str] = "openai"
    paid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for key in ("concurrency", "tries"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} cannot work; give at least 1")
        if not self.timeout > 0:
            raise UserError(f"timeout={self.timeout} cannot work; give seconds above 0")
        for key in ("input_price", "output_price", "seconds_per_answer"):
            if (getattr(self, key) or 0.0) < 0:
                raise UserError(f"{key}={getattr(self, key)} cannot be; give a number from 0 on")
        if taken := sorted(set(self.extra) & set(OURS)):
            raise UserError(f"extra.{taken[0]} is no setting to add to a request; use judge.model, or leave it out")

    def problems(self) -> list[str]:
        return key_problems("judge", self.base_url, self.model, self.key_variable)

    def open(self, cache: Path) -> Judge:
        from src.evaluation.judges.endpoint import EndpointJudge

        return EndpointJudge(self, cache)


@dataclass(frozen=True)
class Oracle:
    """The toy world's own judge; only for prompts of the toy world.

    ``temperature``: of the logistic preference, in points (0 = always the better one); ``length_bias``: points that
    length earns (0 = none; 0.8 = the uncontrolled judge).
    """

    length_bias: float = 0.0
    temperature: float = 0.25
    name: ClassVar[str] = "oracle"
    model: ClassVar[str] = "oracle"
    concurrency: ClassVar[int] = 1
    input_price: ClassVar[float | None] = 0.0
    output_price: ClassVar[float | None] = 0.0
    seconds_per_answer: ClassVar[float] = 0.001
    paid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} cannot work; give a number from 0 on")

    def problems(self) -> list[str]:
        return []

    def open(self, cache: Path) -> Judge:
        from src.evaluation.judges.oracle import OracleJudge

        return OracleJudge(self)


@dataclass(frozen=True)
class Replay:
    """Stored judgments of an earlier evaluation: ``file`` is its judgments directory, or one JSONL file of them."""

    file: str
    name: ClassVar[str] = "replay"
    concurrency: ClassVar[int] = 1
    input_price: ClassVar[float | None] = 0.0
    output_price: ClassVar[float | None] = 0.0
    seconds_per_answer: ClassVar[float] = 0.0
    paid: ClassVar[bool] = False

    def problems(self) -> list[str]:
        if Path(self.file).expanduser().exists():
            return []
        return [f"judge.file={self.file}: no such file or directory; give the judgments directory of an evaluation"]

    def open(self, cache: Path) -> Judge:
        from src.evaluation.judges.replay import ReplayJudge

        return ReplayJudge(Path(self.file).expanduser())


def key_problems(role: str, base_url: str, model: str, key_variable: str) -> list[str]:
    """Why an endpoint cannot be asked: no address, a key that is none, or no key for one that is not on this machine.

    ``role``: judge or generator, the configuration's name for it.
    """
    from src.generation.client import ChatEndpoint

    try:
        headers = ChatEndpoint(base_url, model, key_variable).headers()
    except UserError as error:
        return [f"{role}: {error}"]
    if headers or on_this_machine(base_url):
        return []
    return [
        f"the {role} {model} at {base_url} wants a key, and the environment variable {key_variable} holds none; set it "
        f"(export {key_variable}=...), or take one on this machine: {role}=openai "
        f"{role}.base_url=http://127.0.0.1:8000/v1 {role}.model=NAME"
    ]


def on_this_machine(base_url: str) -> bool:
    """Whether an address is a loopback one."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
