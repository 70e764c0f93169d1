"""A run behind lm-eval's interface: its weights and tokenizer, and, where a chat template is wanted, its own.

Without a chat template this is lm-eval's ``HFLM`` over the same weights and tokenizer, and nothing else. With one,
prompts are rendered and turned into token ids by ``ChatTemplate``, as in training, and any of the run's stop tokens
ends a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from src.data.pairs import Message, Prompt
from src.data.templates import TemplateRefusal
from src.errors import UserError
from src.evaluation.finish import say
from src.generation.policy import Policy
from src.generation.transformers_backend import halve
from src.model.adapter import saved_settings
from src.model.load import disable_dropout, read_model

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class OwnTemplate:
    """Replaces the tokenizer's chat template in a language model of lm-eval (mixed in before its class).

    lm-eval passes prompts on as text; here every text that was rendered is remembered with its conversation, so that
    its ids are those of ``ChatTemplate`` and not those of the text tokenised again.
    """

    policy: Policy

    def remember(self, policy: Policy) -> None:
        """Use ``policy``'s template from now on."""
        self.policy = policy
        self._asked: dict[str, tuple[Prompt, str]] = {}  # text -> conversation, and what the answer begins with
        self._said = False

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text that the model is asked to continue. A system turn that the template refuses is left out, as
        lm-eval does."""
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        begun = "" if add_generation_prompt else turns.pop().content
        prompt = tuple(turns)
        try:
            text = self.policy.template.text.render_prompt(prompt)
        except TemplateRefusal:
            prompt = tuple(turn for turn in turns if turn.role != "system")
            text = self.policy.template.text.render_prompt(prompt)
            if not self._said:
                say("  the chat template takes no system turn: such turns are left out")
                self._said = True
        self._asked[text + begun] = (prompt, begun)
        return text + begun

    def ids_of(self, text: str) -> list[int] | None:
        """The ids of a text that was rendered; ``None`` for any other."""
        if text not in self._asked:
            return None
        prompt, begun = self._asked[text]
        ids = self.policy.template.encode_prompt(prompt)
        return ids + self._answer_ids(prompt, begun) if begun else ids

    def _answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """The ids of ``answer`` to ``prompt``, without its stop token."""
        encoded = self.policy.template.encode(prompt, answer)
        whole = encoded.prompt_ids + encoded.response_ids[:-1]
        return whole[len(self.policy.template.encode_prompt(prompt)) :]

    def tok_encode(self, string: Any, *arguments: Any, **options: Any) -> Any:
        """Ids of a text, or of several."""
        if not isinstance(string, str):
            return [self.tok_encode(text, *arguments, **options) for text in string]
        ids = self.ids_of(string)
        return super().tok_encode(string, *arguments, **options) if ids is None else ids  # type: ignore[misc]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of a continuation whose log-likelihood is wanted."""
        if context not in self._asked:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)  # type: ignore[misc]
            return pair
        prompt, begun = self._asked[context]
        ids = self.policy.template.encode_prompt(prompt)
        answer = self._answer_ids(prompt, begun + continuation)
        known = len(self._answer_ids(prompt, begun)) if begun else 0
        return ids + answer[:known], answer[known:]


class PlainLM(HFLM):  # type: ignore[misc]
    """lm-eval's own."""


class TemplateLM(OwnTemplate, HFLM):  # type: ignore[misc]
    """lm-eval's own with the run's chat template."""

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> Any:
        """Ids and mask [rows, longest], padded on the left; a row too long loses its beginning."""
        rows = [self.tok_encode(text) for text in strings]
        if left_truncate_len:
            rows = [row[-left_truncate_len:] for row in rows]
        longest, padding = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = [[padding] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids), torch.tensor(mask)


def open_model(policy: Policy, *, backend: str, device: str, batch_size: int | str, chat: bool) -> LM:
    """The weights, read and ready. Raises ``UserError`` for a device or a backend that is not there."""
    if backend == "vllm":
        return open_vllm(policy, batch_size=batch_size, chat=chat)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA device here; use device=cpu or auto")
    model = read_model(policy.model, str(policy.directory), merged=True)
    disable_dropout(model)
    model.train(False)
    model.config.use_cache = True
    if policy.model.dtype == "bfloat16":
        halve(model)
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device=place)
    options: dict[str, Any] = {"pretrained": model, "tokenizer": policy.template.tokenizer, "batch_size": batch_size}
    if not chat:
        plain: LM = PlainLM(**options)
        return plain
    own = TemplateLM(**options)
    own.remember(policy)
    settings: Any = model.generation_config
    settings.eos_token_id = list(policy.stop_ids)
    return own


def open_vllm(policy: Policy, *, batch_size: int | str, chat: bool) -> LM:
    """The same by lm-eval's vLLM class, where vLLM is installed."""
    if saved_settings(policy.directory) is not None:
        raise UserError(
            f"{policy.directory} holds an adapter beside its base, which vLLM does not read as one model; use "
            "backend=hf, which merges the two"
        )
    from lm_eval.models.vllm_causallms import VLLM

    class TemplateVLLM(OwnTemplate, VLLM):  # type: ignore[misc]
        """lm-eval's vLLM with the run's chat template and stop tokens."""

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if generate and sampling_params is not None:
                for one in sampling_params if isinstance(sampling_params, list) else [sampling_params]:
                    one.stop_token_ids = list(self.policy.stop_ids)
            return super()._model_generate(requests, generate, sampling_params)

    directory = str(policy.directory)
    options: dict[str, Any] = {"pretrained": directory, "dtype": policy.model.dtype, "batch_size": batch_size}
    if not chat:
        plain: LM = VLLM(**options)
        return plain
    own = TemplateVLLM(**options)
    own.remember(policy)
    return own
