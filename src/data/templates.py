"""From a conversation to text, and from text to the token ids that are trained on.

A response's ids are told from its prompt's by position, never by id; they end with exactly one stop token.
A template is a jinja file of ``chat_templates/`` or the tokenizer's own. Both are rendered by the environment
below, which is that of ``transformers`` except that it knows no date: the same text every day.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from src.data.pairs import Message, Prompt
from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "chat_templates"
SPANS = ("completion", "with_assistant_header")
MARK = "\ue001"
PRIVATE = range(0xF0000, 0xFFFFD)


@dataclass(frozen=True)
class NamedTemplate:
    """What a jinja file of ours needs besides its text; ``markers`` must be single tokens of the tokenizer."""

    bos: str
    eos: str
    stop: str
    markers: tuple[str, ...] = ()


NAMED = {
    "chatml": NamedTemplate("", "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>")),
    "gemma2": NamedTemplate("<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>")),
    "llama3": NamedTemplate(
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral": NamedTemplate("<s>", "</s>", "</s>"),
    "plain": NamedTemplate("", "<|endoftext|>", "<|endoftext|>"),
    "roles": NamedTemplate(
        "<|bos|>", "<|end|>", "<|end|>", ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    ),
    "zephyr": NamedTemplate("<s>", "</s>", "</s>"),
}


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
        sample = self._render([_message("user", "x"), _message("assistant", MARK)], False)
        self.tail = sample.rpartition(MARK)[2]
        self.writes_bos = bool(bos) and sample.startswith(bos)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is made of, since jinja's templates cannot be: worker processes make their own."""
        parts = {"bos": self.bos, "eos": self.eos, "stop": self.stop, "response_span": self.response_span}
        return partial(TextTemplate, self.source, **parts), ()

    @classmethod
    def named(cls, name: str, *, response_span: str = "completion", stop: str | None = None) -> TextTemplate:
        """The template ``name`` of ``chat_templates/`` with the special tokens of its usual tokenizer."""
        known = NAMED[_known(name)]
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
        before_stop, found, _ = self.tail.partition(self.stop)
        return prompt_text, body + (before_stop if found else self.tail)

    def render_prompt(self, prompt: Prompt) -> str:
        """The text that a model is asked to continue: with the generation prompt, whatever the response span."""
        return self._render([_message(turn.role, turn.content) for turn in prompt], True)

    def render_conversation(self, messages: Prompt) -> str:
        """A whole conversation, whoever has the last turn."""
        return self._render([_message(turn.role, turn.content) for turn in messages], False)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                bos_token=self.bos,
                eos_token=self.eos,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        except TemplateError as error:
            raise TemplateRefusal(f"the chat template refuses a conversation: {error}") from error


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """Token ids of a prompt and of a response to it, which ends with the stop token."""

    prompt_ids: list[int]
    response_ids: list[int]


Encoded = tuple[list[int], list[list[int]]]
"""Ids of one prompt and of each response to it."""


class ChatTemplate:
    """A chat template and a tokenizer: conversations to token ids.

    * ``template``: a name of ``chat_templates/``, or ``None`` for the tokenizer's own.
    * ``stop_token``: what ends a response; ``None`` takes the token that the template ends a turn with, or eos.
    * A prompt begins with exactly one bos if template or tokenizer want one.
    * A special token's text inside a message stays text: it never becomes that token.

    Raises ``UserError`` when tokenizer, template and stop token do not fit each other.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        response_span: str = "completion",
        stop_token: str | None = None,
        template: str | None = None,
    ) -> None:
        self.tokenizer, self.name = tokenizer, template
        source = _source_for(tokenizer, template)
        self._specials = _special_pattern(tokenizer)
        bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        probe = TextTemplate(source, bos=bos, eos=eos, stop=eos, response_span=response_span)
        found = self._specials.search(probe.tail)
        stop = stop_token or (found.group() if found else eos)
        stop_id = _token_id(tokenizer, stop)
        if stop_id is None:
            raise UserError(
                f"stop token '{stop}' is no single token of the tokenizer {tokenizer.name_or_path}; "
                "set model.stop_tokens to a token it has"
            )
        self.stop_id = stop_id
        self.text = TextTemplate(source, bos=bos, eos=eos, stop=stop, response_span=response_span)
        self._bos_ids = _missing_bos(tokenizer, self.text)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of template, special tokens, span and tokenizer: what the ids depend on."""
        parts = {
            "template": self.text.source,
            "tokens": [self.text.bos, self.text.eos, self.text.stop, self._bos_ids],
            "span": self.text.response_span,
            "tokenizer": tokenizer_hash(self.tokenizer),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def render_text(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """(prompt text, response text with its stop token), for showing; ``encode`` is what is trained on."""
        return self.text.render_text(prompt, response)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The ids a model is asked to continue: with the generation prompt, whatever the response span."""
        (hidden,), table = self._hide([prompt])
        return self._bos_ids + self._ids([self.text.render_prompt(hidden)], table)[0]

    def encode_conversation(self, messages: Prompt) -> list[int]:
        """The ids of a whole conversation, whoever has the last turn, as ``apply_chat_template`` gives them: no bos
        that the template does not write, no stop token put in, nothing left out. Raises ``TemplateRefusal``."""
        (hidden,), table = self._hide([messages])
        return self._ids([self.text.render_conversation(hidden)], table)[0]

    def encode(self, prompt: Prompt, response: str) -> EncodedResponse:
        """Ids of one prompt and response; raises ``TemplateRefusal`` when it cannot be rendered."""
        encoded = self.encode_batch([(prompt, [response])])[0]
        if isinstance(encoded, TemplateRefusal):
            raise encoded
        prompt_ids, (response_ids,) = encoded
        return EncodedResponse(prompt_ids, response_ids)

    def encode_batch(self, conversations: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Encoded | TemplateRefusal]:
        """Ids of prompts and responses, tokenised in one call; a conversation the template refuses has its refusal."""
        jobs = [self._job(prompt, responses) for prompt, responses in conversations]
        common = [text for job in jobs if isinstance(job, tuple) and not job[1] for text in job[0]]
        ready = iter(self._ids(common, {}))
        result: list[Encoded | TemplateRefusal] = []
        for job in jobs:
            if isinstance(job, TemplateRefusal):
                result.append(job)
                continue
            texts, table = job
            ids = self._ids(texts, table) if table else [next(ready) for _ in texts]
            result.append(self._split(texts, table, ids))
        return result

    def _job(self, prompt: Prompt, responses: Sequence[str]) -> tuple[list[str], dict[str, str]] | TemplateRefusal:
        """The texts [prompt, prompt + response, …] to tokenise, and the table of hidden special tokens."""
        (hidden, *answers), table = self._hide([prompt, *((Message("assistant", text),) for text in responses)])
        try:
            parts = [self.text.render_parts(hidden, answer[0].content) for answer in answers]
        except TemplateRefusal as refusal:
            return refusal
        return [parts[0][0], *(prompt_text + body for prompt_text, body in parts)], table

    def _split(self, texts: list[str], table: dict[str, str], ids: list[list[int]]) -> Encoded:
        """Cut the responses off their prompt by position; a token that would span the border is not formed."""
        prompt_ids, size = ids[0], len(ids[0])
        responses = []
        for text, joint in zip(texts[1:], ids[1:], strict=True):
            fits = joint[:size] == prompt_ids
            body = joint[size:] if fits else self._ids([text[len(texts[0]) :]], table)[0]
            responses.append([*body, self.stop_id])
        return self._bos_ids + prompt_ids, responses

    def _hide(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, str]]:
        """Exchange special tokens' texts in messages for private characters; the table turns them back."""
        table: dict[str, str] = {}
        if not any(self._specials.search(turn.content) for prompt in prompts for turn in prompt):
            return list(prompts), table
        used = {character for prompt in prompts for turn in prompt for character in turn.content}
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        names: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            if match.group() not in names:
                names[match.group()] = next(free)
                table[names[match.group()]] = match.group()
            return names[match.group()]

        hidden = [
            tuple(Message(turn.role, self._specials.sub(hide, turn.content)) for turn in prompt) for prompt in prompts
        ]
        return hidden, table

    def _ids(self, texts: list[str], table: dict[str, str]) -> list[list[int]]:
        """Token ids of texts. With a ``table``, special tokens are those of the template alone."""
        if not texts:
            return []
        if table:
            return [self._ids_around_specials(text, table) for text in texts]
        return self._call(texts)

    def _ids_around_specials(self, text: str, table: dict[str, str]) -> list[int]:
        ids: list[int] = []
        back = str.maketrans(table)
        place = 0
        for match in [*self._specials.finditer(text), None]:
            run = text[place : match.start() if match else len(text)].translate(back)
            if run:
                ids += self._call([run], split_special_tokens=True)[0]
            if match:
                ids.append(cast(int, self.tokenizer.convert_tokens_to_ids(match.group())))
                place = match.end()
        return ids

    def _call(self, texts: list[str], **options: bool) -> list[list[int]]:
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        return [list(ids) for ids in encoded["input_ids"]]


def template_text(name: str) -> str:
    """The jinja source of a named template; raises ``UserError`` with the choices for an unknown name."""
    return (FOLDER / f"{_known(name)}.jinja").read_text(encoding="utf-8")


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of a tokenizer's whole content (not of its padding and truncation settings)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _known(name: str) -> str:
    if name not in NAMED:
        raise UserError(f"model.template={name} is unknown; use one of {', '.join(NAMED)}, or null for the tokenizer's")
    return name


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of ``token``, or ``None`` when the tokenizer does not hold it as one token."""
    identity = tokenizer.convert_tokens_to_ids(token) if token else None
    if not isinstance(identity, int) or (identity == tokenizer.unk_token_id and token != tokenizer.unk_token):
        return None
    return identity


def _source_for(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The jinja source to use; raises ``UserError`` when the tokenizer has none or lacks the template's tokens."""
    if template is None:
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template; "
                f"set model.template to one of {', '.join(NAMED)} (plain for a base model)"
            )
        return str(own)
    missing = [token for token in NAMED[_known(template)].markers if _token_id(tokenizer, token) is None]
    if missing:
        raise UserError(
            f"model.template={template} writes {', '.join(missing)}, which the tokenizer {tokenizer.name_or_path} "
            "does not hold as single tokens; set model.template=plain or the template this model was trained with"
        )
    return template_text(template)


def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the text of any special token, longest first; never the empty text."""
    texts = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordered = sorted(filter(None, texts | set(tokenizer.all_special_tokens)), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _missing_bos(tokenizer: PreTrainedTokenizerBase, text: TextTemplate) -> list[int]:
    """``[bos id]`` when the tokenizer puts one before texts and the template does not write it, else ``[]``."""
    identity = tokenizer.bos_token_id
    if identity is None or text.writes_bos:
        return []
    return [identity] if tokenizer("x")["input_ids"][:1] == [identity] else []
