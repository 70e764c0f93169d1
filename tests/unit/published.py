"""Small tokenizers in the manner of published models: their special tokens, kind of vocabulary and chat template.

Templates and tokens are written down from knowledge of the models' public tokenizer_config.json (and of SimPO's
override for Mistral), since nothing is downloaded here; the vocabularies are trained on a few sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_SIMPO = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'].strip() + '\n\n' %}{% else %}{% set loop_messages = messages %}{% set system_message = "
    "'' %}{% endif %}{% for message in loop_messages %}{% if loop.index0 == 0 %}{% set content = system_message + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + "
    "'<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    "
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    "(message.role == \"assistant\") %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}"
    "\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CORPUS = [
    "The assistant answers the user's question about user input and system messages.",
    "Conversation: hello, hello! How are you today? I am fine, thank you.\n\nAnother paragraph, and numbers 12345.",
    "def function(argument):\n    return argument\n\n\n",
    "<|user|>\nWrite a poem [INST] now [/INST] model assistant user system\n",
] * 5
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)


def bytes_vocabulary(specials: list[Any], normalizer: Any = None) -> Tokenizer:
    """Bytes merged within words, as Llama-3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def pieces_vocabulary(specials: list[Any], *, prefix: str) -> Tokenizer:
    """Characters merged over spaces, other bytes one by one, as SentencePiece models have it. ``prefix``: which texts
    get a space in front: ``every`` (Mistral), ``first`` of all (newer Llama-2 tokenizers), or ``none`` (Gemma)."""
    marks = [normalizers.Replace(" ", "▁")]
    training = Tokenizer(models.BPE())
    training.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marks])
    training.train_from_iterator(
        [word for text in CORPUS for word in text.split(" ")], trainers.BpeTrainer(vocab_size=220, show_progress=False)
    )
    learnt = json.loads(training.to_str())["model"]
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate([*fallback, *learnt["vocab"]])}
    merges = [(left, right) for left, right in learnt["merges"]]
    base = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marks] if prefix == "every" else marks)
    base.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if prefix == "first":
        base.normalizer = None
        base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    base.add_special_tokens(specials)
    return base


def wrapped(tokenizer: Tokenizer, template: str, **tokens: str) -> Any:
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **tokens)


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """One that puts ``bos`` before every text, as the tokenizers of Llama, Mistral and Gemma do."""
    identity = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, identity)])
    return tokenizer


def llama3(eos: str = "<|eot_id|>") -> Any:
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    inner = bytes_vocabulary([f"<|{name}|>" for name in names])
    return wrapped(with_bos(inner, "<|begin_of_text|>"), LLAMA3, bos_token="<|begin_of_text|>", eos_token=eos)


def llama3_base() -> Any:
    return llama3("<|end_of_text|>")


def mistral() -> Any:
    inner = pieces_vocabulary(["<s>", "</s>"], prefix="every")
    return wrapped(with_bos(inner, "<s>"), MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral_simpo() -> Any:
    tokenizer = mistral()
    tokenizer.chat_template = "{{ bos_token }}" + MISTRAL_SIMPO
    return tokenizer


def gemma2() -> Any:
    tokens = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    inner = with_bos(pieces_vocabulary(tokens, prefix="none"), "<bos>")
    return wrapped(inner, GEMMA2, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def qwen25() -> Any:
    inner = bytes_vocabulary(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    inner.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    return wrapped(inner, QWEN25, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def zephyr() -> Any:
    tokenizer = mistral()
    tokenizer.chat_template = ZEPHYR
    return tokenizer


def zephyr_first() -> Any:
    """Zephyr's template on a vocabulary in which only the first word of a text gets its space."""
    inner = pieces_vocabulary(["<s>", "</s>"], prefix="first")
    return wrapped(with_bos(inner, "<s>"), ZEPHYR, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spaced() -> Any:
    """Role tokens that take the space around them in (Phi-3's do on their right); one is no special token."""
    inner = bytes_vocabulary(["<|end|>", AddedToken("<|user|>", rstrip=True), AddedToken("<|left|>", lstrip=True)])
    inner.add_tokens([AddedToken("<|assistant|>", normalized=False, special=False)])
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    return wrapped(inner, template, eos_token="<|end|>")


MAKERS: dict[str, Callable[[], Any]] = {
    maker.__name__: maker
    for maker in (llama3, llama3_base, mistral, mistral_simpo, gemma2, qwen25, zephyr, zephyr_first, spaced)
}
NAMES = {
    "llama3": "llama3",
    "llama3_base": "llama3",
    "mistral": "mistral",
    "mistral_simpo": "mistral_simpo",
    "gemma2": "gemma2",
    "zephyr": "zephyr",
    "zephyr_first": "zephyr",
}
"""Our file for each template that has one of the same text."""
SYSTEM = ("llama3", "llama3_base", "mistral_simpo", "qwen25", "zephyr", "zephyr_first")
"""Those that have a place for a system message."""


@cache
def published(name: str) -> Any:
    """The tokenizer of that name, made once."""
    return MAKERS[name]()
