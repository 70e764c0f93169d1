"""From a conversation to the token ids that are trained on: a chat template and a tokenizer.

A response's ids are told from its prompt's by position, never by id; they end with its stop token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from src.data.cache import json_hash
from src.data.marks import Marks
from src.data.pairs import Message, Prompt
from src.data.text_template import (
    FOLDER,
    MARK,
    NAMED,
    SPANS,
    TemplateRefusal,
    TextTemplate,
    known_name,
    template_text,
)
from src.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FOLDER",
    "MARK",
    "NAMED",
    "SPANS",
    "ChatTemplate",
    "Encoded",
    "EncodedResponse",
    "TemplateRefusal",
    "TextTemplate",
    "template_text",
    "tokenizer_hash",
]

PRIVATE = range(0xF0000, 0xFFFFD)
SHOWN = 12
"""So many special tokens are named in a message; there may be hundreds."""


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
    * ``stop_token``: what ends a response, one token or several. The first of them ends it: as the template writes it,
      or behind all that the template writes. Where the template writes more of them after each other, the last one it
      writes does. ``None`` takes the last special token that the template ends a turn with, or eos.
    * A prompt begins with exactly one bos if template or tokenizer want one.
    * The text of a special token, or of one that the template writes, stays text inside a message.

    Raises ``UserError`` when tokenizer, template and stop token do not fit each other.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        response_span: str = "completion",
        stop_token: str | Sequence[str] | None = None,
        template: str | None = None,
    ) -> None:
        self.tokenizer, self.name = tokenizer, template
        source = _source_for(tokenizer, template)
        bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        probe = TextTemplate(source, bos=bos, eos=eos, stop=eos, response_span=response_span)
        self._marks = Marks.of(tokenizer, probe.sample)
        listed = [stop_token] if isinstance(stop_token, str) else list(stop_token or ())
        stop = _stop_of(tokenizer, listed, self._marks.found_in(probe.tail), probe.tail)
        self.stop_id = cast(int, _token_id(tokenizer, stop))
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
        return json_hash(parts)

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
        pattern = self._marks.pattern
        if not any(pattern.search(turn.content) for prompt in prompts for turn in prompt):
            return list(prompts), table
        used = {character for prompt in prompts for turn in prompt for character in turn.content}
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        names: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            if match.group() not in names:
                names[match.group()] = next(free)
                table[names[match.group()]] = match.group()
            return names[match.group()]

        hidden = [tuple(Message(turn.role, pattern.sub(hide, turn.content)) for turn in prompt) for prompt in prompts]
        return hidden, table

    def _ids(self, texts: list[str], table: dict[str, str]) -> list[list[int]]:
        """Token ids of texts. With a ``table``, special tokens are those of the template alone."""
        if not texts:
            return []
        if table:
            return [self._ids_around_specials(text, table) for text in texts]
        return self._call(texts)

    def _ids_around_specials(self, text: str, table: dict[str, str]) -> list[int]:
        """Ids of a text whose special tokens are tokens, and the texts behind the characters of ``table`` are not."""
        ids: list[int] = []
        place = 0
        for match in [*self._marks.with_spaces.finditer(text), None]:
            run = text[place : match.start() if match else len(text)]
            for part in self._marks.apart(run, table):
                ids += self._text_ids(part, first=place == 0)
            if match:
                ids += [cast(int, _token_id(self.tokenizer, mark)) for mark in self._marks.found_in(match.group())]
                place = match.end()
        return ids

    def _text_ids(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text without special tokens, at the beginning of all (``first``) or behind a special token."""
        if first or self._marks.anchor is None:
            return self._call([text], split_special_tokens=True)[0]
        return self._call([self._marks.anchor + text])[0][1:]

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


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of a tokenizer's whole content (not of its padding and truncation settings)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return json_hash(content)


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
    missing = [token for token in NAMED[known_name(template)].markers if _token_id(tokenizer, token) is None]
    if missing:
        raise UserError(
            f"model.template={template} writes {', '.join(missing)}, which the tokenizer {tokenizer.name_or_path} "
            "does not hold as single tokens; set model.template=plain or the template this model was trained with"
        )
    return template_text(template)


def _stop_of(tokenizer: PreTrainedTokenizerBase, listed: Sequence[str], written: Sequence[str], tail: str) -> str:
    """The token that ends a response; raises ``UserError`` when there is none, or one is not in the vocabulary.

    ``listed``: the user's; ``written``: special tokens of ``tail``, which the template writes behind a response.
    """
    place = f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= {str(token) for token in tokenizer.all_special_tokens if token}
    more = ", ..." if len(known) > SHOWN else ""
    special = ", ".join(sorted(known)[:SHOWN]) or "none"
    remedy = f"set model.stop_tokens to a token it has (special ones: {special}{more})"
    for token in listed:
        if _token_id(tokenizer, token) is None:
            raise UserError(f"stop token '{token}' is no single token of {place}; {remedy}")
    if listed:
        return max(listed, key=tail.rfind) if listed[0] in tail else listed[0]
    stop = written[-1] if written else str(tokenizer.eos_token or "")
    if not stop:
        raise UserError(
            f"{place} has no end-of-sequence token, and its chat template ends a response with no special token, so a "
            f"response would never end; {remedy}"
        )
    if _token_id(tokenizer, stop) is None:
        raise UserError(f"stop token '{stop}' is no single token of {place}; {remedy}")
    return stop


def _missing_bos(tokenizer: PreTrainedTokenizerBase, text: TextTemplate) -> list[int]:
    """``[bos id]`` when the tokenizer puts one before texts and the template does not write it, else ``[]``."""
    identity = tokenizer.bos_token_id
    if identity is None or text.writes_bos:
        return []
    return [identity] if tokenizer("x")["input_ids"][:1] == [identity] else []
