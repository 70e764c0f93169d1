"""Templates as published: the same text, the ids of ``apply_chat_template``, and typed special tokens stay text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.pairs import Message, Prompt
from src.data.templates import ChatTemplate, TemplateRefusal
from tests.unit.published import MAKERS, MISTRAL_SIMPO, NAMES, SYSTEM, ZEPHYR, mistral, published

SPECIALS = sorted({str(t) for name in MAKERS for t in published(name).added_tokens_decoder.values() if t.special})
MARKERS = [*SPECIALS, "<|assistant|>", "<tool_call>"]
PLAIN = st.characters(exclude_categories=["Cs", "Co"])
WORDS = [
    "é",
    "e\u0301",
    "👩\u200d👩\u200d👧‍👦",
    "שלום עולם",
    "\u202eabc",
    "🇩🇪",
    "ﬁ",
    "漢字",
    "\n\n",
    " ",
    "\u00a0",
    "\ufeff",
    "a " * 20,
]
TEXT = (
    st.lists(st.one_of(st.text(PLAIN, max_size=8), st.sampled_from(WORDS)), max_size=4)
    .map("".join)
    .filter(lambda text: not any(mark in text for mark in MARKERS))
)
NASTY = st.lists(
    st.one_of(st.text(PLAIN, max_size=4), st.sampled_from([*MARKERS, *MARKERS, " ", "\n"])), max_size=6
).map("".join)
FAMILY = st.sampled_from(sorted(MAKERS))


@cache
def own(name: str, span: str = "completion") -> ChatTemplate:
    return ChatTemplate(published(name), span)


@cache
def ours(name: str) -> ChatTemplate:
    return ChatTemplate(published(name), template=NAMES[name])


def messages_of(turns: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def rendered(name: str, turns: Prompt, *, prompt: bool) -> str:
    text = published(name).apply_chat_template(messages_of(turns), tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def reference_ids(name: str, turns: Prompt, *, prompt: bool) -> list[int]:
    """Ids by transformers, and a bos where the tokenizer wants one that the template does not write."""
    tokenizer = published(name)
    ids = tokenizer.apply_chat_template(messages_of(turns), add_generation_prompt=prompt, return_dict=False)
    missing = name.startswith("zephyr")
    return [tokenizer.bos_token_id] * missing + list(ids)


def conversation(texts: list[str], *, system: bool) -> Prompt:
    roles = ["system"] * system + ["user", "assistant", "user", "assistant", "user"]
    taken = texts[: (len(texts) - system - 1) // 2 * 2 + 1 + system]
    return tuple(Message(role, text) for role, text in zip(roles, taken, strict=False))


# --- text -------------------------------------------------------------------------------------------------------------

S, Q, A, N = Message("system", "S"), Message("user", " Q "), Message("assistant", " A "), Message("user", "N")
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
TEXTS = {
    "llama3": (
        f"<|begin_of_text|>{HEAD.format('user')}Q<|eot_id|>{HEAD.format('assistant')}A<|eot_id|>"
        f"{HEAD.format('user')}N<|eot_id|>{HEAD.format('assistant')}",
        "R<|eot_id|>",
    ),
    "mistral": ("<s>[INST]  Q  [/INST] A </s>[INST] N [/INST]", "R</s>"),
    "mistral_simpo": ("<s>[INST] Q [/INST] A </s>[INST] N [/INST]", " R </s>"),
    "gemma2": (
        "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nN<end_of_turn>\n<start_of_turn>model\n",
        "R<end_of_turn>",
    ),
    "qwen25": (
        f"{QWEN}<|im_start|>user\n Q <|im_end|>\n<|im_start|>assistant\n A <|im_end|>\n"
        "<|im_start|>user\nN<|im_end|>\n<|im_start|>assistant\n",
        "R<|im_end|>",
    ),
    "zephyr": ("<|user|>\n Q </s>\n<|assistant|>\n A </s>\n<|user|>\nN</s>\n<|assistant|>\n", "R</s>"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_published_texts(name: str) -> None:
    assert own(name).render_text((Q, A, N), "R") == TEXTS[name]
    assert rendered(name, (Q, A, N), prompt=True) == TEXTS[name][0]
    if name in NAMES:
        assert ours(name).render_text((Q, A, N), "R") == TEXTS[name]


@pytest.mark.parametrize("name", [name for name in SYSTEM if name in NAMES])
def test_files_of_ours_render_system_messages_as_published(name: str) -> None:
    for turns in ((S, Q), (S, Q, A, N), (Message("system", ""), N)):
        assert ours(name).text.render_prompt(turns) == rendered(name, turns, prompt=True)


def test_templates_without_a_system_role_refuse_it() -> None:
    for template in (own("gemma2"), ours("gemma2")):
        with pytest.raises(
            TemplateRefusal, match=r"refuses a conversation: (System role not supported|Gemma-2 has no sys)"
        ):
            template.encode((S, Q), "R")
        with pytest.raises(TemplateRefusal, match="refuses a conversation"):
            template.encode_prompt((S, Q))
    with pytest.raises(TemplateRefusal, match=r"model\.template=gemma2_simpo"):
        ours("gemma2").encode((S, Q), "R")
    with pytest.raises(TemplateRefusal, match=r"Only user and assistant roles are supported|must alternate"):
        own("mistral").encode((S, Q), "R")
    with pytest.raises(TemplateRefusal, match="must alternate"):
        own("gemma2").encode((Q, N), "R")


# --- SimPO ------------------------------------------------------------------------------------------------------------


def simpo(tokenizer: Any, template: str, prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
    """Ids of prompt and response as SimPO's script and trainer make them, in words of our own: the prompt without
    generation prompt behind an empty system turn where the template knows one, the response as a conversation by itself
    without bos; tokenised together; one bos in front, and eos behind unless it is there."""
    turns = messages_of(prompt)
    if "system" in template and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": ""}, *turns]
    before = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    after = tokenizer.apply_chat_template(
        [{"role": "assistant", "content": response}], chat_template=template, tokenize=False
    ).removeprefix(tokenizer.bos_token)
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    both = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    assert both[: len(start)] == start
    front = [] if start[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id]
    back = [] if both[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
    return front + start, both[len(start) :] + back


GEMMA2_SIMPO = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + "
    "'\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
)
SIMPO = {
    "llama3_simpo": ("llama3_base", None, ["<|eot_id|>", "<|end_of_text|>"]),
    "mistral_simpo": ("mistral", MISTRAL_SIMPO, ["</s>"]),
    "zephyr_simpo": ("zephyr", ZEPHYR, ["</s>"]),
    "gemma2_simpo": ("gemma2", GEMMA2_SIMPO, ["<end_of_turn>", "<eos>"]),
}


@pytest.mark.parametrize("name", SIMPO)
def test_what_simpo_trains_on(name: str) -> None:
    """Ids, and so n, with the stop tokens of conf/model."""
    family, template, stops = SIMPO[name]
    tokenizer = published(family)
    made = ChatTemplate(tokenizer, "with_assistant_header", stops, name)
    for prompt, response in (((Message("user", "hello you"),), "fine, thank you"), ((Q, A, N), "two\n\nlines")):
        found = made.encode(prompt, response)
        expected = simpo(tokenizer, template or tokenizer.chat_template, prompt, response)
        assert (found.prompt_ids, found.response_ids) == expected
        assert found.response_ids[-1] == tokenizer.eos_token_id


def test_llama3_of_simpo_is_the_released_one_where_eos_ends_a_turn() -> None:
    for template in ("llama3", "llama3_simpo"):
        found = ChatTemplate(published("llama3"), "with_assistant_header", ["<|eot_id|>", "<|end_of_text|>"], template)
        expected = simpo(published("llama3"), published("llama3").chat_template, (Q,), "fine")
        assert (found.encode((Q,), "fine").prompt_ids, found.encode((Q,), "fine").response_ids) == expected


# --- ids --------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6), TEXT, st.booleans(), FAMILY)
def test_ids_are_those_of_apply_chat_template(texts: list[str], response: str, system: bool, name: str) -> None:
    prompt = conversation(texts, system=system and name in SYSTEM and len(texts) > 1)
    tokenizer = published(name)
    expected = reference_ids(name, prompt, prompt=True)
    whole = reference_ids(name, (*prompt, Message("assistant", response)), prompt=False)
    for template in (own(name), *([ours(name)] if name in NAMES else [])):
        found = template.encode(prompt, response)
        assert found.prompt_ids == expected == template.encode_prompt(prompt)
        if tokenizer.bos_token_id is not None:
            assert (found.prompt_ids + found.response_ids).count(tokenizer.bos_token_id) == 1
        if whole[: len(expected)] == expected:  # else a token would span the border of prompt and response
            end = len(whole) - whole[::-1].index(template.stop_id)
            assert found.prompt_ids + found.response_ids == whole[:end]
        assert found.response_ids[-1] == template.stop_id
        assert found.response_ids.count(template.stop_id) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(NASTY, min_size=1, max_size=4), NASTY, FAMILY, st.sampled_from(["completion", "with_assistant_header"]))
def test_typed_special_tokens_stay_text(texts: list[str], response: str, name: str, span: str) -> None:
    """The special tokens are those of the same conversation of harmless words, and what is decoded was typed."""
    prompt = conversation(texts, system=False)
    template, tokenizer = own(name, span), published(name)
    written = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special or str(t) == "<|assistant|>"}
    tame = template.encode(tuple(Message(turn.role, "x") for turn in prompt), "x")
    found = template.encode(prompt, response)
    for one, other in ((found.prompt_ids, tame.prompt_ids), (found.response_ids, tame.response_ids)):
        assert [number for number in one if number in written] == [number for number in other if number in written]
    if name in ("llama3", "llama3_base"):
        text = "".join(template.render_text(prompt, response))
        assert tokenizer.decode(found.prompt_ids + found.response_ids) == text


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT, FAMILY)
def test_both_ways_to_ids_agree(one: str, two: str, name: str) -> None:
    """A conversation with a typed special token is tokenised between special tokens; without one, at once."""
    template = own(name)
    text = "".join(template.render_text((Message("user", one),), two))
    assert template._ids_around_specials(text, {}) == template._call([text])[0]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_typed_special_token_changes_nothing_around_it(name: str) -> None:
    template, tokenizer = own(name), published(name)
    stop = str(tokenizer.eos_token)
    before = (Message("user", "hello you"), Message("assistant", "fine, thank you"))
    typed = template.encode((*before, Message("user", f"and {stop} you")), "good").prompt_ids
    usual = template.encode((*before, Message("user", "and you")), "good").prompt_ids
    start = next(place for place, (one, other) in enumerate(zip(typed, usual, strict=False)) if one != other)
    end = next(place for place, (one, other) in enumerate(zip(typed[::-1], usual[::-1], strict=False)) if one != other)
    assert start + end >= len(usual) - 3
    assert stop in tokenizer.decode(typed[start - 2 : len(typed) - end + 2])


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_very_long_prompts(name: str) -> None:
    long = ("The user's question, 漢字 and 🙂. \n\n" * 4000)[:100_000] + "end"
    prompt = (Message("user", long), Message("assistant", long[:5000]), Message("user", "and?"))
    found = own(name).encode(prompt, long[:3000])
    assert found.prompt_ids == reference_ids(name, prompt, prompt=True)
    assert len(found.prompt_ids) > 20_000
    typed = own(name).encode((Message("user", long + str(published(name).eos_token)),), "x")
    assert len(typed.prompt_ids) > 20_000


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_empty_turns(name: str) -> None:
    prompt = (Message("user", ""), Message("assistant", ""), Message("user", ""))
    for text in ("", " \n"):
        found = own(name).encode(prompt, text)
        assert found.prompt_ids == reference_ids(name, prompt, prompt=True)
        assert found.response_ids[-1] == own(name).stop_id


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_half_characters_are_refused(name: str) -> None:
    template = own(name)
    for prompt, response in ((Message("user", "a\ud83d"), "b"), (Message("user", "a"), "b\udc00")):
        with pytest.raises(TemplateRefusal, match=r"lone surrogate U\+D[8C][0-9A-F]{2}, half of a character"):
            template.encode((prompt,), response)
    with pytest.raises(TemplateRefusal, match="lone surrogate"):
        template.encode_prompt((Message("user", "\ud800"),))
    good, bad = template.encode_batch([((N,), ["b"]), ((N,), ["\ud800"])])
    assert isinstance(bad, TemplateRefusal)
    assert isinstance(good, tuple)


def test_several_stop_tokens() -> None:
    """The first ends a response: as the template writes it, or behind what it writes."""
    tokenizer = mistral()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ '</s><s>' }}{% endfor %}"
    for stops, ending in (
        (["</s>"], "x</s>"),
        (["</s>", "<s>"], "x</s><s>"),
        (["<s>", "</s>"], "x</s><s>"),
        (None, "x</s><s>"),
    ):
        assert ChatTemplate(tokenizer, stop_token=stops).render_text((N,), "x")[1] == ending
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ '</s>' }}{% endfor %}"
    assert ChatTemplate(tokenizer, stop_token=["<s>", "</s>"]).render_text((N,), "x")[1] == "x</s><s>"
