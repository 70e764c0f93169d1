"""Templates and stop tokens that cannot work, as a user gives them: refused by preflight and before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.entry import assert_says, call, refused
from tests.support import SMALL_DATA, SMALL_MODEL, places
from tests.unit.data_tools import byte_tokenizer
from tests.unit.published import published

PREFLIGHT, TRAIN, SHOW = "src.preflight", "src.train", "src.data.show"
TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"


def saved(folder: Path, tokenizer: Any, **changes: Any) -> str:
    """The tokenizer, changed, in a folder."""
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    place = folder / "tokenizer"
    tokenizer.save_pretrained(place)
    return str(place)


def own(folder: Path, tokenizer: str, *more: str) -> list[str]:
    """A small run with a tokenizer of the user's and the template that it brings."""
    keys = [
        *SMALL_MODEL,
        *SMALL_DATA,
        *places(folder),
        "~recipe",
        f"model.tokenizer={tokenizer}",
        "model.template=null",
    ]
    return [*keys, "model.stop_tokens=[]", "model.architecture.vocab_size=700", *more]


def refused_everywhere(keys: list[str], *fragments: str) -> None:
    """By preflight, before training and where data is shown; nothing is prepared, and no run directory made."""
    for program in (PREFLIGHT, TRAIN, SHOW):
        assert_says(refused(program, *keys), *fragments)
    folder = Path(next(key.partition("=")[2] for key in keys if key.startswith("output_root=")))
    assert not folder.exists()


def test_no_generation_prompt(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, byte_tokenizer("roles"), chat_template=TURNS)
    refused_everywhere(
        own(tmp_path, tokenizer),
        "the chat template has no generation prompt: it writes '<|assistant|>' before a response",
        "end the template with {% if add_generation_prompt %}<|assistant|>{% endif %}, or set model.template",
    )


def test_another_generation_prompt_than_header(tmp_path: Path) -> None:
    other = TURNS + "{% if add_generation_prompt %}{{ '<|assistant|>\nAnswer:' }}{% endif %}"
    tokenizer = saved(tmp_path, byte_tokenizer("roles"), chat_template=other)
    refused_everywhere(
        own(tmp_path, tokenizer),
        r"generation prompt is '<|assistant|>\nAnswer:', but before a response it writes '<|assistant|>'",
        "make both the same, or set model.template",
    )


def test_a_header_of_space_needs_no_generation_prompt(tmp_path: Path) -> None:
    """As in Mistral's templates, where the response follows the user's end of turn."""
    template = (
        "{% for m in messages %}{{ '[' + m.content + '] ' if m.role == 'user' else m.content + '<|end|>' }}{% endfor %}"
    )
    tokenizer = saved(tmp_path, byte_tokenizer("roles"), chat_template=template)
    outcome = call(PREFLIGHT, *own(tmp_path, tokenizer))
    assert outcome.code == 0, outcome.err


def test_no_end_of_sequence(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}"
    ending = plain + "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
    tokenizer = saved(tmp_path, byte_tokenizer("roles"), chat_template=ending, eos_token=None)
    refused_everywhere(
        own(tmp_path, tokenizer),
        "has no end-of-sequence token, and its chat template ends a response with no special token",
        "a response would never end; set model.stop_tokens to a token it has (special ones: ",
        "<|assistant|>, ",
    )
    assert call(PREFLIGHT, *own(tmp_path, tokenizer, "model.stop_tokens=['<|system|>']")).code == 0


@pytest.mark.parametrize("stops", ["['<|im_end|>']", "['<|end|>','<|im_end|>']", "['two words']"])
def test_unknown_stop_tokens(stops: str, tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, byte_tokenizer("roles"))
    unknown = "two words" if "two" in stops else "<|im_end|>"
    refused_everywhere(
        own(tmp_path, tokenizer, f"model.stop_tokens={stops}"),
        f"stop token '{unknown}' is no single token of the tokenizer",
        "set model.stop_tokens to a token it has (special ones: ",
    )


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, byte_tokenizer("roles"), chat_template=TURNS)
    keys = own(tmp_path, tokenizer, "training.micro_batch_size=3", "training.global_batch_size=8")
    for program in (PREFLIGHT, TRAIN):
        assert_says(
            refused(program, *keys), "2 problems found", "no generation prompt", "cannot be cut into micro-batches"
        )


def test_system_messages_for_a_template_without_a_system_role(tmp_path: Path) -> None:
    """Counted and said where some have them, an error with the reason where all do."""
    published("gemma2").save_pretrained(tmp_path / "gemma")
    lines = []
    for number in range(40):
        turns = [{"role": "user", "content": f"question {number}?"}]
        turns = [{"role": "system", "content": "be kind"}, *turns] if number % 4 == 0 else turns
        lines.append({"id": f"p{number}", "prompt": turns, "chosen": f"good {number}", "rejected": "bad"})
    path = tmp_path / "pairs.jsonl"
    data = ["dataset=local", f"dataset.source.path={path}", "dataset.validation_fraction=0.3", "~recipe"]
    data += ["training.global_batch_size=4", "training.micro_batch_size=4"]
    keys = [*SMALL_MODEL, *places(tmp_path), *data, f"model.tokenizer={tmp_path}/gemma", "model.template=gemma2"]
    keys += ["model.stop_tokens=['<end_of_turn>','<eos>']", "model.architecture.vocab_size=700"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = call(PREFLIGHT, *keys)
    assert outcome.code == 0, outcome.err
    assert "10 x refused by the chat template (p0, p4, " in " ".join(outcome.out.split())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[::4]))
    assert_says(
        refused(PREFLIGHT, *keys),
        "10 × refused by the chat template (the chat template refuses a conversation: Gemma-2 has no system role;",
        "set model.template=gemma2_simpo",
    )
    assert call(PREFLIGHT, *keys, "model.template=gemma2_simpo").code == 0
