"""Responses by transformers: batches sorted by length, left padding, a key-value cache, noise per sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from src.data.pairs import Prompt
from src.data.templates import TemplateRefusal
from src.errors import UserError
from src.generation.base import Decoding, Request, Response
from src.generation.policy import Policy
from src.generation.sampling import next_tokens
from src.model.load import disable_dropout, read_model

SHRINK = 0.75
"""A batch is made smaller once no more than this share of its rows is still writing."""


class TransformersGenerator:
    """``Generator`` over a transformers model on one device; ``batch_size`` sequences are written at a time."""

    def __init__(self, policy: Policy, decoding: Decoding, *, batch_size: int, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("generator.device=cuda, but torch finds no CUDA device here; use cpu or auto")
        self.policy, self.decoding, self.batch_size = policy, decoding, batch_size
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self._model: PreTrainedModel | None = None
        self._context = context_of(policy)

    def describe(self) -> dict[str, Any]:
        return {"generator": "transformers", **self.policy.describe()}

    def refusal(self, prompt: Prompt) -> str | None:
        return refusal_of(self.policy, self._context, prompt)

    def respond(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        encoded = [self.policy.template.encode_prompt(request.prompt) for request in requests]
        longest_first = sorted(range(len(requests)), key=lambda index: (-len(encoded[index]), index))
        for start in range(0, len(requests), self.batch_size):
            chosen = longest_first[start : start + self.batch_size]
            batch = Batch(self.model(), self.policy.stop_ids, self.decoding, self._context)
            for row, ids in batch.write([encoded[index] for index in chosen], [requests[index] for index in chosen]):
                yield chosen[row], response_of(self.policy, ids)

    def model(self) -> PreTrainedModel:
        """The model, read when it is first needed."""
        if self._model is None:
            config = self.policy.model
            model = read_model(config, str(self.policy.directory), merged=True)
            disable_dropout(model)
            model.train(False)
            if config.dtype == "bfloat16":
                halve(model)
            self._model = torch.nn.Module.to(model, device=self.device)
        return self._model

    def close(self) -> None:
        self._model = None


class Batch:
    """Sequences that are written together; a row that is finished is given out at once and leaves the batch soon."""

    def __init__(
        self, model: PreTrainedModel, stop_ids: Sequence[int], decoding: Decoding, context: int | None
    ) -> None:
        self.model, self.decoding, self.context = model, decoding, context
        self.stops = set(stop_ids)
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def step(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [rows, vocabulary] after the last of ``ids`` [rows, length]; ``mask`` also covers what is cached."""
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        model: Any = self.model
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def write(self, prompts: Sequence[list[int]], requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """(row, response ids) as rows finish; the ids end with the stop token unless length ended them."""
        ids, mask = left_padded(prompts, self.device)
        temperatures = torch.tensor([request.temperature for request in requests], device=self.device)
        keys = torch.tensor([request.key for request in requests], dtype=torch.int64, device=self.device)
        written: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # which sequence each row of the batch is
        writing = set(rows)
        cache = DynamicCache(config=self.model.config)
        for step in range(self.decoding.max_new_tokens):
            logits = self.step(ids, mask, cache)
            tokens = next_tokens(logits, temperatures, keys, step, self.decoding.top_p, self.decoding.top_k)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row in writing:
                    written[row].append(token)
                    if self.ends(written[row], len(prompts[row])):
                        writing.remove(row)
                        yield row, written[row]
            if not writing:
                return
            ids, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if len(writing) <= SHRINK * len(rows):
                keep = torch.tensor([place for place, row in enumerate(rows) if row in writing], device=self.device)
                cache.batch_select_indices(keep)
                ids, mask, temperatures, keys = (part[keep] for part in (ids, mask, temperatures, keys))
                rows = [row for row in rows if row in writing]

    def ends(self, written: list[int], prompt_length: int) -> bool:
        """Whether a response is finished."""
        full = self.context is not None and prompt_length + len(written) >= self.context
        return written[-1] in self.stops or len(written) >= self.decoding.max_new_tokens or full


def halve(model: torch.nn.Module) -> None:
    """Turn what a checkpoint holds into bfloat16. What is computed from the configuration stays as it is: rotary
    frequencies in bfloat16 would shift far positions (``Module.to`` with a type would turn them too)."""
    for module in model.modules():
        computed = module._non_persistent_buffers_set
        buffers = (tensor for name, tensor in module.named_buffers(recurse=False) if name not in computed)
        for tensor in (*module.parameters(recurse=False), *buffers):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest], the prompts at the right end. What the padding is cannot matter: it is masked."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def response_of(policy: Policy, ids: list[int]) -> Response:
    """A response from its ids."""
    reason = "stop" if ids and ids[-1] in policy.stop_ids else "length"
    return Response(policy.text_of(ids), reason, len(ids))


def context_of(policy: Policy) -> int | None:
    """Longest sequence of the model, in tokens, where its configuration says so."""
    from transformers import AutoConfig

    from src.model.adapter import saved_settings

    settings = saved_settings(policy.directory)
    place = policy.directory if settings is None else settings.base_model_name_or_path
    try:
        config = AutoConfig.from_pretrained(str(place))
    except (OSError, ValueError) as error:
        raise UserError(f"{place} holds no usable config.json: {str(error).strip().splitlines()[0]}") from error
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def refusal_of(policy: Policy, context: int | None, prompt: Prompt) -> str | None:
    """Why a prompt can have no response: the template refuses it, or it fills the model's context."""
    try:
        for turn in prompt:
            turn.content.encode("utf-8")
        length = len(policy.template.encode_prompt(prompt))
    except TemplateRefusal:
        return "refused by the chat template"
    except UnicodeEncodeError:
        return "not valid Unicode"
    return "prompt fills the model's context" if context is not None and length >= context else None
