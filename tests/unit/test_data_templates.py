"""Chat templates: what they render, and which ids a response is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.pairs import Message, Prompt
from src.data.templates import FOLDER, NAMED, ChatTemplate, TemplateRefusal, TextTemplate, tokenizer_hash
from src.errors import UserError
from tests.unit.data_tools import byte_tokenizer

TOKENIZERS = {name: byte_tokenizer(name) for name in NAMED}
SPANS = ("completion", "with_assistant_header")
ALL = [(name, span) for name in NAMED for span in SPANS]
TEMPLATES = {(name, span): ChatTemplate(TOKENIZERS[name], span, template=name) for name, span in ALL}
MARKERS = sorted({token for name in NAMED for token in TOKENIZERS[name].all_special_tokens})

TEXT = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*MARKERS, "\n\nHuman:", "[/INST]", "\U000f0000", " ", "\n"])),
    max_size=5,
).map("".join)
TURN = st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT)
PROMPT = st.builds(
    lambda system, turns, last: (*system, *turns, Message("user", last)),
    st.lists(st.builds(Message, st.just("system"), TEXT), max_size=1),
    st.lists(TURN, max_size=2),
    TEXT,
)

TURNS = (Message("user", "A"), Message("assistant", "B"), Message("user", "C"))
CONVERSATION = (Message("system", "S"), *TURNS)
WITHOUT_SYSTEM = ("gemma2",)
RENDERED = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
        "D<|im_end|>",
    ),
    "gemma2": (
        "<bos><start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n",
        "D<end_of_turn>",
    ),
    "gemma2_simpo": (
        "<bos><start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n",
        "D<end_of_turn>\n<eos>",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "D<|eot_id|>",
    ),
    "llama3_simpo": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "D<|eot_id|><|end_of_text|>",
    ),
    "mistral": ("<s>[INST] S\n\nA [/INST]B</s>[INST] C [/INST]", "D</s>"),
    "mistral_simpo": ("<s>[INST] S\n\nA [/INST] B </s>[INST] C [/INST]", " D </s>"),
    "plain": ("\n\nSystem: S\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", " D<|endoftext|>"),
    "roles": (
        "<|bos|><|system|>S<|end|><|user|>A<|end|><|assistant|>B<|end|><|user|>C<|end|><|assistant|>",
        "D<|end|>",
    ),
    "zephyr": ("<|system|>\nS</s>\n<|user|>\nA</s>\n<|assistant|>\nB</s>\n<|user|>\nC</s>\n<|assistant|>\n", "D</s>"),
    "zephyr_simpo": (
        "<|system|>\nS</s>\n<|user|>\nA</s>\n<|assistant|>\nB</s>\n<|user|>\nC</s>\n<|assistant|>\n",
        "D</s>\n</s>",
    ),
}
HEADERS = {
    "chatml": "<|im_start|>assistant\n",
    "gemma2": "<start_of_turn>model\n",
    "gemma2_simpo": "<start_of_turn>model\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama3_simpo": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "",
    "mistral_simpo": "",
    "plain": "\n\nAssistant:",
    "roles": "<|assistant|>",
    "zephyr": "<|assistant|>\n",
    "zephyr_simpo": "<|assistant|>\n",
}

CONTENTS = "{% for m in messages %}{{ m.content }}{% endfor %}"


def conversation(name: str) -> Prompt:
    return TURNS if name in WITHOUT_SYSTEM else CONVERSATION


def fitting(prompt: Prompt, name: str) -> Prompt:
    """A drawn prompt without the roles that the template refuses."""
    return tuple(turn for turn in prompt if turn.role != "system" or name not in WITHOUT_SYSTEM)


def user(text: str) -> Prompt:
    return (Message("user", text),)


# --- text -------------------------------------------------------------------------------------------------------------


def test_every_file_is_named_and_tested() -> None:
    files = {path.stem for path in FOLDER.glob("*.jinja")}
    assert files == set(NAMED) == set(RENDERED) == set(HEADERS)
    assert len(files) == 11


@pytest.mark.parametrize("name", NAMED)
def test_rendering_without_a_tokenizer(name: str) -> None:
    prompt, response = RENDERED[name]
    assert TextTemplate.named(name).render_text(conversation(name), "D") == (prompt, response)
    assert TextTemplate.named(name).render_prompt(conversation(name)) == prompt


@pytest.mark.parametrize("name", NAMED)
def test_the_header_moves_to_the_response(name: str) -> None:
    prompt, response = RENDERED[name]
    header = HEADERS[name]
    template = TextTemplate.named(name, response_span="with_assistant_header")
    assert template.render_text(conversation(name), "D") == (prompt.removesuffix(header), header + response)
    assert template.render_prompt(conversation(name)) == prompt


@pytest.mark.parametrize("name", NAMED)
def test_rendering_is_that_of_transformers(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation(name)]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(tokenizer).render_text(conversation(name), "D") == (expected, RENDERED[name][1])


def test_transcripts_come_back_from_the_plain_template() -> None:
    from src.data.sources.hh import ASSISTANT, cut, pair_of

    text = "\n\nHuman: a \n\nb\n\nAssistant:  two spaces\n\nHuman: \n\nAssistant: end\n"
    found = pair_of("x", text, text)
    template = TextTemplate.named("plain")
    assert template.render_prompt(found.prompt) == cut(text)[0]  # type: ignore[union-attr]
    assert template.render_prompt(found.prompt).endswith(ASSISTANT)  # type: ignore[union-attr]


def test_dates_do_not_enter() -> None:
    source = "{{ strftime_now('%d') if strftime_now is defined else 'no date' }}" + CONTENTS
    template = TextTemplate(source, bos="", eos="</s>", stop="</s>")
    assert template.render_text(user("A"), "B") == ("no dateA", "B</s>")


def test_generation_tags_write_nothing() -> None:
    source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}"
    assert TextTemplate(source, bos="", eos="e", stop="e").render_text(user("A"), "B") == ("A", "Be")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "not valid jinja"),
        ("{{ raise_exception('roles must alternate') }}", "refuses a conversation: roles must alternate"),
    ],
)
def test_templates_that_do_not_work(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextTemplate(source, bos="", eos="e", stop="e")


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    source = "{{ messages | length }}" + CONTENTS
    with pytest.raises(TemplateRefusal, match="response cannot be told apart"):
        TextTemplate(source, bos="", eos="e", stop="e").render_text(user("A"), "B")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"model\.template=llama is unknown; use one of chatml, gemma2, gemma2_simpo, "):
        TextTemplate.named("llama")
    with pytest.raises(UserError, match=r"dataset\.response_span=all is unknown; use one of completion, with_"):
        TextTemplate.named("llama3", response_span="all")


# --- ids --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(PROMPT, TEXT, TEXT, st.sampled_from(ALL))
def test_ids(prompt: Prompt, one: str, two: str, key: tuple[str, str]) -> None:
    template, tokenizer = TEMPLATES[key], TOKENIZERS[key[0]]
    prompt = fitting(prompt, key[0])
    prompt_ids, (first, second) = _batch(template, prompt, [one, two])
    prompt_text, response_text = template.render_text(prompt, one)
    assert tokenizer.decode(prompt_ids) == prompt_text
    assert tokenizer.decode(first) == response_text
    # the stop token ends each response, and is nowhere else in it, whatever the texts hold
    for response in (first, second):
        assert response[-1] == template.stop_id
        assert response.count(template.stop_id) == (2 if key[0] == "zephyr_simpo" else 1)
    if tokenizer.bos_token_id is not None and template.text.writes_bos:
        assert prompt_ids[0] == tokenizer.bos_token_id
        assert (prompt_ids + first).count(tokenizer.bos_token_id) == 1
    assert template.encode(prompt, one) == template.encode(prompt, one)
    assert (template.encode(prompt, two).prompt_ids, template.encode(prompt, two).response_ids) == (prompt_ids, second)


@settings(max_examples=60, deadline=None)
@given(PROMPT, TEXT, st.sampled_from(list(NAMED)))
def test_as_many_special_tokens_as_the_template_writes(prompt: Prompt, response: str, name: str) -> None:
    """Compared with the same conversation of harmless texts."""
    prompt = fitting(prompt, name)
    tame = tuple(Message(turn.role, "x") for turn in prompt)
    template, specials = TEMPLATES[name, "completion"], set(TOKENIZERS[name].all_special_ids)

    def count(encoded: Any) -> list[int]:
        return [number for number in encoded.prompt_ids + encoded.response_ids if number in specials]

    assert count(template.encode(prompt, response)) == count(template.encode(tame, "x"))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(ALL))
def test_both_ways_of_tokenising_agree(one: str, two: str, key: tuple[str, str]) -> None:
    template = TEMPLATES[key]
    text = "".join(template.render_text(user(one), two))
    assert template._ids_around_specials(text, {}) == template._call([text])[0]


def test_a_batch_is_its_members() -> None:
    template = TEMPLATES["llama3", "completion"]
    items = [(user("a"), ["b", "c"]), (user("<|eot_id|>"), ["d"]), (user("e"), ["<|eot_id|>f", "g", "h"])]
    together = template.encode_batch(items)
    assert together == [template.encode_batch([item])[0] for item in items]
    assert [len(item[1]) for item in together if isinstance(item, tuple)] == [2, 1, 3]
    assert template.encode_batch([]) == []


def test_a_refused_conversation_does_not_spoil_the_batch() -> None:
    source = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CONTENTS
    tokenizer = byte_tokenizer("plain")
    tokenizer.chat_template = source
    template = ChatTemplate(tokenizer)
    first, second, third = template.encode_batch([(user("a"), ["b"]), (user("bad"), ["b"]), (user("c"), ["d"])])
    assert isinstance(second, TemplateRefusal)
    assert first == template.encode_batch([(user("a"), ["b"])])[0]
    assert third == template.encode_batch([(user("c"), ["d"])])[0]
    with pytest.raises(TemplateRefusal, match="refuses a conversation: no"):
        template.encode(user("bad"), "b")


@pytest.mark.parametrize(("name", "span"), ALL)
def test_the_prompt_for_generation(name: str, span: str) -> None:
    template = TEMPLATES[name, span]
    expected = TEMPLATES[name, "completion"].encode(conversation(name), "D").prompt_ids
    assert template.encode_prompt(conversation(name)) == expected


def merging_tokenizer() -> Any:
    """One that would merge the last byte of a prompt with the first of a response."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {"]D": 256, "DE": 257}, merges=[("]", "D"), ("D", "E")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_no_token_spans_prompt_and_response() -> None:
    tokenizer = merging_tokenizer()
    assert len(tokenizer("]D")["input_ids"]) == 1
    template = ChatTemplate(tokenizer, template="mistral")
    encoded = template.encode(user("C"), "DE")
    assert encoded.prompt_ids == template.encode_prompt(user("C"))
    assert tokenizer.decode(encoded.prompt_ids) == "<s>[INST] C [/INST]"
    assert encoded.response_ids == [257, template.stop_id]


def test_bos_of_the_tokenizer_is_added_once() -> None:
    """Zephyr writes no bos; the tokenizer of its base model puts one before every text."""
    from tokenizers import processors

    tokenizer = byte_tokenizer("zephyr")
    bos = tokenizer.bos_token_id
    assert ChatTemplate(tokenizer, template="zephyr").encode(user("a"), "b").prompt_ids[0] != bos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    for name in ("zephyr", "mistral"):
        template = ChatTemplate(tokenizer, template=name)
        encoded = template.encode(user("a"), "b")
        assert encoded.prompt_ids[0] == bos
        assert (encoded.prompt_ids + encoded.response_ids).count(bos) == 1
        assert template.encode_prompt(user("a")) == encoded.prompt_ids


def test_padding_with_eos_does_not_hide_the_stop_token() -> None:
    tokenizer = byte_tokenizer("plain")
    tokenizer.pad_token = tokenizer.eos_token
    encoded = ChatTemplate(tokenizer, template="plain").encode(user("a"), "b")
    assert encoded.response_ids[-1] == tokenizer.eos_token_id


def test_stop_token() -> None:
    tokenizer = byte_tokenizer("llama3")
    tokenizer.add_special_tokens({"eos_token": "<|end_of_text|>"})
    by_template = ChatTemplate(tokenizer)
    assert by_template.text.stop == "<|eot_id|>"
    named = ChatTemplate(tokenizer, stop_token="<|end_of_text|>")
    assert named.render_text(user("a"), "b")[1] == "b<|eot_id|><|end_of_text|>"
    assert named.encode(user("a"), "b").response_ids[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match=r"stop token '<\|im_end\|>' is no single token .* set model\.stop_tokens"):
        ChatTemplate(tokenizer, stop_token="<|im_end|>")


def test_tokenizer_without_a_template_or_its_tokens() -> None:
    tokenizer = byte_tokenizer("plain")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template; set model\.template to one of chatml"):
        ChatTemplate(tokenizer)
    with pytest.raises(UserError, match=r"writes <\|im_start\|>, <\|im_end\|>, which the tokenizer .* does not hold"):
        ChatTemplate(tokenizer, template="chatml")


def test_hash_tells_apart_what_changes_ids() -> None:
    tokenizer = byte_tokenizer("roles")
    other = byte_tokenizer("roles")
    other.add_tokens(["hello"])
    templates = [
        ChatTemplate(tokenizer),
        ChatTemplate(tokenizer, "with_assistant_header"),
        ChatTemplate(tokenizer, stop_token="<|user|>"),
        ChatTemplate(tokenizer, template="plain"),
        ChatTemplate(other),
    ]
    assert len({template.hash for template in templates}) == len(templates)
    assert ChatTemplate(tokenizer).hash == ChatTemplate(byte_tokenizer("roles"), template="roles").hash


def test_tokenizer_hash_survives_use_and_saving(tmp_path: Path) -> None:
    from src.data.tokenizer import load_tokenizer

    tokenizer = byte_tokenizer("roles")
    before = tokenizer_hash(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    tokenizer.pad_token = None
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == before


def _batch(template: ChatTemplate, prompt: Prompt, responses: list[str]) -> tuple[list[int], list[list[int]]]:
    encoded = template.encode_batch([(prompt, responses)])[0]
    assert isinstance(encoded, tuple)
    return encoded
