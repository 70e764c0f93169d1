"""Responses by vLLM, where it is installed: the same ids in, the same stop tokens, a seed for each sequence."""

from __future__ import annotations

import gc
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from src.data.pairs import Prompt
from src.errors import UserError
from src.generation.base import Decoding, Request, Response
from src.generation.policy import Policy
from src.generation.transformers_backend import context_of, refusal_of, response_of
from src.model.adapter import saved_settings


class VllmGenerator:
    """``Generator`` over vLLM's engine, which batches by itself; a seeded request has a generator of its own there.

    Raises ``UserError`` where vLLM is not installed, or for weights that it cannot read.
    """

    def __init__(self, policy: Policy, decoding: Decoding, *, memory: float, gpus: int) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                "generator=vllm, but vllm is not installed here; install it (pip install vllm, on a machine with a "
                "GPU), or use generator=transformers"
            )
        if saved_settings(policy.directory) is not None:
            raise UserError(
                f"{policy.directory} holds an adapter beside its base, which vLLM does not read as one model; use "
                "generator=transformers, which merges the two"
            )
        self.policy, self.decoding, self.memory, self.gpus = policy, decoding, memory, gpus
        self._context = context_of(policy)
        self._engine: Any = None

    def describe(self) -> dict[str, Any]:
        return {"generator": "vllm", **self.policy.describe()}

    def refusal(self, prompt: Prompt) -> str | None:
        return refusal_of(self.policy, self._context, prompt)

    def respond(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        prompts = [{"prompt_token_ids": self.policy.template.encode_prompt(request.prompt)} for request in requests]
        parameters = [
            self.parameters(request, len(prompt["prompt_token_ids"]))
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        outputs = self.engine().generate(prompts, parameters, use_tqdm=False)
        for index, output in enumerate(outputs):
            yield index, response_of(self.policy, list(output.outputs[0].token_ids))

    def parameters(self, request: Request, prompt_length: int) -> Any:
        """vLLM's sampling parameters of one response."""
        left = self.decoding.max_new_tokens if self._context is None else self._context - prompt_length
        return importlib.import_module("vllm").SamplingParams(
            n=1,
            temperature=request.temperature,
            top_p=self.decoding.top_p,
            top_k=-1 if self.decoding.top_k is None else self.decoding.top_k,
            max_tokens=min(left, self.decoding.max_new_tokens),
            seed=request.key & 0x7FFFFFFF,
            stop_token_ids=list(self.policy.stop_ids),
            detokenize=False,
        )

    def engine(self) -> Any:
        """vLLM's engine, started when it is first needed."""
        if self._engine is None:
            self._engine = importlib.import_module("vllm").LLM(
                model=str(self.policy.directory),
                tokenizer=str(self.policy.directory),
                dtype=self.policy.model.dtype,
                gpu_memory_utilization=self.memory,
                tensor_parallel_size=self.gpus,
                seed=0,
            )
        return self._engine

    def close(self) -> None:
        self._engine = None
        gc.collect()
