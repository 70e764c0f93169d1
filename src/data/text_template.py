"""Chat templates as text: a conversation to the text of its prompt and of a response, without a tokenizer.

A template is a jinja file of ``chat_templates/`` or the tokenizer's own. Both are rendered by the environment
below, which is that of ``transformers`` except that it knows no date: the same text every day.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from src.data.pairs import Prompt
from src.errors import UserError

FOLDER = Path(__file__).parent / "chat_templates"
SPANS = ("completion", "with_assistant_header")
MARK = "\ue001"


@dataclass(frozen=True)
class NamedTemplate:
    """What a jinja file of ours needs besides its text; ``markers`` must be single tokens of the tokenizer."""

    bos: str
    eos: str
    stop: str
    markers: tuple[str, ...] = ()


LLAMA3_MARKERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_MARKERS = ("<start_of_turn>", "<end_of_turn>")
NAMED = {
    "chatml": NamedTemplate("", "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>")),
    "gemma2": NamedTemplate("<bos>", "<eos>", "<end_of_turn>", GEMMA_MARKERS),
    "gemma2_simpo": NamedTemplate("<bos>", "<eos>", "<eos>", GEMMA_MARKERS),
    "llama3": NamedTemplate("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", LLAMA3_MARKERS),
    "llama3_simpo": NamedTemplate("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>", LLAMA3_MARKERS),
    "mistral": NamedTemplate("<s>", "</s>", "</s>"),
    "mistral_simpo": NamedTemplate("<s>", "</s>", "</s>"),
    "plain": NamedTemplate("", "<|endoftext|>", "<|endoftext|>"),
    "roles": NamedTemplate(
        "<|bos|>", "<|end|>", "<|end|>", ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    ),
    "zephyr": NamedTemplate("<s>", "</s>", "</s>"),
    "zephyr_simpo": NamedTemplate("<s>", "</s>", "</s>"),
}
"""Those of models as released, and ``_simpo``: as the SimPO repository renders the same models for training
(https://github.com/princeton-nlp/SimPO, scripts/run_simpo.py and simpo_trainer.py), which its successors share."""


class TemplateRefusal(UserError):  # noqa: N818 - says what the template did
    """The template cannot render this conversation (a role it does not know, turns that do not alternate)."""


class TextTemplate:
    """A chat template as text alone: no tokenizer, no weights.

    ``response_span``: ``completion`` counts what the model writes; ``with_assistant_header`` also the header
    that the template puts before it (as the SimPO family of repositories does; it enters length norms).
    """

    def __init__(self, source: str, *, bos: str, eos: str, stop: str, response_span: str = "completion") -> None:
        if response_span not in SPANS:
            raise UserError(f"dataset.response_span={response_span} is unknown; use one of {', '.join(SPANS)}")
        self.source, self.bos, self.eos, self.stop, self.response_span = source, bos, eos, stop, response_span
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        # the generation tags only mark spans for other tools; they write nothing
        plain_source = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 if true \2%}{%\1 endif \2%}", source)
        try:
            self._template = environment.from_string(plain_source)
        except TemplateError as error:
            raise UserError(f"the chat template is not valid jinja: {error}") from error
        self.sample = self._render([_message("user", "x"), _message("assistant", MARK)], False)
        self.tail = self.sample.rpartition(MARK)[2]
        self.writes_bos = bool(bos) and self.sample.startswith(bos)
        self._refuse_lone_prompts()

    def _refuse_lone_prompts(self) -> None:
        """Raise ``UserError`` when a prompt that is to be continued does not lead to where responses begin."""
        question = [_message("user", "x")]
        plain, prompt = self._render(question, False), self._render(question, True)
        if not self.sample.startswith(plain):
            return  # it writes prompts otherwise when an answer follows: refused with the conversation it happens to
        header = self.sample[len(plain) :].partition(MARK)[0]
        remedy = "or set model.template to the one that the model was trained with"
        if prompt == plain and header.strip():
            raise UserError(
                f"the chat template has no generation prompt: it writes {header!r} before a response, but a prompt "
                "that is to be continued ends without it, so a model would be asked for something else than it was "
                f"trained on; end the template with {{% if add_generation_prompt %}}{header}{{% endif %}}, {remedy}"
            )
        if not self.sample.startswith(prompt):
            raise UserError(
                f"the chat template's generation prompt is {prompt[len(plain) :]!r}, but before a response it writes "
                f"{header!r}, so the response cannot be told apart; make both the same, {remedy}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is made of, since jinja's templates cannot be: worker processes make their own."""
        parts = {"bos": self.bos, "eos": self.eos, "stop": self.stop, "response_span": self.response_span}
        return partial(TextTemplate, self.source, **parts), ()

    @classmethod
    def named(cls, name: str, *, response_span: str = "completion", stop: str | None = None) -> TextTemplate:
        """The template ``name`` of ``chat_templates/`` with the special tokens of its usual tokenizer."""
        known = NAMED[known_name(name)]
        stop = stop or known.stop
        return cls(template_text(name), bos=known.bos, eos=known.eos, stop=stop, response_span=response_span)

    def render_text(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """(prompt text, response text); the response text ends with the stop token.

        Raises ``TemplateRefusal`` when the template cannot render the conversation.
        """
        prompt_text, body = self.render_parts(prompt, response)
        return prompt_text, body + self.stop

    def render_parts(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """Like ``render_text``, the response's text without its stop token."""
        messages = [_message(turn.role, turn.content) for turn in prompt]
        prompt_text = self._render(messages, self.response_span == "completion")
        full = self._render([*messages, _message("assistant", response)], False)
        if not full.startswith(prompt_text) or not full.endswith(self.tail):
            raise TemplateRefusal(
                "the chat template renders a prompt with a response otherwise than the prompt alone, "
                "so the response cannot be told apart; set model.template to another one"
            )
        body = full[len(prompt_text) : len(full) - len(self.tail)]
        before_stop, found, _ = self.tail.rpartition(self.stop)
        return prompt_text, body + (before_stop if found else self.tail)

    def render_prompt(self, prompt: Prompt) -> str:
        """The text that a model is asked to continue: with the generation prompt, whatever the response span."""
        return self._render([_message(turn.role, turn.content) for turn in prompt], True)

    def render_conversation(self, messages: Prompt) -> str:
        """A whole conversation, whoever has the last turn."""
        return self._render([_message(turn.role, turn.content) for turn in messages], False)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            text = self._template.render(
                messages=messages,
                bos_token=self.bos,
                eos_token=self.eos,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
            text.encode("utf-8")
        except TemplateError as error:
            raise TemplateRefusal(f"the chat template refuses a conversation: {error}") from error
        except UnicodeEncodeError as error:
            raise TemplateRefusal(
                f"a message holds the lone surrogate U+{ord(error.object[error.start]):04X}, half of a character, "
                "which is no Unicode text and has no tokens; correct or remove the record"
            ) from error
        return text


def template_text(name: str) -> str:
    """The jinja source of a named template; raises ``UserError`` with the choices for an unknown name."""
    return (FOLDER / f"{known_name(name)}.jinja").read_text(encoding="utf-8")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def known_name(name: str) -> str:
    if name not in NAMED:
        raise UserError(f"model.template={name} is unknown; use one of {', '.join(NAMED)}, or null for the tokenizer's")
    return name
